"""Model access: load a Gemma 3 once, name its parts, decide device and precision.

Everything the stages need is on `Model`: the decoder layers, the value vectors (columns of ``down_proj``), the
unembedding, and the norm weights that the readout folds in. Dimensions are always read from the model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError
from conceptvec.model.checkpoint import FAMILIES as FAMILIES
from conceptvec.model.checkpoint import Family, fetch, find
from conceptvec.model.device import choose_device, choose_dtype, wide_products
from conceptvec.model.memory import is_out_of_memory

logger = logging.getLogger(__name__)

ARCHITECTURE = (
    "model_type", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "rms_norm_eps", "sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping", "tie_word_embeddings",
)  # fmt: skip

CHAT_REQUEST = "Complete the sentence."  # what the user's turn asks where the model is prompted by its chat template
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass
class Model:
    """A loaded decoder with the names that interpretability work needs. Nothing in it is ever written."""

    hf: Any
    tokenizer: Any
    name: str
    revision: str | None
    family: Family
    device: torch.device
    dtype: torch.dtype
    why: str = ""  # why this precision

    def __post_init__(self) -> None:
        """Look up the decoder's parts and read the dimensions."""
        config = self.hf.config.get_text_config()
        self.decoder = self.hf.get_decoder()
        self.layers = self.decoder.layers
        self.norm = self.decoder.norm
        self.unembedding = self.hf.get_output_embeddings().weight.detach()  # (V, H)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.n_layers = len(self.layers)
        self.intermediate_size, self.hidden_size = self.value_vectors(0).shape
        self.vocab_size = self.unembedding.shape[0]
        self.bos_id = self.tokenizer.bos_token_id

    def value_vectors(self, layer: int) -> torch.Tensor:
        """The columns of ``down_proj`` as rows: (intermediate_size, hidden_size), a view."""
        return self.layers[layer].mlp.down_proj.weight.detach().T

    def fold_scale(self, layer: int, fold: str) -> torch.Tensor:
        """The factor folded into the readout: float32 (hidden_size,)."""
        scale = torch.ones(self.hidden_size, dtype=torch.float32, device=self.device)
        if fold in ("both", "final"):
            scale = scale * (self.family.norm_offset + self.norm_weight("norm").float())
        if fold == "both" and self.family.post_norm:
            weight = self.norm_weight(f"layers.{layer}.{self.family.post_norm}")
            scale = scale * (self.family.norm_offset + weight.float())
        return scale

    def readout_directions(self, layer: int, fold: str, neurons: Any = slice(None)) -> torch.Tensor:
        """The value vectors of a layer, or of some of its neurons, folded: float32 (n, hidden_size)."""
        return self.folded(self.value_vectors(layer)[neurons], layer, fold)

    def folded(self, vectors: torch.Tensor, layer: int, fold: str) -> torch.Tensor:
        """What value vectors (n, hidden_size) of a layer are in the readout: float32, of the same shape.

        Raises:
            RunError: the weights hold NaN or infinity.
        """
        directions = (vectors.float() * self.fold_scale(layer, fold)).contiguous()
        if not torch.isfinite(directions).all():
            raise RunError(
                f"NaN or infinity in down_proj or a norm of layer {layer}: the weights of {self.name} are broken; "
                "fetch its files again, or run the other layers with --layers"
            )
        return directions

    def norm_weight(self, name: str) -> torch.Tensor:
        """The weight of a norm of the decoder, such as ``norm`` or ``layers.0.post_feedforward_layernorm``."""
        return self.decoder.get_submodule(name).weight.detach()

    def mlp_written(self, layer: int, mlp_output: torch.Tensor) -> torch.Tensor:
        """What the layer adds to the residual stream for an MLP output (..., H)."""
        if self.family.post_norm is None:
            return mlp_output
        return getattr(self.layers[layer], self.family.post_norm)(mlp_output)

    def encode(self, text: str, chat: bool = False) -> list[int]:
        """Token ids with the beginning-of-sequence token once (where the model has one).

        With `chat` the text is the beginning of the model's turn in its chat template.

        Raises:
            RequestError: the tokenizer has no chat template, or is another model's.
        """
        if chat:
            if not getattr(self.tokenizer, "chat_template", None):
                raise RequestError(
                    f"--chat-template: {self.name} has no chat template; use an instruction-tuned model"
                )
            turn = [{"role": "user", "content": CHAT_REQUEST}]
            text = (
                self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
                + text
            )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if max(ids, default=0) >= self.vocab_size:
            raise RequestError(
                f"--model: the tokenizer of {self.name} gives the token {max(ids)}, and the model has only "
                f"{self.vocab_size}: they do not belong together; fetch the files again"
            )
        return ids if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and unembedding of residual-stream states (N, H) → float32 logits (N, V).

        Also for bfloat16 the product comes out in float32: rounded to bfloat16, logits of 16 to 32 lie 0.125 apart.
        """
        states = self.norm(hidden)
        if (
            states.dtype is torch.float32 and states.device.type != "mps"
        ):  # there products of this width may be slow
            logits = states @ self.unembedding.T
        elif wide_products(self.device):
            logits = torch.mm(states, self.unembedding.T, torch.float32)
        else:
            logits = torch.cat(
                [states.float() @ rows.float().T for rows in self.unembedding.split(2**14)], 1
            )
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides a result: see `fingerprint`."""
        tensors = dict(self.decoder.named_parameters())
        if self.unembedding.data_ptr() != self.decoder.get_input_embeddings().weight.data_ptr():
            tensors["lm_head.weight"] = self.unembedding
        return fingerprint(self, self.hf.config.get_text_config(), sorted(tensors.items()))

    def facts(self) -> dict[str, Any]:
        """The `model` part of the results."""
        return {
            "id": self.name, "revision": self.revision, "fingerprint": self.fingerprint, "family": self.family.name,
            "layers": self.n_layers, "hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size, "dtype": str(self.dtype).removeprefix("torch."), "why_dtype": self.why,
            "device": str(self.device),
        }  # fmt: skip


def _rotary(config: Any) -> list[Any]:
    """Rotary base of the full layers, its factor, base of the sliding layers; 4.x and 5.x name them differently."""
    found: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if not found:
        found = {"rope_theta": getattr(config, "rope_theta", None)} | (
            getattr(config, "rope_scaling", None) or {}
        )
    full = found.get("full_attention", found)
    local = (found.get("sliding_attention") or {}).get(
        "rope_theta", getattr(config, "rope_local_base_freq", None)
    )
    return [full.get("rope_theta"), full.get("factor"), local]


def fingerprint(model: Model, config: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over architecture, vocabulary and tensors (sorted by the decoder's names) in the model's precision.

    The same in every version of transformers; of a multimodal model the text decoder alone counts.
    """
    shape = {name: getattr(config, name, None) for name in ARCHITECTURE} | {
        "rotary": _rotary(config)
    }
    digest = hashlib.sha256(
        json.dumps([shape, str(model.dtype), model.n_layers], default=str).encode()
    )
    digest.update(json.dumps(sorted(model.tokenizer.get_vocab().items())).encode())
    for name, tensor in tensors:
        digest.update(name.encode())
        for rows in tensor.detach().split(
            2**14
        ):  # a precision is changed, a device read, a part at a time
            digest.update(rows.to("cpu", model.dtype).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_model(config: Config) -> Model:
    """Load `config.model` in its final precision on its device.

    Raises:
        RequestError: no such model, no access to it, files that cannot be used, or a family that is not supported.
        RunError: the download failed, or the model does not fit into memory.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    checkpoint = find(config)
    device = choose_device(config.device)
    dtype, reason = choose_dtype(config.dtype, device)
    logger.info(
        "%s on %s in %s: %s", config.model, device, str(dtype).removeprefix("torch."), reason
    )
    folder = fetch(checkpoint)
    try:
        tokenizer, hf = _load(folder, dtype)
        hf = hf.to(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"{config.model} does not fit into the memory of {device} in {dtype}; use --dtype bfloat16, another "
            "--device or a smaller model"
        ) from None
    hf = hf.eval().requires_grad_(False)
    return Model(
        hf, tokenizer, config.model, checkpoint.revision, checkpoint.family, device, dtype, reason
    )


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and model of a checked folder; every weight of the text decoder must come from its files."""
    import transformers

    # 4.50-4.55 know only torch_dtype, later versions warn about it.
    old = tuple(int(x) for x in transformers.__version__.split(".")[:2]) < (4, 56)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, attn_implementation="eager", output_loading_info=True,
            **{"torch_dtype" if old else "dtype": dtype}, **LOCAL,
        )  # fmt: skip
    except (
        Exception
    ) as error:  # configurations and tokenizers break in as many ways as there are files
        if is_out_of_memory(error):
            raise
        raise unloadable(folder, error) from error
    hf, report = loaded
    wrong = [*map(str, report["mismatched_keys"]), *map(str, report["error_msgs"])]
    if wrong or report["missing_keys"]:
        lacks = sorted(map(str, report["missing_keys"]))
        raise RequestError(
            f"--model: {folder} does not hold the model that its config.json describes: "
            f"{len(lacks)} weights are missing, {len(wrong)} have another size (first: {[*lacks, *wrong][0][:200]}). "
            "Nothing is ever filled in at random; fetch the files again."
        )
    return tokenizer, hf


def unloadable(folder: Path, error: Exception) -> RequestError:
    """What to say of a model folder that transformers cannot read."""
    text = " ".join(str(error).split())[:300]
    return RequestError(
        f"--model: {folder} could not be loaded ({type(error).__name__}: {text}); its files do not fit together, so "
        "fetch them again"
    )


def check_finite(x: torch.Tensor, layer: int) -> None:
    """Raise a `RunError` that names the layer where a forward pass left the numbers."""
    if not torch.isfinite(x).all():
        raise RunError(
            f"NaN or infinity in the forward pass after layer {layer}: likely float16 arithmetic or broken weights. "
            "Run again with --dtype float32; if it stays, check the model's files."
        )
