"""A model folder: whether it can be used, found out before anything is loaded.

Only ``config.json``, the tokenizer's files and safetensors are ever read: no pickle, no code from
a repository.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptvec.errors import RequestError, first_line

logger = logging.getLogger(__name__)

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"tokenizer.model"})
ADAPTER = "adapter_config.json"
UNMERGED = re.compile(r"\blora_|\bbase_layer\b|\bbase_model\b")  # in the names of tensors
QUANTISED = {"quantize_config.json", "quant_config.json", "hf_quant_config.json"}  # files
# What config.json says of it: transformers, MLX, compressed tensors.
QUANTISATIONS = ("quantization_config", "quantization", "compression_config")
CAUSAL = ("ForCausalLM", "ForConditionalGeneration")  # how such classes' names end
EMBEDDER = "modules.json"
FOREIGN = {  # how a file's name ends → what it tells
    EMBEDDER: "is a model of sentence embeddings (modules.json); give the language model that it "
    "was made from",
    ".gguf": "holds GGUF files; download one of them and give its path as --model",
    "params.json": "holds the original release's files (params.json); give the transformers form",
    "model_index.json": "is a pipeline of several models (model_index.json); give the folder of "
    "its language model",
}
GGUF = ".gguf"
PICKLES = (".bin", ".pt", ".pth")
ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Family:
    """How a family writes its MLP output into the residual stream.

    Attributes:
        name: the family's.
        norm_offset: RMSNorm multiplies by this and the weight together.
        mlp_norm: the norm whose input is the residual stream before the MLP.
        post_norm: the norm applied to the MLP output, if any.
    """

    name: str
    norm_offset: float
    mlp_norm: str
    post_norm: str | None


_GEMMA = (1.0, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_LLAMA = (0.0, "post_attention_layernorm", None)
FAMILIES = {
    "gemma3": Family("gemma3", *_GEMMA),
    "gemma3_text": Family("gemma3", *_GEMMA),
    "gemma2": Family("gemma2", *_GEMMA),
    "llama": Family("llama", *_LLAMA),
    "mistral": Family("mistral", *_LLAMA),
    "qwen2": Family("qwen2", *_LLAMA),
    "qwen3": Family("qwen3", *_LLAMA),
}


@dataclass(frozen=True)
class Checkpoint:
    """The files of one model.

    Attributes:
        name: as the user wrote it.
        source: package, folder, cache or hub.
        folder: where the files are; None: not on this machine yet.
        revision: the resolved commit of the Hub.
        config: config.json.
        weight_bytes: of all weight files.
        download: files still to be fetched, and their bytes.
        gated: whether the Hub asks for a licence.
    """

    name: str
    source: str
    folder: Path | None
    revision: str | None
    config: dict[str, Any]
    weight_bytes: int
    download: tuple[tuple[str, int], ...] = ()
    gated: bool = False

    @property
    def family(self) -> Family:
        """The family, by the model type in config.json."""
        return FAMILIES[self.config["model_type"]]

    @property
    def parameters(self) -> int:
        """Parameters, from the bytes of the weights and the precision they are stored in."""
        places = (self.config, self.config.get("text_config", {}))
        named = [place.get(key) for place in places for key in ("dtype", "torch_dtype")]
        stored = next((str(name) for name in named if name), "float32")
        return self.weight_bytes // ITEMSIZE.get(stored, 4)


def checked_folder(name: str, source: str, folder: Path, revision: str | None) -> Checkpoint:
    """Check a folder: configuration, tokenizer, and every safetensors file down to its header.

    Raises:
        RequestError: it cannot be used.
    """
    files = {path.name for path in folder.iterdir()}
    refuse_other_kinds(name, files)
    document = read_config(name, folder / "config.json")
    _check_tokenizer(folder, files)
    refuse_pickle(name, files)
    shards = weight_files(folder)
    if missing := [shard.name for shard in shards if shard.name not in files]:
        raise RequestError(
            f"--model: {folder} lacks {missing[0]}, one of {len(shards)} weight files; fetch it "
            "again"
        )
    _check_headers(shards)
    weight_bytes = sum(shard.stat().st_size for shard in shards)
    return Checkpoint(name, source, folder, revision, document, weight_bytes)


def refuse_other_kinds(name: str, files: Iterable[str]) -> None:
    """Refuse what is known not to be the whole weights of a language model, by its files' names.

    Raises:
        RequestError: it is an adapter alone, quantised, or in a form of another program.
    """
    names = set(files)
    if ADAPTER in names and not names & {WHOLE, INDEX}:
        raise _unmerged(name, "it is an adapter, not a model")
    if QUANTISED & names:
        raise _quantised(name)
    for ending, said in FOREIGN.items():
        is_whole = "config.json" in names and ending != EMBEDDER
        if not is_whole and any(file.endswith(ending) for file in names):
            raise RequestError(f"--model: {name} {said}")


def tell_of_adapter(folder: Path) -> None:
    """Say that an adapter beside the weights is left alone: they may be merged already."""
    if (folder / ADAPTER).exists():
        said = "%s also holds an adapter, %s: it is not applied, the folder's own weights are"
        logger.warning(said, folder, ADAPTER)


def _unmerged(name: str, reason: str) -> RequestError:
    return RequestError(
        f"--model: {name}: {reason}; merge it first: "
        f"peft.AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload()"
        '.save_pretrained("merged"), save the tokenizer there too, and give --model merged'
    )


def _quantised(name: str) -> RequestError:
    return RequestError(
        f"--model: {name} is quantised; its value vectors are not the model's. Give the "
        "original weights."
    )


def _check_tokenizer(folder: Path, files: set[str]) -> None:
    if not any(needed <= files for needed in TOKENIZERS):
        raise RequestError(
            f"--model: {folder} has no tokenizer.json, no tokenizer.model and no vocab.json with "
            "merges.txt; add the tokenizer's files"
        )
    is_alone = not any(needed <= files for needed in TOKENIZERS[:-1])
    if is_alone and importlib.util.find_spec("sentencepiece") is None:
        raise RequestError(
            f"--model: {folder} has its tokenizer as tokenizer.model alone, and sentencepiece, "
            "which reads that, is not installed: pip install sentencepiece protobuf"
        )


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder without config.json.

    Raises:
        RequestError: the folder has several.
    """
    if path.suffix == GGUF and path.is_file():
        return path
    is_checkpoint = (path / "config.json").exists()
    files = [] if is_checkpoint or not path.is_dir() else sorted(path.glob(f"*{GGUF}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise RequestError(f"--model: {path} has {len(files)} GGUF files ({names}); name one")
    return files[0] if files else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: the whole one, or those that the index names.

    An index beside a whole file is a leftover, and is not read.

    Raises:
        RequestError: the index cannot be used.
    """
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    index = folder / INDEX
    weight_map = _read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(_is_file_name(name) for name in names):
        raise RequestError(f"--model: {index} has no usable weight_map; fetch it again")
    return [folder / name for name in sorted(set(names))]


def _is_file_name(name: Any) -> bool:
    """Whether an entry of the index names a file in the folder itself."""
    return isinstance(name, str) and name == Path(name).name


def _check_headers(shards: Iterable[Path]) -> None:
    from safetensors import SafetensorError, safe_open

    for shard in shards:
        try:
            with safe_open(shard, framework="np") as file:
                keys = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise RequestError(
                f"--model: {shard} is damaged ({first_line(error)}); fetch the file again"
            ) from None
        if unmerged := next((key for key in keys if UNMERGED.search(key)), None):
            raise _unmerged(str(shard.parent), f"{shard.name} holds {unmerged}")


def refuse_pickle(name: str, files: Iterable[str]) -> None:
    """Refuse a model whose weights are no safetensors.

    Raises:
        RequestError: there are none, or there are pickle files in their place.
    """
    names = set(files)
    if names & {WHOLE, INDEX}:
        return
    if any(file.endswith(PICKLES) for file in names):
        raise RequestError(
            f"--model: {name} holds its weights as pickle files, which can run code when they are "
            "opened and are never read. Convert them where you trust them: "
            "model.save_pretrained(folder, safe_serialization=True)."
        )
    raise RequestError(
        f"--model: {name} has no model.safetensors; expected the folder of a transformers model"
    )


def is_wanted(file: str, patterns: Iterable[str]) -> bool:
    """Whether a file of a repository is one of those that are read."""
    return "/" not in file and any(fnmatch.fnmatch(file, pattern) for pattern in patterns)


def read_config(name: str, path: Path) -> dict[str, Any]:
    """config.json, of a family that is supported here.

    Raises:
        RequestError: it is not.
    """
    if not path.is_file():
        raise RequestError(
            f"--model: {path.parent} has no config.json; expected the folder of a transformers "
            "model"
        )
    document = _read_json(path)
    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise RequestError(
            f"--model: {name} is of the family {kind!r}; supported: {', '.join(FAMILIES)}"
        )
    if any(document.get(key) for key in QUANTISATIONS):
        raise _quantised(name)
    refuse_not_causal(name, document)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        import transformers

        raise RequestError(
            f"--model: transformers {transformers.__version__} does not know {kind!r}; "
            "pip install -U transformers"
        )
    return document


def refuse_not_causal(name: str, document: dict[str, Any]) -> None:
    """Refuse a model that does not predict the next token from those before it.

    Args:
        name: the model as the user wrote it.
        document: its configuration.

    Raises:
        RequestError: it looks ahead, or is made for something else.
    """
    parts = [document, document.get("text_config")]
    for part in parts:
        if not isinstance(part, dict):
            continue
        looks_ahead = [key for key in part if "bidirectional" in key and part[key]]
        if looks_ahead or part.get("is_causal") is False:
            said = looks_ahead[0] if looks_ahead else "is_causal"
            raise RequestError(
                f"--model: {name} is no causal language model: its configuration says {said}: "
                f"{part[said]!r}. Expected one that predicts the next token"
            )
    named = document.get("architectures")
    kinds = [str(kind) for kind in named] if isinstance(named, list) else []
    if kinds and not any(kind.endswith(CAUSAL) for kind in kinds):
        raise RequestError(
            f"--model: {name} is a {', '.join(kinds)[:200]}, expected a model that predicts the "
            f"next token (…{CAUSAL[0]}); give the language model that it was made from"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"--model: {path} is not readable JSON ({first_line(error)}); fetch the file again"
        ) from None
    if not isinstance(document, dict):
        raise RequestError(
            f"--model: {path} holds a {type(document).__name__}, expected a JSON object; fetch it "
            "again"
        )
    return document
