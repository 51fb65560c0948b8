"""Text for people: what may be shown of a vocabulary, numbers, plain tables."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, cast

HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # zero width non-joiner (Persian, Hindi) and joiner (emoji)
JOINED = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "So", "Sk")  # letters, their marks, pictures
DASH = "–"  # stands where nothing was measured


def printable(text: str, keep: str = "") -> str:
    """Text from a vocabulary without control characters: a terminal shows it and does no more.

    Args:
        text: any text.
        keep: characters that stay although they are control characters, such as a line's end.
    """
    return "".join(
        "�" if _is_hidden(ch) and ch not in keep and not _joins(text, place) else ch
        for place, ch in enumerate(text)
    )


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in HIDDEN_CATEGORIES


def _joins(text: str, place: int) -> bool:
    """Whether a joiner stands inside a word or a picture, where it belongs to the spelling."""
    if text[place] not in JOINERS:
        return False
    around = (text[place - 1 : place], text[place + 1 : place + 2])
    return all(ch and ch != "�" and unicodedata.category(ch) in JOINED for ch in around)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where nothing was measured, and no sign before a zero."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    is_zero = not text.strip("-0.")
    return text.removeprefix("-") if is_zero else text


def listed(counts: dict[str, int]) -> str:
    """Counts as a phrase, the zeros left out, such as ``3 animals, 1 not specific``."""
    phrases = [f"{n} {printable(name).replace('_', ' ')}" for name, n in counts.items() if n]
    return ", ".join(phrases) or "none"


def words_of(tokens: Iterable[str]) -> str:
    """Tokens as one line of text."""
    return printable(" ".join(token.strip() for token in tokens))


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], form: str = "simple") -> str:
    """A table as text; `form` is one of tabulate's formats. Numbers stay as they are written."""
    from tabulate import tabulate  # only where a table is wanted: `score-tokens` does without

    return str(tabulate([list(row) for row in rows], headers, tablefmt=form, disable_numparse=True))


def notebook_html(markup: str) -> str:
    """HTML for a notebook's cell in which a dollar is a dollar and begins no formula."""
    return f'<div class="tex2jax_ignore mathjax_ignore">{markup}</div>'


def html_table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """A plain, escaped HTML table."""
    text = table(rows, headers, "html")
    for tag in ("th", "td"):  # Jupyter aligns cells to the right unless told otherwise
        text = text.replace(f"<{tag}>", f'<{tag} style="text-align: left; padding-right: 1em">')
    return text


def plain(value: Any) -> float | None:
    """A number as the results hold it: six significant digits.

    What is no finite number is null: NaN was not measured, and JSON holds no infinity.
    """
    as_float = float(value)
    return float(f"{as_float:.6g}") if math.isfinite(as_float) else None


def finite(value: Any) -> Any:
    """The same document with null in the place of what is no finite number."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: finite(field) for name, field in fields.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
