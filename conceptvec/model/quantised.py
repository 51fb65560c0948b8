"""GGUF files: quantised weights, dequantised by transformers' own loader, and all around them.

Configuration and tokenizer come from the same file. The weights are dequantised together, so they
need the memory of the whole model in float32 once.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from conceptvec.errors import RequestError
from conceptvec.model.folder import FAMILIES, ITEMSIZE, Checkpoint
from conceptvec.model.tensors import Stored, StoredTensors

logger = logging.getLogger(__name__)

DECODER = "model."  # how the loader's names of the decoder's tensors begin


def checked_gguf(name: str, file: Path) -> Checkpoint:
    """The file as a checkpoint.

    Raises:
        RequestError: it cannot be read, or holds a model of a family that is not supported.
    """
    settings = gguf_settings(file)
    document = settings.to_dict()
    if document["model_type"] not in FAMILIES:
        raise RequestError(
            f"--model: {name} holds a model of the type {document['model_type']!r}, expected one "
            f"of: {', '.join(FAMILIES)}"
        )
    document["dtype"] = "float32"  # what it is dequantised to
    elements = sum(int(tensor.n_elements) for tensor in _reader(file).tensors)
    weight_bytes = elements * ITEMSIZE["float32"]
    return Checkpoint(name, "folder", file, None, document, weight_bytes)


@lru_cache(maxsize=1)  # a large vocabulary takes a while to read
def gguf_settings(file: Path) -> Any:
    """Transformers' configuration of the model in the file.

    Raises:
        RequestError: it cannot be read.
    """
    from transformers import AutoConfig

    _reader(file)
    logger.info("reading %s: a large vocabulary takes a minute or two", file)
    try:
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:  # they break in as many ways as there are files
        raise _unreadable(file, error) from error


def gguf_tokenizer(file: Path) -> Any:
    """The tokenizer in the file."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )


def quantisation(file: Path) -> str:
    """What most of the weights are stored as, such as Q4_K_M."""
    from gguf import LlamaFileType

    field = _reader(file).get_field("general.file_type")
    return LlamaFileType(field.contents()).name.removeprefix("MOSTLY_") if field else "GGUF"


@lru_cache(maxsize=1)
def _reader(file: Path) -> Any:
    """The gguf library's reader.

    Raises:
        RequestError: it is not installed, or the file is none of its.
    """
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

    def _headers(self, folder: Path) -> dict[str, Stored]:
        """Dequantise all; the names are those of the decoder."""
        from transformers import AutoModelForCausalLM
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        logger.info("%s: dequantised from %s", folder, quantisation(folder))
        with torch.device("meta"):  # for the names alone
            skeleton = AutoModelForCausalLM.from_config(self.config)
        loaded = load_gguf_checkpoint(str(folder), return_tensors=True, model_to_load=skeleton)
        self._tensors: dict[str, torch.Tensor] = {
            name.removeprefix(DECODER): tensor for name, tensor in loaded["tensors"].items()
        }
        return {
            name: Stored(folder, name, "F32", list(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    def converted(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A copy of one tensor in a precision."""
        return self._tensors[name].to(dtype, copy=True)
