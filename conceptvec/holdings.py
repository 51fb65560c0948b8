"""What lies in a run folder, whose it is, and which of it a run may remove.

Only names that the program gives, in the folders that it writes, are ever looked at or removed.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from conceptvec.document import RESULTS as RESULTS
from conceptvec.errors import RequestError
from conceptvec.files import HALF_WRITTEN, Arrays, cannot_write, read_part
from conceptvec.identity import Record, differences

logger = logging.getLogger(__name__)

STALE_SECONDS = 3600  # a half-written file older than this belongs to a process that was killed
MANIFEST = r"manifest(\.rank\d+)?\.json"
VECTORS = "concept_vectors.safetensors"
PAGES = r"report\.html|calibration\.(json|png)"
FIGURES = (
    r"(funnel|score_distribution|concept_distribution|layer_by_concept|effect_by_score|"
    r"effect_by_layer|drops|vector_card)\.png"
)
FOLDERS = ("", "projections", "text", "scan", "validation", "calibration")  # of parts
MANIFEST_KEYS = ("configuration", "files", "model", "parts")  # an object each


def manifests(path: Path) -> list[dict[str, Any]]:
    """The manifests of all processes in a folder.

    A damaged one is as good as none: its parts are made again.

    Raises:
        RequestError: another program wrote one of them.
    """
    sound: list[dict[str, Any]] = []
    for file in named(path, MANIFEST):
        try:
            manifest: Any = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            logger.warning("%s is damaged: what it lists is computed again", file)
            continue
        if not _is_manifest(manifest):
            raise RequestError(f"--out: {file} was not written by conceptvec; give another --out")
        sound.append(manifest)
    return sound


def listed_part(path: Path, name: str) -> tuple[bool, Arrays | None]:
    """Whether any manifest of a folder lists a part, and its arrays if one does and it is sound."""
    parts = [manifest["parts"] for manifest in manifests(path)]
    digests = [listed[name] for listed in parts if listed.get(name)]
    read = (read_part(path / name, digest) for digest in digests)
    return bool(digests), next(filter(None, read), None)


def _is_manifest(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    entries = cast("dict[str, Any]", document)
    return all(isinstance(entries.get(key), dict) for key in MANIFEST_KEYS)


def conflicts(path: Path, asked: Record) -> list[str]:
    """Why a folder is not that of a run, as phrases.

    Results without a manifest speak for themselves, if they can be read.
    """
    earlier = manifests(path)
    results = {file: _read_object(file) for file in named(path, RESULTS)}
    documents = [*filter(_is_record, results.values())]
    for was in earlier or documents:
        if changes := differences(was, asked):
            return changes
    unknown = [file for file, document in results.items() if not _is_record(document)]
    if not results:
        unknown += named(path, re.escape(VECTORS))
    if unknown and not earlier:
        return [f"nothing says what {unknown[0].name} was made with"]
    return []


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file holds none."""
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def _is_record(document: Mapping[str, Any]) -> bool:
    return all(isinstance(document.get(key), dict) for key in ("configuration", "model"))


def holds_another(path: Path, changes: Iterable[str], what: str = "another run") -> str:
    """What to say of a folder with `conflicts`, or with something else that stays as it is."""
    return (
        f"--out: {path} holds {what} ({'; '.join(changes)}). "
        "Give another --out, or --overwrite to start afresh."
    )


def clear(path: Path, earlier: Sequence[dict[str, Any]]) -> None:
    """Remove what an earlier run wrote, and what killed processes left half-written.

    Args:
        path: the run folder.
        earlier: the manifests of the run that is removed; none keeps it.

    Raises:
        RunError: a file cannot be removed.
    """
    outputs = named(path, f"{MANIFEST}|{RESULTS}|{re.escape(VECTORS)}|{PAGES}")
    outputs += named(path / "figures", FIGURES)
    parts = {name for manifest in earlier for name in manifest["parts"] if _is_part_name(name)}
    half_written = [
        file
        for folder in FOLDERS
        for file in named(path / folder, HALF_WRITTEN)
        if time.time() - file.stat().st_mtime > STALE_SECONDS
    ]
    try:
        for file in [*half_written, *(path / name for name in parts)]:
            file.unlink(missing_ok=True)
        for file in outputs if earlier else ():
            file.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def _is_part_name(name: str) -> bool:
    """Whether a name in a manifest can be a part's, inside the folder."""
    is_inside = ".." not in Path(name).parts and not name.startswith("/")
    return name.endswith(".safetensors") and is_inside


def named(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose whole names are of a form; folders and links are none."""
    return [
        file
        for file in sorted(folder.glob("*"))
        if re.fullmatch(pattern, file.name) and file.is_file() and not file.is_symlink()
    ]
