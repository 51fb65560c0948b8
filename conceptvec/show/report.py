"""The static twin of the explorer: one HTML file with summary, figures, table and cards, that loads nothing.

Everything that comes from a vocabulary, a corpus or a concepts file is escaped text: in the markup by `html.escape`, in
the embedded JSON by an escape for every ``<``; the page's script builds cards with text nodes alone, and its content
security policy forbids every request.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from conceptvec.runfolder import write_atomic
from conceptvec.show.figures import FIGURES, measured
from conceptvec.show.tables import result_rows, summary
from conceptvec.text import printable

COLUMNS = (  # name, class, field that sorts the column (its text does where there is none)
    ("id", "", ""), ("concept", "", ""), ("score", "n less", "score"), ("verdict", "", ""),
    ("concept drop", "n", "concept_drop"), ("unrelated", "n less", "unrelated_drop"),
    ("95 % interval", "n less", "selectivity"), ("q", "n less", "q_value"), ("tokens", "tokens", ""),
)  # fmt: skip


def to_html(document: Mapping[str, Any], path: str | Path) -> Path:
    """Write the report.

    Args:
        document: the results.
        path: the HTML file.

    Returns:
        the path.
    """
    path = Path(path)
    write_atomic(path, page(document).encode("utf-8"))
    return path


def page(document: Mapping[str, Any]) -> str:
    """The report as HTML text."""
    model, entries = document["model"], [_shown(e) for e in document["validation_results"]]
    template = (resources.files("conceptvec") / "data" / "report.html").read_text(encoding="utf-8")
    source = (
        f"conceptvec {document['conceptvec_version']}, {document['created']}. {model['id']}"
        f"{' at ' + model['revision'] if model['revision'] else ''}, {model['layers']} layers, hidden size "
        f"{model['hidden_size']}, {model['intermediate_size']} neurons a layer, {model['vocab_size']:,} tokens; "
        f"weights {model['fingerprint'][:16]}. Seed {document['configuration']['seed']}."
    )
    return Template(template).substitute(
        title=_safe(f"Concept vectors in {model['id']}"),
        summary="".join(f"<p>{_safe(line)}</p>" for line in summary(document).splitlines()),
        source=_safe(source),
        figures="".join(
            _figure(document, name) for name in measured(document) if name != "vector_card"
        ),
        extra=_sets(document.get("concept_sets")),
        damage=_safe(document["configuration"]["damage"][0]),
        head="".join(f'<th class="{css}"><button>{name}</button></th>' for name, css, _ in COLUMNS),
        rows="\n".join(map(_row, entries, result_rows(document, None))),
        data=json.dumps(entries, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _safe(text: Any) -> str:
    return escape(printable(str(text)))


def _shown(value: Any) -> Any:
    """The same value with every text printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {k: _shown(v) for k, v in value.items()}
    return [_shown(v) for v in value] if isinstance(value, list) else value


def _row(entry: Mapping[str, Any], cells: Iterable[str]) -> str:
    out = []
    for (name, css, key), text in zip(COLUMNS, cells, strict=True):
        value = f' data-v="{"" if entry[key] is None else entry[key]}"' if key else ""
        if name == "verdict":
            css, text = entry["verdict"], text.replace("_", " ")
        inner = (
            f'<button aria-expanded="false">{_safe(text)}</button>' if name == "id" else _safe(text)
        )
        out.append(f'<td class="{css}"{value}>{inner}</td>')
    return f'<tr id="{_safe(entry["id"])}">{"".join(out)}</tr>'


def _figure(document: Mapping[str, Any], name: str) -> str:
    out = io.BytesIO()
    FIGURES[name](document).savefig(out, format="png", dpi=130)
    picture = base64.b64encode(out.getvalue()).decode("ascii")
    text = (FIGURES[name].__doc__ or name).splitlines()[0]
    return f'<figure><img alt="{_safe(text)}" src="data:image/png;base64,{picture}"></figure>'


def _sets(sets: Any) -> str:
    """Damage of whole sets as a table, where the document has it; of a list of vectors the length."""
    if not sets:
        return ""
    head = "".join(f"<th>{_safe(k.replace('_', ' '))}</th>" for k in sets[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{_safe(_short(v))}</td>' for v in record.values())}</tr>"
        for record in sets
    )
    return f'<h2>Sets damaged together</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _short(value: Any) -> str:
    if isinstance(value, list):
        return (
            str(len(value))
            if value and isinstance(value[0], list)
            else " … ".join(map(_short, value))
        )
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
