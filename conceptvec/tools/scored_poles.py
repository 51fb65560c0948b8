"""The table of all scored poles of a run, read from its folder without the model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from conceptvec.errors import RequestError
from conceptvec.holdings import listed_part
from conceptvec.scoring.poles import PART, PoleTable, ScoredPole
from conceptvec.text import number, printable, table, words_of

ROWS = 20  # of the table that people read
HEADERS = ("id", "label", "concept", "score", "words")


def read_poles(path: str | Path) -> PoleTable:
    """The table that Stage 2 kept in a run folder.

    Raises:
        RequestError: the folder holds no scored poles, or they are damaged.
    """
    folder = Path(path)
    _, arrays = listed_part(folder, PART)
    try:
        poles = None if arrays is None else PoleTable.of_arrays(arrays)
    except (KeyError, TypeError):  # another version's
        poles = None
    if poles is None:
        raise RequestError(
            f"poles: {folder} holds no sound table of scored poles; "
            "run conceptvec with this folder as --out and --stages 1,2 or more"
        )
    return poles


def poles_table(poles: Sequence[ScoredPole], limit: int | None = None) -> str:
    """The first poles as text, with how many there are.

    Args:
        poles: best score first.
        limit: rows that are shown; `ROWS` where not given.
    """
    shown = poles[: limit or ROWS]
    rows = [
        [
            pole.pole.id,
            pole.label,
            printable(pole.concept or ""),
            number(pole.score),
            words_of(pole.words),
        ]
        for pole in shown
    ]
    count = f"{len(shown):,} of {len(poles):,} poles"
    hint = "; --limit shows more, --json and --csv give all" if len(shown) < len(poles) else ""
    return f"{table(rows, HEADERS)}\n\n{count}{hint}"


def poles_csv(poles: Sequence[ScoredPole]) -> str:
    """The poles as comma-separated values with a heading; the words stand in one field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADERS)
    for pole in poles:
        entry = pole.entry()
        concept = entry["concept"] or ""
        words = " ".join(entry["words"])
        writer.writerow([entry["id"], entry["label"], concept, entry["score"], words])
    return text.getvalue().removesuffix("\n")
