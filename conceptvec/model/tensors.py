"""A checkpoint's tensors, one at a time from its safetensors files, under their names in the decoder.

A tensor is mapped, copied and let go again, so a checkpoint larger than memory can be read. Whatever a checkpoint
calls its decoder (``model.``, ``language_model.model.`` …), here a tensor is ``layers.0.mlp.down_proj.weight``,
``embed_tokens.weight`` or ``norm.weight``, and the unembedding is ``lm_head.weight`` where it is a matrix of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from conceptvec.errors import RequestError
from conceptvec.model.checkpoint import INDEX, Family

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
FLOATS = ("F64", "F32", "BF16", "F16")  # what a weight may be stored as
_FIRST = re.compile(r"(?P<prefix>(?!.*(vision|audio)).*)layers\.0\.mlp\.down_proj\.weight")
Place = tuple[Path, str]  # a file, and a tensor's name in it


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
    """

    def __init__(self, folder: Path, config: Any, family: Family, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        self.config = config.get_text_config()
        self._places = dict(_decoder_places(folder))
        both = (config, self.config)
        self.tied = any(getattr(part, "tie_word_embeddings", True) for part in both)
        if self.tied:
            self._places.pop(HEAD, None)
        self._check(self._expected(family))

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._places)

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor on the CPU.

        Bfloat16 stays as stored where the precision is float32, which loses nothing.
        """
        from safetensors import safe_open

        file, key = self._places[name]
        with safe_open(file, "pt") as opened:  # opened anew each time: closing unmaps what was read
            tensor = opened.get_tensor(key)
            exact = tensor.dtype is torch.bfloat16 and self.dtype is torch.float32
            return tensor.to(tensor.dtype if exact else self.dtype, copy=True)

    def _expected(self, family: Family) -> dict[str, list[int]]:
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
        lacks = [name for name in expected if name not in self._places]
        wrong = [] if lacks else list(self._misfits(expected))
        if lacks or wrong:
            raise RequestError(
                f"--model: {self.folder} does not hold the model that its config.json describes: "
                f"{len(lacks)} weights are missing, {len(wrong)} have another size or type "
                f"(first: {[*lacks, *wrong][0]}); fetch them again"
            )

    def _misfits(self, expected: dict[str, list[int]]) -> Iterator[str]:
        """The tensors of another size or type, as phrases."""
        from safetensors import safe_open

        for name, shape in expected.items():
            file, key = self._places[name]
            with safe_open(file, "pt") as opened:
                stored = opened.get_slice(key)
                kind, size = stored.get_dtype(), stored.get_shape()
            if size != shape or kind not in FLOATS:
                yield f"{name} is {kind} {size}, expected {shape}"


def _decoder_places(folder: Path) -> Iterator[tuple[str, Place]]:
    """(name in the decoder, place) of the text decoder's tensors and the unembedding."""
    files = _files(folder)
    prefix = next((m["prefix"] for m in map(_FIRST.fullmatch, files) if m), None)
    if prefix is None:
        raise RequestError(
            f"--model: {folder} has no {down_proj(0)}; expected a decoder's checkpoint"
        )
    for name, file in files.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), (file, name)
        elif name.endswith(HEAD):
            yield HEAD, (file, name)


def _files(folder: Path) -> dict[str, Path]:
    """Every tensor of a folder and the file that it is in."""
    from safetensors import SafetensorError, safe_open

    index = folder / INDEX
    try:
        if index.is_file():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in weight_map.items()}
        with safe_open(folder / "model.safetensors", "pt") as opened:
            return dict.fromkeys(opened.keys(), folder / "model.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RequestError(
            f"--model: {folder} has no readable safetensors files ({error})"
        ) from None
