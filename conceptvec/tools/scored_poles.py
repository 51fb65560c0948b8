"""The table of all scored poles of a run, read from its folder without the model."""

from __future__ import annotations

from pathlib import Path

from conceptvec.errors import RequestError
from conceptvec.runfolder import manifests, read_part
from conceptvec.scoring.poles import PART, PoleTable


def read_poles(path: str | Path) -> PoleTable:
    """The table that Stage 2 kept in a run folder.

    Raises:
        RequestError: the folder holds no scored poles, or they are damaged.
    """
    folder = Path(path)
    for manifest in manifests(folder):
        digest = manifest["parts"].get(PART)
        arrays = read_part(folder / PART, digest) if digest else None
        if arrays is not None:
            return PoleTable.of_arrays(arrays)
    raise RequestError(
        f"poles: {folder} holds no sound table of scored poles; "
        "run conceptvec with this folder as --out and --stages 1,2 or more"
    )
