"""Stage 3: what the model loses when a vector is damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from conceptvec.show.figures.drawing import drawing
from conceptvec.show.style import GRAY, GREEN, ORANGE, PALE, PURPLE, RED, SKY, frame
from conceptvec.validation.rule import EFFECT_FLOOR, SPECIFICITY

# Where two classes meet, shape differs as well as colour.
MARKERS = {
    "validated": ("o", GREEN),
    "not_specific": ("s", ORANGE),
    "no_effect": ("v", SKY),
    "inactive": ("x", GRAY),
    "inconclusive": ("+", PURPLE),
}
TICKS = [-5, -1, -0.5, -0.1, -0.05, 0, 0.05, 0.1, 0.5, 1, 5]
LAYER, NEURON, TESTED_AS, CONCEPT_DROP, UNRELATED_DROP = range(5)  # of a null neuron's point


@drawing(
    lambda results: any(e["concept_drop"] is not None for e in results["validation_results"]),
    "No candidate was measured, so there is nothing to draw.",
)
def drops(results: Mapping[str, Any]) -> Figure:
    """Concept drop against unrelated drop of every tested pole, with null neurons as a cloud."""
    entries = [e for e in results["validation_results"] if e["concept_drop"] is not None]
    nulls = results["null_calibration"].get("points", [])
    figure, (axes,) = frame(
        results,
        "What the model loses when a vector is damaged",
        height=5.2,
        note="bars: 95 % interval of concept − unrelated drop",
    )
    axes.scatter(
        [point[UNRELATED_DROP] for point in nulls],
        [point[CONCEPT_DROP] for point in nulls],
        s=8,
        color=PALE,
        lw=0,
        label=f"null neurons (n = {len(nulls)})",
    )
    for verdict in MARKERS:
        if chosen := [e for e in entries if e["verdict"] == verdict]:
            _mark(axes, verdict, chosen)
    _large_and_specific(axes, _reach(entries, nulls), _lowest(entries))
    kind = results["configuration"]["damage"][0]
    axes.set_xlabel(f"unrelated drop under {kind} (nats per answer token)")
    axes.set_ylabel("concept drop (nats per answer token)")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _mark(axes: Axes, verdict: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """The entries of one verdict, with intervals where all draws were made."""
    marker, color = MARKERS[verdict]
    complete = [e for e in entries if e["ci95"][0] is not None and not e["stopped_early"]]
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


def _reach(entries: Sequence[Mapping[str, Any]], nulls: Sequence[Sequence[Any]]) -> float:
    """The largest |drop| that is drawn."""
    values = [e[key] for e in entries for key in ("concept_drop", "unrelated_drop")]
    values += [value for point in nulls for value in (point[CONCEPT_DROP], point[UNRELATED_DROP])]
    return max(2 * EFFECT_FLOOR, *map(abs, values))


def _lowest(entries: Sequence[Mapping[str, Any]]) -> float:
    values = [1.3 * e[key] for e in entries for key in ("concept_drop", "unrelated_drop")]
    return min(-EFFECT_FLOOR / 2, *values)


def _large_and_specific(axes: Axes, reach: float, lowest: float) -> None:
    """The region of large and specific drops, on scales that are linear below the floor."""
    edge = np.geomspace(EFFECT_FLOOR, 4 * reach, 60)
    axes.fill_between(
        np.r_[-4 * reach, SPECIFICITY * edge],
        np.r_[EFFECT_FLOOR, edge],
        4 * reach,
        color=GREEN,
        alpha=0.07,
        lw=0,
        label="large and specific enough",
    )
    axes.set_xscale("symlog", linthresh=EFFECT_FLOOR, linscale=0.8)
    axes.set_yscale("symlog", linthresh=EFFECT_FLOOR, linscale=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_major_locator(FixedLocator(TICKS))
        axis.set_minor_locator(NullLocator())
    axes.set_xlim(lowest, 1.5 * reach)
    axes.set_ylim(lowest, 2 * reach)


@drawing(
    lambda results: any(e.get("dose_response") for e in results["validation_results"]),
    "No vector was validated, so there is nothing to draw.",
)
def dose_response(results: Mapping[str, Any]) -> Figure:
    """Drops of the validated vectors under noise of growing norm: vectors thin, their mean bold."""
    entries = results["validation_results"]
    curves = [e["dose_response"] for e in entries if e.get("dose_response")]
    title = "Dose-response of the validated vectors"
    figure, (left, right) = frame(results, title, height=3.7, columns=2)
    _doses(left, curves, "concept_drop", GREEN)
    _doses(right, curves, "unrelated_drop", RED)
    left.set_ylabel("drop (nats per answer token)")
    left.legend(loc="upper left")
    return figure


def _doses(axes: Axes, curves: Sequence[Sequence[Mapping[str, Any]]], key: str, color: str) -> None:
    ratios = [dose["ratio"] for dose in curves[0]]
    values = np.array(
        [[dose[key] for dose in curve] for curve in curves], float
    )  # (vectors, doses)
    axes.plot(ratios, values.T, color=color, lw=0.7, alpha=0.45)
    label = f"mean of {len(curves)}"
    axes.plot(ratios, values.mean(0), color=color, lw=2.4, marker="o", label=label)
    axes.axhline(0, color=PALE, lw=0.8, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    prompts = key.removesuffix("_drop")
    axes.set_xlabel(f"norm of the noise / norm of the vector\n({prompts} prompts)")
