"""The loaded model: the weights and the network around them, from tokens to logits.

`Model` is `Weights` with a forward pass: the decoder and its layers, the tokens of a text, what a
layer's MLP writes, and the logits of states of the residual stream.
"""

from __future__ import annotations

import logging
import os
from functools import cached_property
from typing import Any

import torch

from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError, first_line
from conceptvec.model.ambient import set_aside
from conceptvec.model.checkpoint import FAMILIES as FAMILIES
from conceptvec.model.checkpoint import Checkpoint
from conceptvec.model.device import wide_products
from conceptvec.model.memory import is_out_of_memory
from conceptvec.model.tensors import DECODER, HEAD, StoredTensors, misfit
from conceptvec.model.vocabulary import empty_opening, start_of_text
from conceptvec.model.weights import Weights, open_checkpoint, unloadable

logger = logging.getLogger(__name__)

CHAT_REQUEST = "Complete the sentence."  # the user's turn where a chat template is asked for
ROWS = 2**14  # of the unembedding in float32 at a time, where products come out in less


class LoadedTensors:
    """The tensors of a network in memory: a `TensorSource`.

    Args:
        hf: the network of transformers.
    """

    def __init__(self, hf: Any) -> None:
        self.config = hf.config.get_text_config()
        self._decoder = hf.get_decoder()
        self._head = hf.get_output_embeddings().weight.detach()

    def names(self) -> list[str]:
        """The decoder's parameters, and the unembedding where it is a matrix of its own."""
        names = [name for name, _ in self._decoder.named_parameters()]
        embedding = self._decoder.get_input_embeddings().weight
        tied = self._head.data_ptr() == embedding.data_ptr()
        return names if tied else [*names, HEAD]

    def read(self, name: str) -> torch.Tensor:
        """The parameter itself, not a copy."""
        return self._head if name == HEAD else self._decoder.get_parameter(name).detach()


class Model(Weights):
    """A loaded decoder: `Weights` and the network.

    Args:
        hf: the network of transformers.
        tokenizer: its tokenizer.
        about: the other attributes of `Weights`, from `name` on.

    Attributes:
        decoder: the text decoder.
        layers: its layers.
        norm: its final norm.
        softcap: the bound of the logits, where the model has one.
    """

    def __init__(self, hf: Any, tokenizer: Any, *about: Any) -> None:
        super().__init__(LoadedTensors(hf), tokenizer, *about)
        self.hf = hf
        self.decoder = hf.get_decoder()
        self.layers = self.decoder.layers
        self.norm = self.decoder.norm
        softcap = getattr(self.source.config, "final_logit_softcapping", None)
        self.softcap: float | None = softcap

    def mlp_written(self, layer: int, mlp_output: torch.Tensor) -> torch.Tensor:
        """What the layer adds to the residual stream for an MLP output (..., H)."""
        if self.family.post_norm is None:
            return mlp_output
        return getattr(self.layers[layer], self.family.post_norm)(mlp_output)

    def encode(self, text: str, chat: bool = False) -> list[int]:
        """Token ids, behind what the tokenizer puts in front of every text, once.

        With `chat` the text is the beginning of the model's turn in its chat template.

        Raises:
            RequestError: the tokenizer has no chat template, or is another model's.
        """
        if chat:
            text = self._chat_opening + text
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if max(ids, default=0) >= self.vocab_size:
            raise RequestError(
                f"--model: the tokenizer of {self.name} gives the token {max(ids)}, and the "
                f"model has only {self.vocab_size}: they do not belong together; fetch the files "
                "again"
            )
        start = self.start
        return ids if ids[: len(start)] == start else [*start, *ids]

    @cached_property
    def start(self) -> list[int]:
        """What the tokenizer puts in front of every text: ``[BOS]``, or nothing.

        Raises:
            RequestError: the model has no such token.
        """
        outside = [mark for mark in empty_opening(self.tokenizer) if mark >= self.vocab_size]
        if outside:
            raise RequestError(
                f"--model: texts of {self.name} begin with the token {outside[0]}, and the model "
                f"has only {self.vocab_size}: it was added to the tokenizer alone; call "
                "resize_token_embeddings, train, and save both"
            )
        return start_of_text(self.tokenizer)

    @cached_property
    def _chat_opening(self) -> str:
        """The chat template up to the beginning of the model's turn.

        It is filled in once: a template may write today's date.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise RequestError(
                f"--chat-template: {self.name} has no chat template; use an instruction-tuned model"
            )
        turn = [{"role": "user", "content": CHAT_REQUEST}]
        try:
            return self.tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program, and raises what it likes
            raise RequestError(
                f"--chat-template: the chat template of {self.name} cannot be used "
                f"({type(error).__name__}: {first_line(error)}); mend it, or leave the option out"
            ) from None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and unembedding of residual-stream states (N, H) → float32 logits (N, V).

        Also for bfloat16 the product comes out in float32: rounded to bfloat16, logits of 16 to
        32 lie 0.125 apart.
        """
        states = self.norm(hidden)
        if states.dtype is torch.float32 and states.device.type != "mps":
            logits = states @ self.unembedding.T
        elif wide_products(self.device):
            logits = torch.mm(states, self.unembedding.T, torch.float32)
        else:  # on MPS products of the vocabulary's width may be slow
            chunks = self.unembedding.split(ROWS)
            logits = torch.cat([states.float() @ rows.float().T for rows in chunks], 1)
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


@set_aside
def load_model(config: Config, checkpoint: Checkpoint | None = None) -> Model:
    """Load `config.model` in its final precision on its device.

    Args:
        config: model, revision, device, dtype.
        checkpoint: the model's files, where `checkpoint.find` has looked at them already.

    Raises:
        RequestError: no such model, no access to it, files that cannot be used, or a family that
            is not supported.
        RunError: the download failed, or the model does not fit into memory.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    opened = open_checkpoint(config, checkpoint)
    device, dtype = opened.device, opened.dtype
    precision = str(dtype).removeprefix("torch.")
    logger.info("%s on %s in %s: %s", config.model, device, precision, opened.why)
    try:
        hf = _network(opened.source).to(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"{config.model} does not fit into the memory of {device} in {dtype}; use --dtype "
            "bfloat16, another --device or a smaller model"
        ) from None
    _, *about = opened
    model = Model(hf.eval().requires_grad_(False), *about)
    _ = model.start  # refused now, where it is not one of the model's
    return model


def _network(tensors: StoredTensors) -> Any:
    """The text decoder and its unembedding around a checkpoint's tensors.

    Every weight must come from the files. transformers gets the tensors themselves, so what is
    loaded is what `StoredTensors` reads, without a vision tower and without adapters.
    """
    import transformers

    config, dtype = tensors.config, tensors.dtype
    kind: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    state = {
        name if name == HEAD else f"{DECODER}.{name}": tensors.converted(name, dtype)
        for name in tensors.names()
    }
    # 4.50-4.55 know only torch_dtype, later versions warn about it.
    old = tuple(int(x) for x in transformers.__version__.split(".")[:2]) < (4, 56)
    try:
        hf, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            attn_implementation="eager",
            output_loading_info=True,
            **{"torch_dtype" if old else "dtype": dtype},
        )
    except Exception as error:  # they break in as many ways as there are files
        if is_out_of_memory(error):
            raise
        raise unloadable(tensors.folder, error) from error
    wrong = [*map(str, report["mismatched_keys"]), *map(str, report["error_msgs"])]
    lacks = sorted(map(str, report["missing_keys"]))
    if wrong or lacks:
        raise RequestError(misfit(tensors.folder, lacks, wrong))
    return hf


def check_finite(x: torch.Tensor, layer: int) -> None:
    """Check that a forward pass has stayed among the numbers.

    Raises:
        RunError: it has not; the message names the layer.
    """
    if not torch.isfinite(x).all():
        raise RunError(
            f"NaN or infinity in the forward pass after layer {layer}: likely float16 arithmetic "
            "or broken weights. Run again with --dtype float32; if it stays, check the model's "
            "files."
        )
