"""Stage 3: what the model loses when a vector is damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from conceptvec.show.figures.drawing import drawing
from conceptvec.show.style import GRAY, GREEN, ORANGE, PALE, PURPLE, SKY, frame
from conceptvec.validation.rule import RULE

# Where two classes meet, shape differs as well as colour.
MARKERS = {
    "validated": ("o", GREEN),
    "not_specific": ("s", ORANGE),
    "no_effect": ("v", SKY),
    "inactive": ("x", GRAY),
    "inconclusive": ("+", PURPLE),
}
TICKS = [-5, -1, -0.5, -0.1, -0.05, 0, 0.05, 0.1, 0.5, 1, 5]


@drawing(
    lambda results: any(e["concept_drop"] is not None for e in results["validation_results"]),
    "No candidate was measured, so there is nothing to draw.",
)
def drops(results: Mapping[str, Any]) -> Figure:
    """Concept drop against unrelated drop of every damaged pole, with the controls in grey."""
    entries = [e for e in results["validation_results"] if e["concept_drop"] is not None]
    controls = _control_points(results["null_calibration"])
    figure, (axes,) = frame(
        results,
        "What the model loses when a vector is damaged",
        height=5.2,
        note="bars: 95 % interval of concept − unrelated drop",
    )
    axes.scatter(
        [point["unrelated_drop"] for point in controls],
        [point["concept_drop"] for point in controls],
        s=12,
        color=PALE,
        lw=0,
        label=f"controls that were damaged (n = {len(controls)})",
    )
    for verdict in MARKERS:
        if chosen := [e for e in entries if e["verdict"] == verdict]:
            _mark(axes, verdict, chosen)
    _large_and_specific(axes, _reach(entries, controls), _lowest(entries))
    kind = results["configuration"]["damage"][0]
    axes.set_xlabel(f"unrelated drop under {kind} (nats)")
    axes.set_ylabel("concept drop (nats)")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _control_points(calibration: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Null neurons, wrong concepts and moved vectors whose drops were measured."""
    groups = [calibration, *(calibration.get(kind, {}) for kind in ("wrong_concept", "moved"))]
    points = [point for group in groups for point in group.get("points", [])]
    return [point for point in points if point["unrelated_drop"] is not None]


def _mark(axes: Axes, verdict: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """The entries of one verdict, with their intervals."""
    marker, color = MARKERS[verdict]
    complete = [e for e in entries if e["ci95"][0] is not None]
    below = [max(e["selectivity"] - e["ci95"][0], 0) for e in complete]
    above = [max(e["ci95"][1] - e["selectivity"], 0) for e in complete]
    axes.errorbar(
        [e["unrelated_drop"] for e in complete],
        [e["concept_drop"] for e in complete],
        yerr=[below, above],
        fmt="none",
        ecolor=color,
        elinewidth=0.8,
        alpha=0.6,
    )
    axes.scatter(
        [e["unrelated_drop"] for e in entries],
        [e["concept_drop"] for e in entries],
        s=28,
        marker=marker,
        color=color,
        zorder=3,
        lw=1.2 if marker in "x+" else 0,
        label=f"{verdict.replace('_', ' ')} (n = {len(entries)})",
    )


def _reach(entries: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]]) -> float:
    """The largest |drop| that is drawn."""
    drawn = [*entries, *controls]
    values = [point[key] for point in drawn for key in ("concept_drop", "unrelated_drop")]
    return max(2 * RULE.drop, *map(abs, values))


def _lowest(entries: Sequence[Mapping[str, Any]]) -> float:
    values = [1.3 * e[key] for e in entries for key in ("concept_drop", "unrelated_drop")]
    return min(-RULE.drop / 2, *values)


def _large_and_specific(axes: Axes, reach: float, lowest: float) -> None:
    """The region of large and specific drops, on scales that are linear below the floor."""
    edge = np.geomspace(RULE.drop, 4 * reach, 60)
    axes.fill_between(
        np.r_[-4 * reach, RULE.unrelated * edge],
        np.r_[RULE.drop, edge],
        4 * reach,
        color=GREEN,
        alpha=0.07,
        lw=0,
        label="large and specific enough",
    )
    axes.set_xscale("symlog", linthresh=RULE.drop, linscale=0.8)
    axes.set_yscale("symlog", linthresh=RULE.drop, linscale=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_major_locator(FixedLocator(TICKS))
        axis.set_minor_locator(NullLocator())
    axes.set_xlim(lowest, 1.5 * reach)
    axes.set_ylim(lowest, 2 * reach)
