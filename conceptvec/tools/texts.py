"""Text with and without a vector: how the model goes on clean, without it, and with more of it.

Stage 3 writes these continuations for the best validated vectors, after the text before the word
that it cost most. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from conceptvec.text import html_table, notebook_html, printable, words_of

LIMIT = 3  # vectors
SHOWN_TOKENS = 8
BEGINNING = 160  # characters of the text that comes before
WAYS = {"clean": "as it is", "removed": "without the vector", "amplified": "with more of it"}
NOTHING = "No validated vector of this run has a text to compare."


class Texts(list[dict[str, str]]):
    """The answer of `texts`: id, concept, tokens, beginning, clean, removed, amplified of each."""

    def __repr__(self) -> str:
        return "\n\n".join(map(_as_text, self)) or NOTHING

    def _repr_html_(self) -> str:
        return notebook_html("".join(map(_as_html, self)) or f"<p>{NOTHING}</p>")


def texts(results: Mapping[str, Any], limit: int = LIMIT) -> Texts:
    """How the text goes on with and without the best vectors, those of different concepts first.

    Args:
        results: the results of a run.
        limit: vectors in the answer.
    """
    written = [e for e in results["validation_results"] if e["validated"] and e["continuations"]]
    best = {entry["concept"]: entry for entry in reversed(written)}
    first = [entry for entry in written if best[entry["concept"]] is entry]
    rest = [entry for entry in written if best[entry["concept"]] is not entry]
    return Texts(map(_of, (first + rest)[:limit]))


def _of(entry: Mapping[str, Any]) -> dict[str, str]:
    continuation = entry["continuations"][0]
    return {
        "id": entry["id"],
        "concept": entry["concept"],
        "tokens": words_of(token for token, _ in entry["top_tokens"][:SHOWN_TOKENS]),
        "beginning": continuation["prompt"],
        **{way: continuation[way] for way in WAYS},
    }


def _beginning(text: Mapping[str, str]) -> str:
    """The end of the text before, on one line."""
    line = _line(text["beginning"])
    return line if len(line) <= BEGINNING else f"… {line[-BEGINNING:]}"


def _line(text: str) -> str:
    return " ".join(printable(text, keep="\n").split())


def _as_text(text: Mapping[str, str]) -> str:
    ways = (f"  {name + ':':20}{_line(text[way])}" for way, name in WAYS.items())
    head = f"{text['id']} · {printable(text['concept'])} · {text['tokens']}"
    return "\n".join([head, f"  {_beginning(text)} …", *ways])


def _as_html(text: Mapping[str, str]) -> str:
    head = f"<b>{escape(text['id'])} · {escape(printable(text['concept']))}</b>"
    about = f"<p>{head} · {escape(text['tokens'])}</p>"
    rows = [(name, _line(text[way])) for way, name in WAYS.items()]
    return about + html_table(rows, ("", f"{_beginning(text)} …"))
