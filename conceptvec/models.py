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
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """How a family writes its MLP output into the residual stream."""

    name: str
    norm_offset: float  # RMSNorm multiplies by offset + weight
    mlp_norm: str  # the norm whose input is the residual stream before the MLP
    post_norm: str | None  # the norm applied to the MLP output, if any


_GEMMA = (1.0, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_LLAMA = (0.0, "post_attention_layernorm", None)
FAMILIES = {
    "gemma3": Family("gemma3", *_GEMMA), "gemma3_text": Family("gemma3", *_GEMMA), "gemma2": Family("gemma2", *_GEMMA),
    "llama": Family("llama", *_LLAMA), "mistral": Family("mistral", *_LLAMA),
    "qwen2": Family("qwen2", *_LLAMA), "qwen3": Family("qwen3", *_LLAMA),
}  # fmt: skip


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

    def norm_weight(self, name: str) -> torch.Tensor:
        """The weight of a norm of the decoder, such as ``norm`` or ``layers.0.post_feedforward_layernorm``."""
        return self.decoder.get_submodule(name).weight.detach()

    def mlp_written(self, layer: int, mlp_output: torch.Tensor) -> torch.Tensor:
        """What the layer adds to the residual stream for an MLP output (..., H)."""
        if self.family.post_norm is None:
            return mlp_output
        return getattr(self.layers[layer], self.family.post_norm)(mlp_output)

    def encode(self, text: str) -> list[int]:
        """Token ids with the beginning-of-sequence token once (where the model has one)."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and unembedding of residual-stream states (..., H) → float32 logits (..., V)."""
        logits = (self.norm(hidden) @ self.unembedding.T).float()
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over dimensions and the text decoder's parameters: names the weights that a result belongs to."""
        tensors = dict(self.decoder.named_parameters())
        if self.unembedding.data_ptr() != self.decoder.get_input_embeddings().weight.data_ptr():
            tensors["lm_head.weight"] = self.unembedding
        return fingerprint(self, sorted(tensors.items()))

    def facts(self) -> dict[str, Any]:
        """The `model` part of the results."""
        return {
            "id": self.name, "revision": self.revision, "fingerprint": self.fingerprint, "family": self.family.name,
            "layers": self.n_layers, "hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size, "dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device),
        }  # fmt: skip


def fingerprint(model: Model, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over a model's dimensions and its tensors (sorted by the decoder's names) in the model's precision."""
    digest = hashlib.sha256(
        json.dumps([model.vocab_size, model.hidden_size, model.n_layers, str(model.dtype)]).encode()
    )
    for name, tensor in tensors:
        digest.update(name.encode())
        for rows in tensor.detach().split(2**14):  # a precision is changed, a device read, a part at a time
            digest.update(rows.to("cpu", model.dtype).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def choose_device(name: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; a device that is not there is a bad request."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    device = torch.device(name)
    there = {"cpu": True, "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(), "mps": has_mps}
    if not there[device.type]:
        raise RequestError(f"--device: {name} is not available here; use --device auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision of the forward pass and the reason for it."""
    native = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    if name != "auto":
        return getattr(torch, name), "asked for"
    if native:
        return torch.bfloat16, "this GPU computes bfloat16 natively"
    reason = {"cuda": "this GPU only emulates bfloat16", "mps": "the safe precision on MPS", "cpu": "exact on a CPU"}
    return torch.float32, reason[device.type]


def demo_folder() -> Path:
    """The folder of the small trained Gemma 3 that ships with the package."""
    return Path(str(resources.files("conceptvec") / "data" / "demo"))


def open_model(config: Config) -> tuple[str, dict[str, Any], Any, Family, Any]:
    """What precedes the weights: source, keyword arguments for it, its configuration, family and tokenizer.

    Raises:
        RequestError: no such model, no access to it, or a family that is not supported.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    source = str(demo_folder()) if config.model == "demo" else config.model
    if config.model != "demo" and source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise RequestError(f"--model: no folder at {source!r}; give demo, a Hugging Face id or a model folder")
    kwargs: dict[str, Any] = {"revision": config.revision} if config.revision else {}
    try:
        hf_config = transformers.AutoConfig.from_pretrained(source, **kwargs)
        family = FAMILIES.get(hf_config.model_type)
        if family is None:
            raise RequestError(
                f"--model: {config.model} is of the family {hf_config.model_type!r}; supported: {', '.join(FAMILIES)}"
            )
        return source, kwargs, hf_config, family, transformers.AutoTokenizer.from_pretrained(source, **kwargs)
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(_explain(config.model, error)) from error


def load_model(config: Config) -> Model:
    """Load `config.model` in its final precision on its device.

    Raises:
        RequestError: no such model, no access to it, or a family that is not supported.
    """
    import transformers

    device = choose_device(config.device)
    dtype, reason = choose_dtype(config.dtype, device)
    logger.info("%s in %s on %s: %s", config.model, dtype, device, reason)
    source, kwargs, hf_config, family, tokenizer = open_model(config)
    # 4.50-4.55 know only torch_dtype, later versions warn about it.
    old = tuple(int(x) for x in transformers.__version__.split(".")[:2]) < (4, 56)
    try:
        hf = transformers.AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, attn_implementation="eager",
            **{"torch_dtype" if old else "dtype": dtype}, **kwargs,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise RequestError(_explain(config.model, error)) from error
    hf: Any = hf.to(device)  # type: ignore[arg-type]
    hf = hf.eval().requires_grad_(False)
    return Model(hf, tokenizer, config.model, getattr(hf_config, "_commit_hash", None), family, device, dtype)


def _explain(model: str, error: Exception) -> str:
    text = str(error)
    if any(mark in text for mark in ("401", "403", "gated", "restricted")):
        return (
            f"--model: access to {model} was refused. Accept the licence at https://huggingface.co/{model}, then set "
            "HF_TOKEN or run `hf auth login`; --model demo needs neither."
        )
    return f"--model: {model} could not be loaded ({text.splitlines()[0][:200]}); expected demo, an id or a folder"


def check_finite(x: torch.Tensor, layer: int) -> None:
    """Raise a `RunError` that names the layer where a forward pass left the numbers."""
    if not torch.isfinite(x).all():
        raise RunError(
            f"NaN or infinity in the forward pass after layer {layer}: likely float16 arithmetic or broken weights. "
            "Run again with --dtype float32; if it stays, check the model's files."
        )
