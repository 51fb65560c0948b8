"""Stage 2: the scores of all poles against those of null directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from conceptvec.show.figures.drawing import NOTE_SIZE, drawing
from conceptvec.show.style import BLUE, INK, RED, frame


@drawing(lambda results: bool(results["score_histogram"]), "Nothing was scored: run Stage 2.")
def score_distribution(results: Mapping[str, Any]) -> Figure:
    """Stage 2 scores of all poles, with the threshold and the curve of the null directions."""
    poles = np.array(results["score_histogram"]["poles"], float)
    nulls = np.array(results["score_histogram"]["null"], float)
    threshold, share = (
        results["configuration"]["score_threshold"],
        results["scoring_nulls"].get("share"),
    )
    figure, (axes,) = frame(results, "Stage 2 scores against null directions", 3.9)
    edges = np.linspace(0, 1, len(poles) + 1)
    axes.stairs(
        poles / max(poles.sum(), 1),
        edges,
        fill=True,
        color=BLUE,
        alpha=0.75,
        label=f"poles, n = {poles.sum():,.0f}",
    )
    over = "" if share is None else f", {share:.1%} reach the threshold".replace("%", " %")
    axes.stairs(
        nulls / max(nulls.sum(), 1),
        edges,
        color=RED,
        lw=1.6,
        label=f"null directions, n = {nulls.sum():,.0f}{over}",
    )
    axes.axvline(threshold, color=INK, ls="--", lw=1)
    axes.text(
        threshold - 0.01,
        0.9,
        f"threshold {threshold:g}",
        transform=axes.get_xaxis_transform(),
        va="top",
        ha="right",
        fontsize=NOTE_SIZE,
    )
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xlabel("score (0 to 1)")
    axes.set_ylabel("share of lists (log scale)")
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.minorticks_off()
    figure.legend(loc="outside lower left", ncols=2)
    return figure


def _percent(share: float, _: Any) -> str:
    digits = f"{100 * share:.4f}".rstrip("0").rstrip(".")
    return f"{digits} %"
