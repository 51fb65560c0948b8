"""A checkpoint's tensors, one at a time from its safetensors files, by their names in the decoder.

A tensor is mapped, copied and let go again, so a checkpoint larger than memory can be read.
Whatever a checkpoint calls its decoder (``model.``, ``language_model.model.`` …), here a tensor is
``layers.0.mlp.down_proj.weight``, ``embed_tokens.weight`` or ``norm.weight``, and the unembedding
is ``lm_head.weight`` where it is a matrix of its own. The weights that are streamed and the network
that is loaded both come from here, and both are held against the network's own list of weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conceptvec.errors import RequestError, RunError, first_line
from conceptvec.model.folder import weight_files

DECODER = "model"  # its name in transformers' causal models of all families here
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
        dtype: the precision to read in.

    Raises:
        RequestError: the files do not hold what the configuration describes.

    Attributes:
        config: the configuration of the text decoder.
        tied: whether the unembedding is the embedding.
    """

    def __init__(self, folder: Path, config: Any, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        text = config.get_text_config()
        self.tied = any(getattr(part, "tie_word_embeddings", True) for part in (config, text))
        self.config = copy.deepcopy(text)
        self.config.tie_word_embeddings = self.tied  # a multimodal model may say it on one level
        expected = _network_shapes(folder, self.config)
        if self.tied:
            expected.pop(HEAD, None)
        stored = self._headers(folder, [*expected, HEAD])
        self._check(stored, expected)
        self._stored = {name: stored[name] for name in stored if name in expected}
        self._stamps = {one.file: stamp(one.file) for one in self._stored.values()}

    def _headers(self, folder: Path, expected: Collection[str]) -> dict[str, Stored]:
        """What the headers of the files say of each tensor, by its name in the decoder."""
        return _decoder_tensors(folder, expected)

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
        """A copy of one tensor on the CPU in a precision.

        Raises:
            RunError: the file is not the one whose header was read.
        """
        from safetensors import safe_open

        stored = self._stored[name]
        if stamp(stored.file) != self._stamps[stored.file]:
            raise RunError(
                f"{stored.file} was changed while it was read; leave the model's files alone and "
                "run again"
            )
        with safe_open(stored.file, "pt") as opened:  # anew each time: closing unmaps what was read
            return opened.get_tensor(stored.key).to(dtype, copy=True)

    def _check(self, stored: dict[str, Stored], expected: dict[str, list[int]]) -> None:
        """Refuse files that do not hold what the configuration describes, or hold more of it."""
        lacks = [name for name in expected if name not in stored]
        wrong = [
            f"{name} is {one.kind} {one.shape}, expected {expected[name]}"
            for name, one in stored.items()
            if name in expected and (one.kind not in FLOATS or one.shape != expected[name])
        ]
        # A scale, an adapter or a bias that the network does not know changes what a weight means.
        parts = {name.rpartition(".")[0] for name in expected}
        for name in stored.keys() - expected.keys() - {HEAD}:
            if any(name.startswith(f"{part}.") for part in parts):
                wrong.append(f"{name} is no weight of this network")
        if lacks or wrong:
            raise RequestError(misfit(self.folder, lacks, sorted(wrong)))


def _network_shapes(folder: Path, config: Any) -> dict[str, list[int]]:
    """The names and shapes of all weights of the network that a configuration describes."""
    import transformers

    kind: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # what the file asks for need not be installed
    try:
        with torch.device("meta"):  # without memory
            network = kind(config)
    except Exception as error:  # as many as there are faults of a configuration
        raise RequestError(
            f"--model: {folder} could not be loaded ({type(error).__name__}: {first_line(error)}): "
            "its config.json describes no network; fetch it again"
        ) from error
    return {
        name.removeprefix(f"{DECODER}."): list(weight.shape)
        for name, weight in network.named_parameters()
    }


def stamp(file: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; nothing where it is gone."""
    try:
        about = file.stat()
    except OSError:
        return ()
    return about.st_ino, about.st_size, about.st_mtime_ns


def misfit(folder: Path, lacks: list[str], wrong: list[str]) -> str:
    """What to say of files that are not those that the configuration describes."""
    return (
        f"--model: {folder} does not hold the model that its config.json describes: {len(lacks)} "
        f"weights are missing, {len(wrong)} have another size or type (first: "
        f"{[*lacks, *wrong][0][:200]}). Nothing is ever filled in at random; fetch them again"
    )


def _decoder_tensors(folder: Path, expected: Collection[str]) -> dict[str, Stored]:
    """The text decoder's tensors and the unembedding, by their names in the decoder.

    Of several decoders in one checkpoint the one is read that has most of what is expected.
    """
    stored = _stored_tensors(weight_files(folder))
    prefixes = [match["prefix"] for match in map(_FIRST.fullmatch, stored) if match]
    if not prefixes:
        raise RequestError(
            f"--model: {folder} has no {down_proj(0)}; expected a decoder's checkpoint"
        )

    def belonging(prefix: str) -> int:
        return sum(prefix + name in stored for name in expected)

    # Of equals the one with the shortest name: the others lie inside something else.
    prefix = max(prefixes, key=lambda prefix: (belonging(prefix), -len(prefix)))
    tensors = {
        key.removeprefix(prefix): tensor
        for key, tensor in stored.items()
        if key.startswith(prefix) and not key.endswith(BUFFERS)
    }
    # The head stands beside the decoder, or outside of what is around both.
    for outside in ("", prefix.removesuffix(f"{DECODER}."), prefix):
        if outside + HEAD in stored:
            tensors[HEAD] = stored[outside + HEAD]
            break
    return tensors


def _stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of the files, by its name there."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Stored] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    header = opened.get_slice(key)
                    if key in tensors:
                        raise RequestError(
                            f"--model: {key} stands in two files, {tensors[key].file.name} and "
                            f"{file.name}; remove the one that is left over, or fetch both again"
                        )
                    tensors[key] = Stored(file, key, header.get_dtype(), header.get_shape())
        except (OSError, SafetensorError) as error:
            raise RequestError(
                f"--model: {file} is no readable safetensors file ({first_line(error)}); fetch it "
                "again"
            ) from None
    return tensors
