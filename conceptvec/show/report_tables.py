"""The tables of the HTML report: rows that a browser without scripts shows as well, all escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from conceptvec.show.tables import (
    CANDIDATE_HEADERS,
    EFFECT_ONLY_HEADERS,
    GROUP_HEADERS,
    HEADERS,
    candidate_rows,
    effect_only_rows,
    group_rows,
    result_rows,
)
from conceptvec.text import DASH, number, printable

POLE_HEADERS = ("id", "answer", "score", "strongest effect", "words")
SEARCHED_FROM = 10  # rows: shorter tables need no search field


@dataclass(frozen=True)
class Column:
    """How a column of a table behaves.

    Attributes:
        css: classes: ``n`` is numeric, ``less`` is left out on a narrow screen.
        sorted_by: where an entry's value for sorting is; the column's text does where there is
            none.
    """

    css: str = ""
    sorted_by: tuple[str, ...] = ()


COLUMNS = {
    "id": Column(),
    "concept": Column(),
    "answer": Column(),
    "score": Column("n", ("score",)),
    "verdict": Column(),
    "concept drop": Column("n", ("concept_drop",)),
    "unrelated": Column("n less", ("unrelated_drop",)),
    "95 % interval": Column("n less", ("selectivity",)),
    "q": Column("n less", ("q_value",)),
    "effect": Column("n", ("scan", "mean")),
    "strongest effect": Column("n less"),
    "carrying words": Column("n less", ("scan", "words")),
    "tokens": Column("tokens"),
    "words": Column("tokens"),
}
OF_TESTED = COLUMNS | {"score": Column("n less", ("score",))}
OF_EFFECT_ONLY = COLUMNS | {"q": Column("n less", ("q",))}


def safe(text: Any) -> str:
    """Any text as escaped text."""
    return escape(printable(str(text)))


def tested(document: Mapping[str, Any], first: int) -> str:
    """The tested vectors.

    Args:
        document: the results.
        first: the number of the first one among the page's entries.
    """
    entries, rows = document["validation_results"], result_rows(document, None)
    return _listing("tested", HEADERS, OF_TESTED, _rows(entries, HEADERS, rows, OF_TESTED, first))


def untested(document: Mapping[str, Any], first: int) -> str:
    """The candidates that no stage has tested, as after Stages 1 and 2."""
    entries, rows = document["untested_candidates"], candidate_rows(document, None)
    lines = _rows(entries, CANDIDATE_HEADERS, rows, COLUMNS, first)
    return _listing("untested", CANDIDATE_HEADERS, COLUMNS, lines)


def effect_only(document: Mapping[str, Any], first: int) -> str:
    """The poles that the scan alone names."""
    entries, rows = document["effect_only"], effect_only_rows(document)
    lines = _rows(entries, EFFECT_ONLY_HEADERS, rows, OF_EFFECT_ONLY, first)
    return _listing("effect-only", EFFECT_ONLY_HEADERS, OF_EFFECT_ONLY, lines)


def poles() -> str:
    """The table of all poles; the page's script fills it."""
    return _listing("poles", POLE_HEADERS, COLUMNS, [], is_searched=True)


def _listing(
    name: str,
    heads: Sequence[str],
    columns: Mapping[str, Column],
    rows: Sequence[str],
    is_searched: bool = False,
) -> str:
    """A table that the page's script searches, sorts and pages."""
    head = "".join(f'<th class="{columns[n].css}"><button>{n}</button></th>' for n in heads)
    body = "\n".join(rows)
    table = f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
    field = _search_field(name) if is_searched or len(rows) > SEARCHED_FROM else ""
    inner = f'{field}<table class="vectors">{table}</table>'
    return f'<div class="listing" id="{name}">{inner}</div>'


def _search_field(name: str) -> str:
    what = "word, id, concept" + (", verdict" if name == "tested" else "")
    return (
        f'<div class="find"><input type="search" placeholder="{what} …" '
        f'aria-label="search the table by {what}">'
        '<span class="muted count" role="status"></span></div>'
    )


def _rows(
    entries: Sequence[Mapping[str, Any]],
    heads: Sequence[str],
    texts: Sequence[Sequence[str]],
    columns: Mapping[str, Column],
    first: int,
) -> list[str]:
    """One row for each entry; `texts` stand under `heads`."""
    rows: list[str] = []
    for place, (entry, line) in enumerate(zip(entries, texts, strict=True), start=first):
        named = zip(heads, line, strict=True)
        cells = "".join(_cell(entry, name, text, columns[name]) for name, text in named)
        rows.append(f'<tr data-id="{safe(entry["id"])}" data-entry="{place}">{cells}</tr>')
    return rows


def _cell(entry: Mapping[str, Any], name: str, text: str, column: Column) -> str:
    css, inner = column.css, safe(text)
    if name == "id":
        inner = f'<button aria-expanded="false">{inner}</button>'
    if name == "verdict":
        css, inner = entry["verdict"], safe(text.replace("_", " "))
    if not column.sorted_by:
        return f'<td class="{css}">{inner}</td>'
    value: Any = entry
    for key in column.sorted_by:
        value = value[key]
    return f'<td class="{css}" data-v="{"" if value is None else value}">{inner}</td>'


def sets(document: Mapping[str, Any]) -> str:
    """Damage of whole sets; empty where the document has none."""
    damaged_sets = document["concept_sets"]
    if not damaged_sets:
        return ""
    heads = [name.replace("_", " ") for name in damaged_sets[0]]
    return _plain(heads, [[_short(value) for value in one.values()] for one in damaged_sets])


def groups(document: Mapping[str, Any]) -> str:
    """The largest groups outside the concepts; empty where there are none."""
    rows = group_rows(document)
    return _plain(GROUP_HEADERS, rows, "tokens") if rows else ""


def _plain(heads: Sequence[str], rows: Sequence[Sequence[str]], last: str = "") -> str:
    """A table that is only read; `last` is the class of its last column."""
    head = "".join(f"<th>{safe(name)}</th>" for name in heads)
    body = ""
    for *cells, end in rows:
        line = "".join(f"<td>{safe(cell)}</td>" for cell in cells)
        body += f'<tr>{line}<td class="{last}">{safe(end)}</td></tr>'
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{table}</table></div>'


def _short(value: Any) -> str:
    """A field of a set; of a list of vectors the length."""
    if value is None:
        return DASH
    if isinstance(value, list):
        is_vectors = bool(value) and isinstance(value[0], list)
        return str(len(value)) if is_vectors else " … ".join(map(_short, value))
    return number(value) if isinstance(value, float) else str(value)
