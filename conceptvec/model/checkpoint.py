"""A model's files: where they are, and whether they can be used, found out before anything is loaded.

Only ``config.json``, the tokenizer's files and safetensors are ever read: no pickle, no code from a repository. A model
of the Hub is fetched into the Hub's cache at one resolved commit; from then on it is a folder like any other.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError, first_line

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
READ = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "preprocessor_config.json",
    "processor_config.json", "*.jinja",
)  # fmt: skip
ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


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


@dataclass(frozen=True)
class Checkpoint:
    """The files of one model."""

    name: str  # as the user wrote it
    source: str  # package, folder, cache or hub
    folder: Path | None  # None: not on this machine yet
    revision: str | None  # the resolved commit of the Hub
    config: dict[str, Any]  # config.json
    weight_bytes: int
    download: tuple[tuple[str, int], ...] = ()  # files still to be fetched, and their bytes
    gated: bool = False

    @property
    def family(self) -> Family:
        """The family, by the model type in config.json."""
        return FAMILIES[self.config["model_type"]]

    @property
    def parameters(self) -> int:
        """Parameters, from the bytes of the weights and the precision they are stored in."""
        text = self.config.get("text_config", {})
        stored = [
            c.get(k) for c in (self.config, text) for k in ("dtype", "torch_dtype") if c.get(k)
        ]
        return self.weight_bytes // ITEMSIZE.get(str(stored[0]) if stored else "float32", 4)


def find(config: Config) -> Checkpoint:
    """Find and check the files of `config.model`; of a model on the Hub only its description is fetched.

    Raises:
        RequestError: there is no such model, no access to it, or its files cannot be used.
    """
    name = config.model
    if name == "demo":
        return _in_folder(
            name, "package", Path(str(resources.files("conceptvec") / "data" / "demo")), None
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(name, "folder", path, None)
    if (
        path.exists()
        or name.startswith((".", "/", "~"))
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    ):
        raise RequestError(
            f"--model: no folder at {name!r}; give demo, a Hugging Face id or a model folder"
        )
    return _on_hub(name, config.revision)


def fetch(checkpoint: Checkpoint) -> Path:
    """The folder of the model, after downloading what is still missing.

    Raises:
        RequestError: access was refused.
        RunError: the download failed; what has arrived is kept.
    """
    if checkpoint.folder is not None and not checkpoint.download:
        return checkpoint.folder
    from huggingface_hub import snapshot_download

    files = [file for file, _ in checkpoint.download]
    try:
        folder = snapshot_download(checkpoint.name, revision=checkpoint.revision, allow_patterns=[*READ, *files],
                                   ignore_patterns=["*/*"])  # fmt: skip
    except Exception as error:  # see `_on_hub`
        refused = _refused(checkpoint.name, error)
        if refused:
            raise refused from None
        raise RunError(
            f"the download of {checkpoint.name} failed ({first_line(error)}); what has arrived is kept. Check the "
            "network and the room on the disk, then run the same command again."
        ) from None
    return _in_folder(checkpoint.name, "hub", Path(folder), checkpoint.revision).folder or Path(
        folder
    )


def _in_folder(name: str, source: str, folder: Path, revision: str | None) -> Checkpoint:
    """Check a folder: configuration, tokenizer, and every safetensors file down to its header."""
    document = _config(name, folder / "config.json")
    here = {p.name for p in folder.iterdir()}
    if not here & {"tokenizer.json", "tokenizer.model"}:
        raise RequestError(
            f"--model: {folder} has no tokenizer.json or tokenizer.model; add the tokenizer's files"
        )
    _no_pickle(name, here)
    shards = ["model.safetensors"]
    if "model.safetensors" not in here:
        index = _json(folder / INDEX)
        weights = index.get("weight_map")
        if not isinstance(weights, dict) or not all(
            isinstance(v, str) and v == Path(v).name for v in weights.values()
        ):
            raise RequestError(
                f"--model: {folder / INDEX} has no usable weight_map; fetch it again"
            )
        shards = sorted(set(weights.values()))
    if missing := [s for s in shards if s not in here]:
        raise RequestError(
            f"--model: {folder} lacks {missing[0]}, one of {len(shards)} weight files; fetch it again"
        )
    _headers(folder, shards)
    size = sum((folder / s).stat().st_size for s in shards)
    return Checkpoint(name, source, folder, revision, document, size)


def _headers(folder: Path, shards: list[str]) -> None:
    from safetensors import SafetensorError, safe_open

    for shard in shards:
        try:
            with safe_open(folder / shard, framework="np") as file:
                file.keys()  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RequestError(
                f"--model: {folder / shard} is damaged ({first_line(error)}); fetch the file again"
            ) from None


def _no_pickle(name: str, files: set[str]) -> None:
    if files & {"model.safetensors", INDEX}:
        return
    if any(fnmatch.fnmatch(f, "*.bin") or f.endswith((".pt", ".pth")) for f in files):
        raise RequestError(
            f"--model: {name} holds its weights as pickle files, which can run code when they are opened and are never "
            "read. Convert them where you trust them: model.save_pretrained(folder, safe_serialization=True)."
        )
    raise RequestError(
        f"--model: {name} has no model.safetensors; expected the folder of a transformers model"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"--model: {path} is not readable JSON ({first_line(error)}); fetch the file again"
        ) from None
    if not isinstance(found, dict):
        raise RequestError(
            f"--model: {path} holds a {type(found).__name__}, expected a JSON object; fetch it again"
        )
    return found


def _config(name: str, path: Path) -> dict[str, Any]:
    """config.json, of a family that is supported here."""
    if not path.is_file():
        raise RequestError(
            f"--model: {path.parent} has no config.json; expected the folder of a transformers model"
        )
    document = _json(path)
    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise RequestError(
            f"--model: {name} is of the family {kind!r}; supported: {', '.join(FAMILIES)}"
        )
    if document.get("quantization_config"):
        raise RequestError(
            f"--model: {name} is quantised; its value vectors are not the model's. Give the original weights."
        )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        import transformers

        raise RequestError(
            f"--model: transformers {transformers.__version__} does not know {kind!r}; pip install -U transformers"
        )
    return document


def _on_hub(name: str, revision: str | None) -> Checkpoint:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=20)
        files = {s.rfilename: s.size or 0 for s in info.siblings or [] if _wanted(s.rfilename)}
        _no_pickle(name, {s.rfilename for s in info.siblings or []})
        if info.gated:
            HfApi().auth_check(name)
        document = _config(name, Path(hf_hub_download(name, "config.json", revision=info.sha)))
    except RequestError:
        raise
    except (
        Exception
    ) as error:  # the Hub's client changes its transport, and with it the errors of a lost network
        return _from_cache(name, revision, error)
    todo = [
        f for f in files if not isinstance(try_to_load_from_cache(name, f, revision=info.sha), str)
    ]
    size = sum(n for f, n in files.items() if f.endswith(".safetensors"))
    found = Checkpoint(
        name,
        "hub",
        None,
        info.sha,
        document,
        size,
        tuple((f, files[f]) for f in todo),
        bool(info.gated),
    )
    if todo:
        return found
    return _in_folder(
        name,
        "cache",
        Path(hf_hub_download(name, "config.json", revision=info.sha)).parent,
        info.sha,
    )


def _from_cache(name: str, revision: str | None, error: Exception) -> Checkpoint:
    """The model as an earlier run left it in the Hub's cache, where the Hub cannot be reached."""
    from huggingface_hub import snapshot_download

    if refused := _refused(name, error):
        raise refused from None
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise RequestError(
            f"--model: {name} is not on this machine and the Hub cannot be reached ({first_line(error)}). Check the "
            "network and HF_HUB_OFFLINE, or give a model folder; --model demo needs no network."
        ) from None
    logger.warning(
        "the Hub cannot be reached (%s): using %s as it is in the cache", first_line(error), name
    )
    return _in_folder(name, "cache", folder, folder.name)


def _wanted(file: str) -> bool:
    return "/" not in file and any(fnmatch.fnmatch(file, pattern) for pattern in READ)


def _refused(name: str, error: Exception) -> RequestError | None:
    """The Hub's no, as what to do about it; None where it did not say no."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status == 403:
        from huggingface_hub import get_token

        token = (
            "the token that is set here has no access" if get_token() else "no token is set here"
        )
        return RequestError(
            f"--model: {name} is gated and {token}. Accept the licence at https://huggingface.co/{name}, then set "
            "HF_TOKEN or run `hf auth login`; --model demo needs neither."
        )
    if isinstance(error, RevisionNotFoundError):
        return RequestError(
            f"--revision: {name} has no such revision; see https://huggingface.co/{name}/commits"
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError) or status in (401, 404):
        return RequestError(
            f"--model: the Hub has no model {name} (or it is private, and no token with access is set); check the "
            "name, set HF_TOKEN or run `hf auth login`. --model demo needs neither."
        )
    return None
