"""The disk: what is free, what an earlier run left, whether a folder can be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from conceptvec.errors import RequestError
from conceptvec.runfolder import manifests


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that there is."""
    return next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())


def free_disk(path: Path) -> int:
    """Free bytes where a path is, or will be."""
    return shutil.disk_usage(_existing(path)).free


def held_bytes(folder: Path) -> int:
    """What an earlier run left there: it is used again, or makes room for this one."""
    names = {name for manifest in manifests(folder) for name in manifest["parts"]}
    files = [folder / name for name in names]
    return sum(file.stat().st_size for file in files if file.is_file())


def unwritable(folder: Path) -> list[str]:
    """What is wrong with a folder that is to be written; nothing in the good case."""
    nearest = _existing(folder)
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return []
    return [f"--out: {folder} cannot be written; give another folder"]


def check_writable(folder: Path) -> None:
    """Look at a folder before anything is loaded.

    Raises:
        RequestError: it cannot be written.
    """
    for problem in unwritable(folder):
        raise RequestError(problem)
