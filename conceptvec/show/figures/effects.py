"""The scan: effects of all poles against Stage 2's scores, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from conceptvec.show.figures.drawing import drawing, heat_map, note
from conceptvec.show.style import BLUE, GRAY, GREEN, INK, MUTED, PALE, drawable, frame
from conceptvec.validation.rule import RULE

NO_SCORE, SIDE = -0.12, 0.04  # where poles and concepts without a score stand; half their width
LINEAR = 1e-3  # nats, below which the scale of effects is linear
TICKS = [-1, -0.1, -0.01, 0, 0.01, 0.1, 1]
SMALLEST = 1e-3  # nats, of an effect by layer that is drawn
BINS_TOGETHER = 2  # bins of the score whose shares are one point
FEWEST = 10  # poles of which a share is drawn


def was_scanned(results: Mapping[str, Any]) -> bool:
    """Whether the results hold the scan over all poles."""
    return bool(results["scan_overview"])


@drawing(was_scanned, "Nothing was scanned: run Stage 3.")
def effect_by_score(results: Mapping[str, Any]) -> Figure:
    """Effect of every pole on every concept against Stage 2's score of the pole for it.

    Above the distribution of effects at each score, with the candidates, and their vectors under
    other neurons' firing; below how many have a p that is seldom reached by chance. A label that
    said nothing would leave them on the line of chance.
    """
    overview = results["scan_overview"]
    counts = overview["effect_by_score"]
    figure, (above, below) = frame(
        results,
        "How much a vector's label says about its effect",
        height=6,
        note=f"{overview['poles_and_concepts']:,} poles and concepts, all layers",
        heights=(2.6, 1),
    )
    _densities(above, counts)
    _points(above, counts["moved"], results["validation_results"])
    _shares(below, counts)
    for axes in (above, below):
        axes.set_xlim(NO_SCORE - 1.5 * SIDE, 1.02)
        axes.axvline(NO_SCORE / 2 + SIDE / 2, color=PALE, lw=0.8)
        ticks = [NO_SCORE, 0, 0.25, 0.5, 0.75, 1]
        axes.set_xticks(ticks, ["no word\nof it", "0", "0.25", "0.5", "0.75", "1"])
    above.tick_params(labelbottom=False)
    above.set_ylabel("effect on the concept (nats)")
    below.set_xlabel("Stage 2 score of the pole for the concept")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _densities(axes: Axes, counts: Mapping[str, Any]) -> None:
    """How many poles have which score and effect, darker where there are more."""
    effects = np.array(counts["effect_edges"])
    columns = [(np.array([NO_SCORE - SIDE, NO_SCORE + SIDE]), np.array([counts["without_score"]]))]
    columns.append((np.array(counts["score_edges"]), np.array(counts["with_score"])))
    most = max(values.max() for _, values in columns)
    for edges, values in columns:
        axes.pcolormesh(
            edges,
            effects,
            np.ma.masked_equal(values.T, 0),
            cmap=seaborn.light_palette(BLUE, as_cmap=True),
            norm=LogNorm(0.5, max(int(most), 10)),
            rasterized=True,
        )
    _effect_scale(axes)


def _points(
    axes: Axes, moved: Sequence[Sequence[float]], entries: Sequence[Mapping[str, Any]]
) -> None:
    """The moved vectors, then Stage 2's candidates, those that are used in green."""
    looks: dict[str, Any] = {"s": 11, "zorder": 3, "linewidths": 0.6}
    axes.scatter(
        [score for score, _ in moved],
        [effect for _, effect in moved],
        color=GRAY,
        marker="x",
        label=f"moved vectors (n = {len(moved)})",
        **looks,
    )
    known = [entry for entry in entries if entry["scan"]["mean"] is not None]
    for is_used, color, label in (
        (False, INK, "candidates, not used"),
        (True, GREEN, "candidates, used"),
    ):
        chosen = [entry for entry in known if (entry["q_value"] <= RULE.q) == is_used]
        axes.scatter(
            [e["score"] for e in chosen],
            [e["scan"]["mean"] for e in chosen],
            facecolors=color if is_used else "none",
            edgecolors=color,
            label=f"{label} (n = {len(chosen)})",
            **looks,
        )


def _effect_scale(axes: Axes) -> None:
    """Nats, linear below `LINEAR` and logarithmic above."""
    axes.set_yscale("symlog", linthresh=LINEAR, linscale=0.6)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(-1, 3)
    axes.axhline(0, color=MUTED, lw=0.6)


def _shares(axes: Axes, counts: Mapping[str, Any]) -> None:
    """The share of poles with a small p, by score, and that of the moved vectors."""
    edges = np.array(counts["score_edges"])
    centres = (edges[:-1:BINS_TOGETHER] + edges[BINS_TOGETHER::BINS_TOGETHER]) / 2
    level = counts["level"]
    axes.axhline(level, color=MUTED, lw=0.8, ls="--")
    note(axes, "chance", (0.5, level), (0, 3), ha="center")
    for key, color, marker in (
        ("moved_seldom_by_score", GRAY, "x"),
        ("seldom_by_score", INK, "o"),
    ):
        total, seldom = (
            np.array([bin_[name] for bin_ in counts[key]]).reshape(-1, BINS_TOGETHER).sum(1)
            for name in ("n", "seldom")
        )
        # No line leads over a gap, where too few poles are for a share.
        share = np.where(total >= FEWEST, seldom / np.maximum(total, 1), np.nan)
        axes.plot(centres, share, color=color, marker=marker, ms=4, lw=1.2)
    rest = counts["seldom_without_score"]
    share = rest["seldom"] / max(rest["n"], 1)
    axes.plot([NO_SCORE], [share], color=INK, marker="o", ms=4)
    note(axes, f"{share:.1%}", (NO_SCORE, share), (0, 5), ha="center")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(bottom=0)
    axes.margins(y=0.25)
    axes.set_ylabel(f"p ≤ {level:g}")


@drawing(was_scanned, "Nothing was scanned: run Stage 3.")
def effect_by_layer(results: Mapping[str, Any]) -> Figure:
    """Heat map, concept by layer: the largest effect of a pole that serves the concept.

    In each cell stands how many of Stage 2's candidates are used.
    """
    by_layer = results["scan_overview"]["effect_by_layer"]
    concepts, layers = list(by_layer), results["layers"]
    effects = np.array([by_layer[concept] for concept in concepts], float)
    used = np.zeros(effects.shape, int)
    for entry in results["validation_results"]:
        used[concepts.index(entry["concept"]), layers.index(entry["layer"])] += (
            entry["q_value"] <= RULE.q
        )
    figure, (axes,) = frame(
        results,
        "Effect by layer",
        height=max(3.4, 0.3 * len(concepts) + 1.5),
        note=f"number in a cell: candidates that are used, {used.sum():,} in all",
    )
    top = max(float(effects.max(initial=0)), 10 * SMALLEST)
    heat_map(
        axes,
        np.clip(effects, SMALLEST, top),
        np.where(used > 0, used.astype(str), ""),
        "largest effect of a pole (nats)",
        norm=LogNorm(SMALLEST, top),
        xticklabels=layers,
        cbar_kws={"format": FuncFormatter(lambda value, _: f"{value:g}")},
    )
    axes.set_yticks(np.arange(len(concepts)) + 0.5, [drawable(c) for c in concepts], rotation=0)
    axes.set_xlabel("layer")
    return figure
