"""A checkpoint read tensor by tensor from its safetensors files: what Stage 1 needs, in less memory than the model.

The projection takes no forward pass, only ``down_proj`` of one layer at a time, the norms and the unembedding. Each
tensor is mapped, copied and let go again, so a checkpoint larger than memory can be scanned. Memory: the unembedding
in the precision of the file (bfloat16 becomes float32 chunk by chunk, which loses nothing) and one layer's matrix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from conceptvec.config import Config
from conceptvec.errors import RequestError
from conceptvec.model.checkpoint import fetch, find
from conceptvec.model.network import (
    LOCAL,
    Model,
    choose_device,
    choose_dtype,
    fingerprint,
    unloadable,
)

_FIRST = re.compile(r"(?P<prefix>(?!.*(vision|audio)).*)layers\.0\.mlp\.down_proj\.weight")


@dataclass
class Weights(Model):
    """A `Model` without a network (`hf` is its configuration alone): everything but the forward pass.

    Attributes:
        folder: where the safetensors files are.
        files: a tensor's name in the decoder (``layers.0.mlp.down_proj.weight``) → (file, its name there).
    """

    folder: Path = Path()

    def __post_init__(self) -> None:
        """Map the tensors' names and read the dimensions."""
        self.files = dict(_index(self.folder))
        tied = any(
            getattr(c, "tie_word_embeddings", True) for c in (self.hf, self.hf.get_text_config())
        )
        if tied:
            self.files.pop("lm_head.weight", None)
        self._check(self.hf.get_text_config(), tied)
        self.n_layers = self.hf.get_text_config().num_hidden_layers
        self._readout = "embed_tokens.weight" if tied else "lm_head.weight"
        self.unembedding = self._read(self._readout).to(self.device)
        self.vocab_size, self.hidden_size = self.unembedding.shape
        self.intermediate_size = self.value_vectors(0).shape[0]
        self.bos_id = self.tokenizer.bos_token_id

    def _check(self, config: Any, tied: bool) -> None:
        """Refuse files that do not hold what the configuration describes."""
        from safetensors import safe_open

        hidden, rows = [config.hidden_size], [config.vocab_size, config.hidden_size]
        expected = {"embed_tokens.weight": rows, "norm.weight": hidden} | (
            {} if tied else {"lm_head.weight": rows}
        )
        for n in range(config.num_hidden_layers):
            expected[f"layers.{n}.mlp.down_proj.weight"] = [
                config.hidden_size,
                config.intermediate_size,
            ]
            if self.family.post_norm:
                expected[f"layers.{n}.{self.family.post_norm}.weight"] = hidden
        lacks = [name for name in expected if name not in self.files]
        wrong = []
        for name, shape in expected.items() if not lacks else ():
            file, key = self.files[name]
            with safe_open(file, "pt") as opened:
                found = opened.get_slice(key)
                if found.get_shape() != shape or found.get_dtype() not in (
                    "F64",
                    "F32",
                    "BF16",
                    "F16",
                ):
                    wrong.append(
                        f"{name} is {found.get_dtype()} {found.get_shape()}, expected {shape}"
                    )
        if lacks or wrong:
            raise RequestError(
                f"--model: {self.folder} does not hold the model that its config.json describes: {len(lacks)} weights "
                f"are missing, {len(wrong)} have another size or type (first: {[*lacks, *wrong][0]}); fetch them again"
            )

    def _read(self, name: str) -> torch.Tensor:
        """A copy of one tensor on the CPU: bfloat16 as stored where the precision is float32, else as asked."""
        from safetensors import safe_open

        file, key = self.files[name]
        with safe_open(file, "pt") as opened:  # opened anew each time: closing unmaps what was read
            tensor = opened.get_tensor(key)
            exact = tensor.dtype is torch.bfloat16 and self.dtype is torch.float32
            return tensor.to(tensor.dtype if exact else self.dtype, copy=True)

    def value_vectors(self, layer: int) -> torch.Tensor:
        """The columns of ``down_proj`` as rows: (intermediate_size, hidden_size), read from disk."""
        return self._read(f"layers.{layer}.mlp.down_proj.weight").to(self.device).T

    def norm_weight(self, name: str) -> torch.Tensor:
        """The weight of a norm of the decoder, such as ``norm`` or ``layers.0.post_feedforward_layernorm``."""
        return self._read(f"{name}.weight").to(self.device)

    @cached_property
    def fingerprint(self) -> str:
        """The same as that of the loaded model, from one tensor at a time."""
        held = {self._readout: self.unembedding}  # never in memory twice
        tensors = ((n, held[n] if n in held else self._read(n)) for n in sorted(self.files))
        return fingerprint(self, self.hf.get_text_config(), tensors)


def load_weights(config: Config) -> Weights:
    """Open `config.model` (a folder, or a Hub id: from the cache, downloaded where it is missing) for streaming.

    Raises:
        RequestError: no such model, no access, no safetensors files, or a family that is not supported.
    """
    import transformers

    checkpoint, device = find(config), choose_device(config.device)
    dtype, why = choose_dtype(config.dtype, device)
    folder = fetch(checkpoint)
    try:
        hf_config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
    except (
        Exception
    ) as error:  # configurations and tokenizers break in as many ways as there are files
        raise unloadable(folder, error) from error
    revision, family = checkpoint.revision, checkpoint.family
    return Weights(hf_config, tokenizer, config.model, revision, family, device, dtype, why, folder)


def _index(folder: Path) -> Iterator[tuple[str, tuple[Path, str]]]:
    """(name in the decoder, (file, name in it)) of the text decoder's tensors and the unembedding."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            places = {
                k: folder / v
                for k, v in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
            }
        else:
            with safe_open(folder / "model.safetensors", "pt") as opened:
                places = dict.fromkeys(opened.keys(), folder / "model.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RequestError(
            f"--model: {folder} has no readable safetensors files ({error})"
        ) from None
    prefix = next((m["prefix"] for m in map(_FIRST.fullmatch, places) if m), None)
    if prefix is None:
        raise RequestError(
            f"--model: {folder} has no layers.0.mlp.down_proj.weight; expected a decoder's checkpoint"
        )
    for name, file in places.items():
        if name.startswith(prefix):
            yield name[len(prefix) :], (file, name)
        elif name.endswith("lm_head.weight"):
            yield "lm_head.weight", (file, name)
