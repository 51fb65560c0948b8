"""How figures look: colours, fonts, and the frame that says where the numbers come from.

Colours are those of Okabe & Ito (2008), which colour-blind readers tell apart. Tokens come in every
script: `drawable` writes what no font of this system can draw in a readable way.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from conceptvec.text import printable

INK, MUTED, PALE = "#333333", "#666666", "#bbbbbb"
BLUE, GREEN, ORANGE, RED = "#0072b2", "#009e73", "#e69f00", "#d55e00"
SKY, PURPLE, GRAY = "#56b4e9", "#cc79a7", "#8a8a8a"
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.dpi": 110,
}
WIDTH = 7.5  # inches: the width of a notebook cell
LONGEST_NAME = 40  # of a model: a relative path can be longer than the figure is wide
MAIN_FONT = "DejaVu Sans"  # matplotlib's own
# Fonts for scripts that it lacks; only those that a figure needs are loaded.
FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Telugu",
    "Noto Sans Thai",
    "Noto Sans Hebrew",
    "Noto Sans Arabic",
    "Nirmala UI",
    "Leelawadee UI",
    "Unifont",
)


class Plot(Figure):
    """A Figure that shows itself in a notebook without pyplot."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=110)
        return out.getvalue()


@lru_cache(maxsize=4096)
def font_of(character: str) -> str | None:
    """The first font, of matplotlib's own and the installed fallbacks, that has the character."""
    for name in (MAIN_FONT, *FALLBACK_FONTS):
        if ord(character) in _characters(name):
            return name
    return None


@lru_cache(maxsize=32)
def _characters(font: str) -> frozenset[int]:
    paths = (f.fname for f in font_manager.fontManager.ttflist if f.name == font)
    path = next(paths, None)
    return frozenset(FT2Font(path).get_charmap()) if path else frozenset()


def drawable(text: str, width: int = 26) -> str:
    """Text as a figure can show it: printable, cut to `width`, names where no font exists."""
    text = printable(text).strip()
    missing = [ch for ch in text if not ch.isspace() and font_of(ch) is None]
    if missing:
        text = f"[{_name_of(missing)}]"
    return text if len(text) <= width else text[: width - 1] + "…"


def _name_of(characters: list[str]) -> str:
    """A name for characters that no font has: a symbol's own (an emoji), else script and number."""
    for character in characters:
        if unicodedata.category(character) == "So":
            return unicodedata.name(character, "unnamed").lower()
    script = unicodedata.name(characters[0], "unnamed").split()[0][:5]
    return f"{script} U+{ord(characters[0]):04X}{'…' if len(characters) > 1 else ''}"


def frame(
    results: Mapping[str, Any],
    title: str,
    height: float,
    columns: int = 1,
    note: str = "",
    heights: Sequence[float] = (1,),
) -> tuple[Figure, list[Axes]]:
    """An empty figure whose second line says where the numbers come from, and how to read it.

    Args:
        results: a document with the ``model``.
        title: the first line.
        height: in inches.
        columns: panels side by side, with one vertical scale.
        note: stands after model and device.
        heights: of panels below each other, in proportion, with one horizontal scale.
    """
    figure = Plot(figsize=(WIDTH, height), layout="constrained")
    rows = len(heights)
    grid = figure.subplots(
        rows, columns, squeeze=False, sharex=rows > 1, sharey=columns > 1, height_ratios=heights
    )
    panels = grid.ravel().tolist()
    panels[0].set_title(f"{title}\n", loc="left")
    source = _source(results["model"])
    line = panels[0].annotate(
        f"{source} · {note}" if note else source,
        (0, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color=MUTED,
    )
    line.set_in_layout(False)  # the title's second line holds its place
    return figure, panels


def _source(model: Mapping[str, Any]) -> str:
    path = PurePath(model["id"])
    name = printable(path.name if path.is_absolute() else model["id"])
    if len(name) > LONGEST_NAME:
        name = "…" + name[1 - LONGEST_NAME :]
    return f"{name}, {model['dtype']} on {model['device']}"
