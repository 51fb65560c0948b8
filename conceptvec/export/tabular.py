"""The candidates of a run as a table: one row each, a column for every number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas

from conceptvec.text import words_of

LISTS = ("ci95", "top_tokens", "opposite_tokens", "failed", "words", "examples", "continuations")
COLUMNS = ("id", "layer", "neuron", "pole", "concept", "score", "verdict")  # come first


def entries_table(entries: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """One row for each candidate.

    Fields within fields have a dot in their name, such as ``damage.rotate.concept_drop``. Tokens
    are one line of text; examples, words and continuations stand in the results file alone.
    """
    table = pandas.json_normalize([_row(entry) for entry in entries])
    rest = [name for name in table.columns if name not in COLUMNS]
    return table.reindex(columns=[*COLUMNS, *rest])


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without its lists, but for those that can be said in a cell or two."""
    row = {name: value for name, value in entry.items() if name not in LISTS}
    if row.get("prompts") is None:  # else it would be a column of its own
        row.pop("prompts", None)
    if "activation" in row:
        facts = row["activation"]
        row["activation"] = {name: facts[name] for name in facts if name != "contexts"}
    low, high = entry.get("ci95", (None, None))
    row["ci95"] = {"low": low, "high": high}
    row["failed"] = "; ".join(entry.get("failed", ()))
    for name in ("top_tokens", "opposite_tokens"):
        row[name] = words_of(token for token, _ in entry[name])
    return row
