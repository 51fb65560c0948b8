"""GGUF files: quantised weights, dequantised by transformers' own loader, and all around them.

Configuration and tokenizer come from the same file. The weights are dequantised together, so they
need the memory of the whole model in float32 once.

A file passes the checks of a folder: a causal language model, of a family that is supported, whole,
and nothing in it that the loader leaves out. The loader skips some of what the header says; what
changes a forward pass is put back here, or refused.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from conceptvec.errors import RequestError, first_line
from conceptvec.model.folder import FAMILIES, ITEMSIZE, Checkpoint, refuse_not_causal
from conceptvec.model.tensors import Stored, StoredTensors, misfit, stamp

logger = logging.getLogger(__name__)

DECODER = "model."  # how the loader's names of the decoder's tensors begin
MODEL = "model"  # the kind of a file that is one
HEADS = ("cls", "classifier")  # how the names of what a classifier adds begin
ROTARY = "rope_freqs.weight"  # rotary frequencies as a tensor, which the loader leaves out
# Layers of the models, by architecture, whose attention is scaled by the hidden size over the
# heads. No header says so: llama.cpp, too, knows Gemma 27B by its layers.
SCALED_BY_HEADS = {"gemma2": 46, "gemma3": 62}


def checked_gguf(name: str, file: Path) -> Checkpoint:
    """The file as a checkpoint.

    Raises:
        RequestError: it cannot be read, or holds something else than a causal language model of a
            family that is supported.
    """
    _refuse_other_kinds(name, file)
    document = gguf_settings(file).to_dict()
    refuse_not_causal(name, document | _said_of_attention(file))
    document["dtype"] = "float32"  # what it is dequantised to
    elements = sum(int(tensor.n_elements) for tensor in _open(file).tensors)
    weight_bytes = elements * ITEMSIZE["float32"]
    return Checkpoint(name, "folder", file, None, document, weight_bytes)


def _refuse_other_kinds(name: str, file: Path) -> None:
    """Refuse what is not a whole language model of a supported family, by the file's header.

    Raises:
        RequestError: it is not.
    """
    kind = _field(file, "general.type") or MODEL
    if kind != MODEL:
        raise RequestError(f"--model: {name} is a GGUF file of the kind {kind!r}, expected a model")
    architecture = _field(file, "general.architecture")
    if architecture not in FAMILIES:
        raise RequestError(
            f"--model: {name} is of the architecture {architecture!r}, expected one of: "
            f"{', '.join(FAMILIES)}"
        )
    if (count := _field(file, "split.count") or 1) > 1:
        raise RequestError(
            f"--model: {name} is one of {count} parts of a model; join them first: "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    if _field(file, f"{architecture}.pooling_type"):
        raise RequestError(
            f"--model: {name} is a model of embeddings (pooling_type); give the language model "
            "that it was made from"
        )
    names = [tensor.name for tensor in _open(file).tensors]
    if heads := [tensor for tensor in names if tensor.partition(".")[0] in HEADS]:
        raise RequestError(
            f"--model: {name} is a classifier ({heads[0]}), expected a model that predicts the "
            "next token; give the language model that it was made from"
        )
    scaling = _field(file, f"{architecture}.rope.scaling.type") or "none"
    if ROTARY in names or scaling not in ("none", "linear"):
        said = ROTARY if ROTARY in names else f"rope.scaling.type {scaling}"
        raise RequestError(
            f"--model: {name} has rotary frequencies of its own ({said}), which are not read from "
            "GGUF: its forward passes would be another model's. Give the model's safetensors"
        )


def _said_of_attention(file: Path) -> dict[str, bool]:
    """Whether the header says that the model looks ahead, in the words of a config.json."""
    causal = _field(file, f"{_field(file, 'general.architecture')}.attention.causal")
    return {} if causal is None else {"is_causal": bool(causal)}


def gguf_settings(file: Path) -> Any:
    """Transformers' configuration of the model in the file.

    Raises:
        RequestError: it cannot be read.
    """
    return copy.deepcopy(_settings(file, stamp(file)))


@lru_cache(maxsize=1)  # a large vocabulary takes a while to read
def _settings(file: Path, _: tuple[int, ...]) -> Any:
    """The configuration of a file that has not changed since, with what the loader leaves out."""
    from transformers import AutoConfig

    _open(file)
    logger.info("reading %s: a large vocabulary takes a minute or two", file)
    try:
        settings = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
    except Exception as error:  # they break in as many ways as there are files
        raise _unreadable(file, error) from error
    architecture = _field(file, "general.architecture")
    factor = _field(file, f"{architecture}.rope.scaling.factor")
    if _field(file, f"{architecture}.rope.scaling.type") == "linear" and factor:
        _stretch(settings, float(factor))
    if settings.num_hidden_layers == SCALED_BY_HEADS.get(architecture):
        settings.query_pre_attn_scalar = settings.hidden_size // settings.num_attention_heads
    return settings


def _stretch(settings: Any, factor: float) -> None:
    """Divide the rotary positions by a factor, in Gemma 3 of the full layers alone.

    The major versions of transformers name it differently.
    """
    scaling = {"rope_type": "linear", "factor": factor}
    parameters: dict[str, Any] = getattr(settings, "rope_parameters", None) or {}
    if parameters:
        parameters.get("full_attention", parameters).update(scaling)
    else:
        settings.rope_scaling = scaling


def gguf_tokenizer(file: Path) -> Any:
    """The tokenizer in the file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )


def quantisation(file: Path) -> str:
    """What most of the weights are stored as, such as Q4_K_M."""
    from gguf import LlamaFileType

    try:
        return LlamaFileType(_field(file, "general.file_type")).name.removeprefix("MOSTLY_")
    except ValueError:  # the header does not say, or says what a newer library knows
        return "GGUF"


def _field(file: Path, name: str) -> Any:
    """An entry of the header; None where it has none of this name."""
    field = _open(file).get_field(name)
    return None if field is None else field.contents()


def _open(file: Path) -> Any:
    """The gguf library's reader of the file as it is now.

    Raises:
        RequestError: it is not installed, or the file is none of its.
    """
    return _reader(file, stamp(file))


@lru_cache(maxsize=1)
def _reader(file: Path, _: tuple[int, ...]) -> Any:
    """The reader of a file that has not changed since."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise RequestError(
            f"--model: {file} is a GGUF file, which needs the package gguf; "
            "pip install 'conceptvec[gguf]'"
        ) from None
    try:
        return GGUFReader(file)
    except Exception as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> RequestError:
    text = " ".join(str(error).split())[:300]
    return RequestError(
        f"--model: {file} could not be read as GGUF ({type(error).__name__}: {text}); "
        "fetch it again, or give the model's safetensors"
    )


class GgufTensors(StoredTensors):
    """The text decoder's tensors as they come out of a GGUF file, in memory."""

    def _headers(self, folder: Path, expected: Collection[str]) -> dict[str, Stored]:
        """Dequantise all; the names are those of the decoder.

        Raises:
            RequestError: a tensor cannot be dequantised, or is none of the network's.
        """
        from transformers import AutoModelForCausalLM
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        logger.info("%s: dequantised from %s", folder, quantisation(folder))
        with torch.device("meta"):  # for the names alone
            skeleton = AutoModelForCausalLM.from_config(self.config)
        try:
            loaded = load_gguf_checkpoint(str(folder), return_tensors=True, model_to_load=skeleton)
        except MemoryError:
            raise
        except Exception as error:  # such as a quantisation that the library does not know
            raise RequestError(
                f"--model: {folder} could not be dequantised ({type(error).__name__}: "
                f"{first_line(error)}); pip install -U gguf transformers, or give the model's "
                "safetensors"
            ) from error
        self._tensors: dict[str, torch.Tensor] = {
            name.removeprefix(DECODER): tensor for name, tensor in loaded["tensors"].items()
        }
        # The loader says nothing of tensors that it leaves out, such as a bias.
        stored = [tensor.name for tensor in _open(folder).tensors]
        if len(stored) > len(self._tensors):
            biases = [name for name in stored if name.endswith(".bias")]
            left_out = f"{len(stored) - len(self._tensors)} tensors are no weights of this network"
            raise RequestError(misfit(folder, [], [", ".join([left_out, *biases[:1]])]))
        return {
            name: Stored(folder, name, "F32", list(tensor.shape))
            for name, tensor in self._tensors.items()
            if name in expected
        }

    def converted(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A copy of one tensor in a precision."""
        return self._tensors[name].to(dtype, copy=True)
