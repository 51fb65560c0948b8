"""A checkpoint's tensors, one at a time from its safetensors files, by their names in the decoder.

A tensor is mapped, copied and let go again, so a checkpoint larger than memory can be read.
Whatever a checkpoint calls its decoder (``model.``, ``language_model.model.`` …), here a tensor is
``layers.0.mlp.down_proj.weight``, ``embed_tokens.weight`` or ``norm.weight``, and the unembedding
is ``lm_head.weight`` where it is a matrix of its own. The weights that are streamed and the network
that is loaded both come from here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conceptvec.errors import RequestError, first_line
from conceptvec.model.folder import Family, weight_files

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
FLOATS = ("F64", "F32", "BF16", "F16")  # what a weight may be stored as
BUFFERS = ("inv_freq",)  # ends of names that old checkpoints hold and no network reads
_FIRST = re.compile(r"(?P<prefix>(?!.*(vision|audio)).*)layers\.0\.mlp\.down_proj\.weight")


class Stored(NamedTuple):
    """A tensor of a file: where it is, and what its header says."""

    file: Path
    key: str
    kind: str
    shape: list[int]


def down_proj(layer: int) -> str:
    """The name of a layer's ``down_proj`` weight (hidden_size, intermediate_size)."""
    return f"layers.{layer}.mlp.down_proj.weight"


class StoredTensors:
    """The text decoder's tensors as they lie in a folder.

    Args:
        folder: of the checkpoint, checked by `checkpoint.find`.
        config: transformers' configuration of the whole model.
        family: of the model.
        dtype: the precision to read in.

    Raises:
        RequestError: the files do not hold what the configuration describes.

    Attributes:
        config: the configuration of the text decoder.
        tied: whether the unembedding is the embedding.
    """

    def __init__(self, folder: Path, config: Any, family: Family, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        text = config.get_text_config()
        self.tied = any(getattr(part, "tie_word_embeddings", True) for part in (config, text))
        self.config = copy.deepcopy(text)
        self.config.tie_word_embeddings = self.tied  # a multimodal model may say it on one level
        self._stored = self._headers(folder)
        if self.tied:
            self._stored.pop(HEAD, None)
        self._check(self._expected_shapes(family))

    def _headers(self, folder: Path) -> dict[str, Stored]:
        """What the headers of the files say of each tensor, by its name in the decoder."""
        return _decoder_tensors(folder)

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._stored)

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor on the CPU.

        Bfloat16 stays as stored where the precision is float32, which loses nothing.
        """
        exact = self._stored[name].kind == "BF16" and self.dtype is torch.float32
        return self.converted(name, torch.bfloat16 if exact else self.dtype)

    def converted(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A copy of one tensor on the CPU in a precision."""
        from safetensors import safe_open

        stored = self._stored[name]
        with safe_open(stored.file, "pt") as opened:  # anew each time: closing unmaps what was read
            return opened.get_tensor(stored.key).to(dtype, copy=True)

    def _expected_shapes(self, family: Family) -> dict[str, list[int]]:
        """The shapes of the tensors that Stage 1 reads."""
        config = self.config
        hidden = [config.hidden_size]
        rows = [config.vocab_size, config.hidden_size]
        shapes = {EMBEDDING: rows, "norm.weight": hidden}
        if not self.tied:
            shapes[HEAD] = rows
        for layer in range(config.num_hidden_layers):
            shapes[down_proj(layer)] = [config.hidden_size, config.intermediate_size]
            if family.post_norm:
                shapes[f"layers.{layer}.{family.post_norm}.weight"] = hidden
        return shapes

    def _check(self, expected: dict[str, list[int]]) -> None:
        """Refuse files that do not hold what the configuration describes."""
        lacks = [name for name in expected if name not in self._stored]
        wrong = [] if lacks else self._misfits(expected)
        if lacks or wrong:
            raise RequestError(misfit(self.folder, lacks, wrong))

    def _misfits(self, expected: dict[str, list[int]]) -> list[str]:
        """The tensors of another size or type, as phrases."""
        return [
            f"{name} is {stored.kind} {stored.shape}, expected {expected.get(name, 'numbers')}"
            for name, stored in self._stored.items()
            if stored.kind not in FLOATS or stored.shape != expected.get(name, stored.shape)
        ]


def misfit(folder: Path, lacks: list[str], wrong: list[str]) -> str:
    """What to say of files that are not those that the configuration describes."""
    return (
        f"--model: {folder} does not hold the model that its config.json describes: {len(lacks)} "
        f"weights are missing, {len(wrong)} have another size or type (first: "
        f"{[*lacks, *wrong][0][:200]}). Nothing is ever filled in at random; fetch them again"
    )


def _decoder_tensors(folder: Path) -> dict[str, Stored]:
    """The text decoder's tensors and the unembedding, by their names in the decoder."""
    stored = _stored_tensors(weight_files(folder))
    prefix = next((m["prefix"] for m in map(_FIRST.fullmatch, stored) if m), None)
    if prefix is None:
        raise RequestError(
            f"--model: {folder} has no {down_proj(0)}; expected a decoder's checkpoint"
        )
    tensors = {}
    for key, tensor in stored.items():
        if key.endswith(HEAD):
            tensors[HEAD] = tensor
        elif key.startswith(prefix) and not key.endswith(BUFFERS):
            tensors[key.removeprefix(prefix)] = tensor
    return tensors


def _stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of the files, by its name there."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    header = opened.get_slice(key)
                    tensors[key] = Stored(file, key, header.get_dtype(), header.get_shape())
        except (OSError, SafetensorError) as error:
            raise RequestError(
                f"--model: {file} is no readable safetensors file ({first_line(error)}); fetch it "
                "again"
            ) from None
    return tensors
