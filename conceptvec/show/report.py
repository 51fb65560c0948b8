"""The explorer's static twin: one HTML file of summary, figures, table and cards, loading nothing.

Everything that comes from a vocabulary, a corpus or a concepts file is escaped text: in the markup
by `html.escape`, in the embedded JSON by an escape for every ``<``; the page's script builds cards
with text nodes alone, and its content security policy forbids every request.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from conceptvec.errors import RequestError
from conceptvec.runfolder import write_atomic
from conceptvec.show.figures import FIGURES, measured
from conceptvec.show.pictures import attempted
from conceptvec.show.tables import (
    CANDIDATE_HEADERS,
    GROUP_HEADERS,
    GROUPS_TITLE,
    HEADERS,
    UNTESTED_TITLE,
    candidate_rows,
    group_rows,
    result_rows,
    summary,
)
from conceptvec.text import DASH, printable


@dataclass(frozen=True)
class Column:
    """How a column of the table behaves.

    Attributes:
        css: classes: ``n`` is numeric, ``less`` is left out on a narrow screen.
        sorted_by: the field of an entry that sorts the column; its text does where there is none.
    """

    css: str = ""
    sorted_by: str = ""


COLUMNS = {
    "id": Column(),
    "concept": Column(),
    "score": Column("n less", "score"),
    "verdict": Column(),
    "concept drop": Column("n", "concept_drop"),
    "unrelated": Column("n less", "unrelated_drop"),
    "95 % interval": Column("n less", "selectivity"),
    "q": Column("n less", "q_value"),
    "tokens": Column("tokens"),
}


def to_html(document: Mapping[str, Any], path: str | Path) -> Path:
    """Write the report.

    Args:
        document: the results.
        path: the HTML file.

    Returns:
        the path.

    Raises:
        RequestError: something else is there.
    """
    path = Path(path).expanduser()
    _check_place(path)
    write_atomic(path, page(document).encode("utf-8"))
    return path


def _check_place(path: Path) -> None:
    """Refuse to put a page where something else is, the results themselves above all.

    Raises:
        RequestError: it is a folder, or a file that is no page.
    """
    if path.is_dir():
        raise RequestError(f"--out: {path} is a folder; give the HTML file, such as report.html")
    if path.is_file():
        with path.open("rb") as file:
            begin = file.read(200)
        if begin.strip() and not begin.lstrip().startswith(b"<"):
            raise RequestError(f"--out: {path} is there and is no HTML file; give another --out")


def page(document: Mapping[str, Any]) -> str:
    """The report as HTML text."""
    template = resources.files("conceptvec") / "data" / "report.html"
    entries = [_printable(entry) for entry in document["validation_results"]]
    as_json = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    paragraphs = (f"<p>{_safe(line)}</p>" for line in summary(document).splitlines())
    pictures = (_figure(document, name) for name in measured(document) if name != "vector_card")
    return Template(template.read_text(encoding="utf-8")).substitute(
        title=_safe(f"Concept vectors in {document['model']['id']}"),
        summary="".join(paragraphs),
        source=_safe(_source(document)),
        figures="".join(pictures),
        extra=_sets(document.get("concept_sets") or []) + _untested(document) + _groups(document),
        damage=_safe(next(iter(document["configuration"]["damage"]), "none")),
        head="".join(_head(name) for name in HEADERS),
        rows="\n".join(map(_row, entries, result_rows(document, None))),
        data=as_json.replace("<", "\\u003c"),
    )


def _safe(text: Any) -> str:
    return escape(printable(str(text)))


def _printable(value: Any) -> Any:
    """The same value with every text printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _source(document: Mapping[str, Any]) -> str:
    """Which program, model and seed the numbers come from."""
    model = document["model"]
    revision = f" at {model['revision']}" if model["revision"] else ""
    return (
        f"conceptvec {document['conceptvec_version']}, {document['created']}. "
        f"{model['id']}{revision}, {model['layers']} layers, hidden size {model['hidden_size']}, "
        f"{model['intermediate_size']} neurons a layer, {model['vocab_size']:,} tokens; weights "
        f"{model['fingerprint'][:16]}. Seed {document['configuration']['seed']}."
    )


def _head(name: str) -> str:
    return f'<th class="{COLUMNS[name].css}"><button>{name}</button></th>'


def _row(entry: Mapping[str, Any], texts: Sequence[str]) -> str:
    """A row of the table; `texts` stand under `HEADERS`."""
    cells = "".join(_cell(entry, name, text) for name, text in zip(HEADERS, texts, strict=True))
    return f'<tr id="{_safe(entry["id"])}">{cells}</tr>'


def _cell(entry: Mapping[str, Any], name: str, text: str) -> str:
    column = COLUMNS[name]
    css, inner = column.css, _safe(text)
    if name == "id":
        inner = f'<button aria-expanded="false">{inner}</button>'
    if name == "verdict":
        css, inner = entry["verdict"], _safe(text.replace("_", " "))
    if not column.sorted_by:
        return f'<td class="{css}">{inner}</td>'
    value = entry[column.sorted_by]
    return f'<td class="{css}" data-v="{"" if value is None else value}">{inner}</td>'


def _figure(document: Mapping[str, Any], name: str) -> str:
    out = io.BytesIO()

    def draw() -> bool:
        FIGURES[name](document).savefig(out, format="png", dpi=130)
        return True

    if not attempted(draw, name):
        return ""
    picture = base64.b64encode(out.getvalue()).decode("ascii")
    text = (FIGURES[name].__doc__ or name).splitlines()[0]
    return f'<figure><img alt="{_safe(text)}" src="data:image/png;base64,{picture}"></figure>'


def _sets(sets: Sequence[Mapping[str, Any]]) -> str:
    """Damage of whole sets as a table, where the document has it."""
    if not sets:
        return ""
    head = "".join(f"<th>{_safe(name.replace('_', ' '))}</th>" for name in sets[0])
    rows = []
    for one in sets:
        cells = "".join(f"<td>{_safe(_short(value))}</td>" for value in one.values())
        rows.append(f"<tr>{cells}</tr>")
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f'<h2>Sets damaged together</h2><div class="scroll">{table}</div>'


def _groups(document: Mapping[str, Any]) -> str:
    """The largest groups outside the concepts as a table, where there are any."""
    return _listing(GROUPS_TITLE, GROUP_HEADERS, group_rows(document))


def _untested(document: Mapping[str, Any]) -> str:
    """Candidates that no stage has tested, as after Stages 1 and 2."""
    return _listing(UNTESTED_TITLE, CANDIDATE_HEADERS, candidate_rows(document, None))


def _listing(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under a heading, the words in the last column; nothing without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{_safe(name)}</th>" for name in heads)
    body = []
    for *cells, words in rows:
        plain_cells = "".join(f"<td>{_safe(cell)}</td>" for cell in cells)
        body.append(f'<tr>{plain_cells}<td class="tokens">{_safe(words)}</td></tr>')
    table = f"<table><tr>{head}</tr>{''.join(body)}</table>"
    return f'<h2>{title}</h2><div class="scroll">{table}</div>'


def _short(value: Any) -> str:
    """A field of a set; of a list of vectors the length."""
    if value is None:
        return DASH
    if isinstance(value, list):
        is_vectors = bool(value) and isinstance(value[0], list)
        return str(len(value)) if is_vectors else " … ".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
