"""Text with and without a vector: how the model goes on clean, without it, and with more of it.

Stage 3 writes these continuations for the best validated vectors, after the text before their
strongest position. Nothing is computed here. Removing one vector of thousands often leaves a text
as it is, so the vectors that change theirs come first, and a line says how many do.
"""

from __future__ import annotations

from collections import Counter
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
    """The answer of `texts`: id, concept, tokens, beginning, clean, removed, amplified of each.

    Attributes:
        title: of how many texts, and how many of these change.
    """

    title = NOTHING

    def __repr__(self) -> str:
        return "\n\n".join([self.title, *map(_as_text, self)])

    def _repr_html_(self) -> str:
        return notebook_html("".join([f"<p>{self.title}</p>", *map(_as_html, self)]))


def texts(results: Mapping[str, Any], limit: int = LIMIT) -> Texts:
    """How the text goes on with and without the best vectors.

    Those whose removal changes their text come first, then those of different concepts.

    Args:
        results: the results of a run.
        limit: vectors in the answer.
    """
    validated = [entry for entry in results["validation_results"] if entry["validated"]]
    every = [_of(entry) for entry in validated if entry["continuations"]]
    seen = Counter[str]()  # texts of a concept so far
    keys = list[tuple[bool, int]]()
    for text in every:
        stays = text["clean"] == text["removed"]
        keys.append((stays, seen[text["concept"]]))
        seen[text["concept"]] += not stays
    order = sorted(range(len(every)), key=keys.__getitem__)
    answer = Texts(every[number] for number in order[:limit])
    if every:
        changed = sum(not stays for stays, _ in keys)
        answer.title = (
            f"{len(every)} validated vectors with a text; "
            f"removing the vector changes {changed} of the texts"
        )
    return answer


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
