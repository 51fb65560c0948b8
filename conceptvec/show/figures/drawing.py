"""What makes a function a figure: style, fonts for its words, a sentence for nothing measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import update_wrapper
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conceptvec.show.style import BLUE, INK, MAIN_FONT, MUTED, STYLE, drawable, font_of, frame

NOTE_SIZE = 8.5  # points of what stands in a figure besides axes and titles
DARK = 0.24  # luminance under which white is read more easily than `INK` (WCAG's contrast)


class Drawing:
    """A figure: called with the results, it returns a matplotlib Figure.

    Args:
        draw: draws it, from results that hold what it needs.
        measured: whether they do.
        nothing: what the figure says where they do not.
        shows_tokens: whether tokens and contexts of the entries stand in it, in whatever script.
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
        measured: Callable[[Mapping[str, Any]], bool],
        nothing: str,
        shows_tokens: bool,
    ) -> None:
        self.draw, self.measured, self.nothing = draw, measured, nothing
        self.shows_tokens, self.name = shows_tokens, draw.__name__
        update_wrapper(self, draw)

    def __call__(self, results: Mapping[str, Any], *args: Any) -> Figure:
        """The figure, or the sentence that says what is missing."""
        with matplotlib.rc_context(style_for(self._words(results))):
            if self.measured(results):
                return self.draw(results, *args)
            figure, (axes,) = frame(results, self.name.replace("_", " ").capitalize(), 1.4)
            axes.set_axis_off()
            axes.text(0, 0.5, self.nothing, transform=axes.transAxes, va="center")
            return figure

    def _words(self, results: Mapping[str, Any]) -> list[str]:
        words = [*results["candidate_distribution"], results["model"]["id"]]
        for entry in results["validation_results"] if self.shows_tokens else ():
            shown = entry["top_tokens"] + entry["opposite_tokens"] + entry["activation"]["contexts"]
            words += [text for text, _ in shown]
        return words


def drawing(
    measured: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    nothing: str = "",
    shows_tokens: bool = False,
) -> Callable[[Callable[..., Figure]], Drawing]:
    """Make a function a figure; see `Drawing`."""
    return lambda draw: Drawing(draw, measured, nothing, shows_tokens)


def was_tested(results: Mapping[str, Any]) -> bool:
    """Whether Stage 3 tested a candidate."""
    return bool(results["validation_results"])


def style_for(words: Iterable[str]) -> Any:
    """`STYLE` with the fonts that the characters of some words need, matplotlib's own first."""
    characters = sorted(set("".join(words)))
    fonts = dict.fromkeys(font_of(character) or MAIN_FONT for character in characters)
    return {**STYLE, "font.family": [MAIN_FONT, *(f for f in fonts if f != MAIN_FONT)]}


def heat_map(axes: Axes, values: np.ndarray, texts: np.ndarray, label: str, **options: Any) -> None:
    """Shades of blue by value, with a text in each cell that can be read on its shade.

    Args:
        axes: what is drawn on.
        values: (rows, columns).
        texts: of the same shape.
        label: of the scale beside it.
        options: further ones of `seaborn.heatmap`.
    """
    there_before = len(axes.texts)
    scale = {"label": label} | options.pop("cbar_kws", {})
    seaborn.heatmap(
        values,
        ax=axes,
        cmap=seaborn.light_palette(BLUE, as_cmap=True),
        annot=texts,
        fmt="",
        annot_kws={"fontsize": NOTE_SIZE},
        linewidths=1,
        cbar_kws=scale,
        **options,
    )
    faces = np.asarray(axes.collections[0].get_facecolor()).reshape(*values.shape, 4)
    for text in axes.texts[there_before:]:
        column, row = (int(place) for place in text.get_position())
        is_dark = seaborn.utils.relative_luminance(faces[row, column]) < DARK
        text.set_color("white" if is_dark else INK)


def name_rows(axes: Axes, names: Iterable[str], width: int = 26) -> None:
    """Names instead of numbers on the vertical axis, the first on top."""
    labels = [drawable(name, width) for name in names]
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def note(
    axes: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], **look: Any
) -> None:
    """A small text beside a point, `shift` points away from it."""
    settings: dict[str, Any] = {"fontsize": NOTE_SIZE, "color": MUTED, **look}
    axes.annotate(text, at, shift, textcoords="offset points", **settings)
