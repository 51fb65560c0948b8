"""A model folder: whether it can be used, found out before anything is loaded.

Only ``config.json``, the tokenizer's files and safetensors are ever read: no pickle, no code from
a repository.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptvec.errors import RequestError, first_line

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = {"tokenizer.json", "tokenizer.model"}
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
    document = read_config(name, folder / "config.json")
    files = {path.name for path in folder.iterdir()}
    if not files & TOKENIZERS:
        raise RequestError(
            f"--model: {folder} has no tokenizer.json or tokenizer.model; add the tokenizer's files"
        )
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
                file.keys()  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RequestError(
                f"--model: {shard} is damaged ({first_line(error)}); fetch the file again"
            ) from None


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
    if document.get("quantization_config"):
        raise RequestError(
            f"--model: {name} is quantised; its value vectors are not the model's. Give the "
            "original weights."
        )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        import transformers

        raise RequestError(
            f"--model: transformers {transformers.__version__} does not know {kind!r}; "
            "pip install -U transformers"
        )
    return document


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
