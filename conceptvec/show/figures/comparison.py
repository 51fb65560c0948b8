"""Two runs side by side: what each says of the vectors that both have as candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from conceptvec.show.figures.drawing import note, style_for
from conceptvec.show.style import BLUE, GRAY, GREEN, MUTED, ORANGE, drawable, frame

# Shape differs as well as colour; what is drawn first lies below.
MARKERS = {
    "neither": ("x", GRAY, "in neither"),
    "lost": ("v", ORANGE, "in the first alone"),
    "gained": ("^", BLUE, "in the other alone"),
    "kept": ("o", GREEN, "in both"),
}
LINEAR = 0.01  # nats: below, the scale is linear
TICKS = [-1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10]
PANEL_HEIGHT = 4.2  # inches


def comparison(document: Mapping[str, Any]) -> Figure:
    """First-order effect in the first run against that in each of the others.

    Args:
        document: of `tools.compare`.
    """
    panels = document["comparisons"]
    with matplotlib.rc_context(style_for(run["model"] for run in document["runs"])):
        figure, axes = frame(
            document,
            "The vectors of one run in another",
            height=PANEL_HEIGHT * len(panels) + 0.6,
            note="shapes: where a vector is validated",
            heights=(1,) * len(panels),
        )
        for panel, compared in zip(axes, panels, strict=True):
            _points(panel, compared)
        axes[-1].set_xlabel("effect on the concept's words in the first run (nats)")
        return figure


def _points(axes: Axes, compared: Mapping[str, Any]) -> None:
    """One comparison: the pairs, and how many vectors have no partner."""
    pairs = [v for v in compared["vectors"] if None not in (v["effect"], v["other_effect"])]
    for change, (marker, color, label) in MARKERS.items():
        chosen = [vector for vector in pairs if vector["change"] == change]
        axes.scatter(
            [vector["effect"] for vector in chosen],
            [vector["other_effect"] for vector in chosen],
            s=16,
            marker=marker,
            color=color,
            label=f"{label} (n = {len(chosen)})",
        )
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.set_yscale("symlog", linthresh=LINEAR)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(TICKS))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axline((0, 0), (1, 1), color=MUTED, lw=0.7, ls="--")
    axes.set_ylabel(f"in {drawable(compared['model'])} (nats)")
    axes.legend(loc="upper left", title="validated")
    left_out = len(compared["vectors"]) - len(pairs)
    text = f"without an effect in both, so not drawn: {left_out}"
    note(axes, text, (1, 0), (-4, 4), xycoords="axes fraction", ha="right")
