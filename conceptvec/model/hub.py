"""A model of the Hugging Face Hub, fetched into the Hub's cache at one resolved commit."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from conceptvec.errors import RequestError, RunError, first_line
from conceptvec.model.folder import (
    Checkpoint,
    checked_folder,
    is_wanted,
    read_config,
    refuse_other_kinds,
    refuse_pickle,
)

logger = logging.getLogger(__name__)

SECONDS = 20  # that the Hub may take to describe a model
REFUSALS = (401, 403)
TOKENS = "https://huggingface.co/settings/tokens"
BAD_TOKEN = re.compile(r"credential|token|expired", re.IGNORECASE)
READ = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "*.jinja",
)


def describe(name: str, revision: str | None) -> Checkpoint:
    """A model of the Hub: its description, or its files where all are in the cache.

    Raises:
        RequestError: there is no such model, no access to it, or it cannot be used.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=SECONDS)
        files = {file.rfilename: file.size or 0 for file in info.siblings or []}
        refuse_other_kinds(name, files)
        refuse_pickle(name, files)
        if info.gated:
            _check_access(name)
        config_path = Path(hf_hub_download(name, "config.json", revision=info.sha))
        document = read_config(name, config_path)
    except RequestError:
        raise
    except Exception as error:
        # The Hub's client changes its transport, and with it the errors of a lost network.
        return _from_cache(name, revision, error)

    wanted = {file: size for file, size in files.items() if is_wanted(file, READ)}
    missing = [
        file
        for file in wanted
        if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)
    ]
    if not missing:
        return checked_folder(name, "cache", config_path.parent, info.sha)
    return Checkpoint(
        name,
        "hub",
        None,
        info.sha,
        document,
        weight_bytes=sum(n for file, n in wanted.items() if file.endswith(".safetensors")),
        download=tuple((file, wanted[file]) for file in missing),
        gated=bool(info.gated),
    )


def _check_access(name: str) -> None:
    """Ask whether the token may read a gated model; a mirror that cannot say is taken at its word.

    Where access is missing after all, the first file that is fetched says so.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(name)
    except Exception as error:  # see `describe`
        if _status(error) in REFUSALS:
            raise
        logger.info("whether %s may be read is not known (%s)", name, first_line(error))


def download(checkpoint: Checkpoint) -> Path:
    """Fetch what is missing; gives the checked folder.

    Raises:
        RequestError: access was refused.
        RunError: the download failed; what has arrived is kept.
    """
    from huggingface_hub import snapshot_download

    name, revision = checkpoint.name, checkpoint.revision
    patterns = [*READ, *(file for file, _ in checkpoint.download)]
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except Exception as error:  # see `describe`
        if refused := _refused(name, error):
            raise refused from None
        raise RunError(
            f"the download of {name} failed ({first_line(error)}); what has arrived is kept. "
            "Check the network and the room on the disk, then run the same command again."
        ) from None
    checked_folder(name, "hub", Path(folder), revision)
    return Path(folder)


def _from_cache(name: str, revision: str | None, error: Exception) -> Checkpoint:
    """The model as an earlier run left it in the cache, where the Hub cannot be reached."""
    from huggingface_hub import snapshot_download

    if refused := _refused(name, error):
        raise refused from None
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise RequestError(
            f"--model: {name} is not on this machine and the Hub cannot be reached "
            f"({first_line(error)}). Check the network and HF_HUB_OFFLINE, or give a model folder; "
            "--model demo needs no network."
        ) from None
    reason = first_line(error)
    logger.warning("the Hub cannot be reached (%s): using %s as it is in the cache", reason, name)
    return checked_folder(name, "cache", folder, folder.name)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _said(error: Exception) -> str:
    """The server's own sentence: in a header, or in the answer's body."""
    response: Any = getattr(error, "response", None)
    try:
        said = response.headers.get("X-Error-Message") or response.json().get("error")
    except Exception:  # no answer, or no JSON in it
        said = None
    return " ".join(str(said or getattr(error, "server_message", None) or "").split())[:300]


def _refused(name: str, error: Exception) -> RequestError | None:
    """The Hub's no, as what to do about it; None where it did not say no."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status, reason = _status(error), _said(error)
    if status == 401 and BAD_TOKEN.search(reason):
        return RequestError(
            f"--model: the Hub does not accept the token that is set here (it says: {reason}): it "
            f"is invalid or expired. Make a new one at {TOKENS} and set HF_TOKEN or run "
            "`hf auth login`, or unset it: a public model needs none."
        )
    if isinstance(error, GatedRepoError) or status == 403:
        from huggingface_hub import get_token

        lacks = "the token that is set here has no access"
        token = lacks if get_token() else "no token is set here"
        says = f" (the Hub says: {reason})" if reason else ""
        return RequestError(
            f"--model: {name} is gated and {token}{says}. Accept the licence at "
            f"https://huggingface.co/{name}, then set HF_TOKEN or run `hf auth login`; a "
            f"fine-grained token needs the box for gated repositories at {TOKENS}. "
            "--model demo needs neither."
        )
    if isinstance(error, RevisionNotFoundError):
        return RequestError(
            f"--revision: {name} has no such revision; see https://huggingface.co/{name}/commits"
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError) or status in (401, 404):
        return RequestError(
            f"--model: the Hub has no model {name} (or it is private, and no token with access is "
            "set); check the name, set HF_TOKEN or run `hf auth login`. --model demo needs "
            "neither."
        )
    return None
