"""Figures, each a function of the results alone that returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

INK, BAR, PALE, HOT = "#333333", "#0072B2", "#BBBBBB", "#D55E00"  # Okabe & Ito: safe for colour-blind readers
MARKERS = {
    "validated": ("o", "#009E73"), "not_specific": ("s", "#E69F00"), "no_effect": ("v", "#56B4E9"),
    "inactive": ("x", "#999999"), "inconclusive": ("+", "#CC79A7"),
}  # fmt: skip
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
    "axes.titlesize": 11, "axes.titlelocation": "left", "savefig.dpi": 150, "figure.dpi": 100,
}  # fmt: skip


def _figure(results: Mapping[str, Any], title: str, size: tuple[float, float] = (7.5, 4.2)) -> tuple[Figure, Any]:
    """An empty figure whose title says which model and device the numbers come from."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
    model = results["model"]
    axes.set_title(f"{title}\n", loc="left")
    axes.text(0, 1.02, f"{model['id']}, {model['dtype']} on {model['device']}", transform=axes.transAxes, fontsize=8.5,
              color="#666666")  # fmt: skip
    return figure, axes


def score_distribution(results: Mapping[str, Any]) -> Figure:
    """Stage 2 scores of all poles and of the null directions, with the threshold."""
    poles, null = (np.array(results["score_histogram"][k], float) for k in ("poles", "null"))
    figure, axes = _figure(results, "Stage 2 scores against null directions")
    edges = np.linspace(0, 1, len(poles) + 1)
    axes.stairs(
        poles / max(poles.sum(), 1), edges, fill=True, color=BAR, alpha=0.75, label=f"poles, n = {poles.sum():,.0f}"
    )
    axes.stairs(null / max(null.sum(), 1), edges, color=HOT, lw=1.8, label=f"null directions, n = {null.sum():,.0f}")
    threshold = results["configuration"]["score_threshold"]
    axes.axvline(threshold, color=INK, ls="--", lw=1)
    axes.text(threshold + 0.01, 0.97, f"threshold {threshold:g}", transform=axes.get_xaxis_transform(), va="top")
    axes.set(yscale="log", xlabel="score (0 to 1)", ylabel="share of lists (log scale)", xlim=(0, 1))
    axes.legend(frameon=False, loc="upper center")
    return figure


def concept_distribution(results: Mapping[str, Any]) -> Figure:
    """Candidates and validated vectors per concept."""
    found, valid = results["candidate_distribution"], results["concept_distribution"]
    names = list(found)
    figure, axes = _figure(results, "Vectors per concept", (7.5, max(2.6, 0.32 * len(names) + 1.2)))
    y = np.arange(len(names))
    axes.barh(y, [found[n] for n in names], color=PALE, label=f"candidates (n = {sum(found.values())})")
    axes.barh(y, [valid.get(n, 0) for n in names], height=0.45, color="#009E73",
              label=f"causally validated (n = {sum(valid.values())})")  # fmt: skip
    axes.set_yticks(y, names)
    axes.invert_yaxis()
    axes.set_xlabel("poles of value vectors")
    axes.legend(frameon=False)
    return figure


def drops(results: Mapping[str, Any]) -> Figure:
    """Concept drop against unrelated drop of every tested candidate; null neurons as a cloud."""
    figure, axes = _figure(results, "What the model loses when a vector is damaged", (7.5, 5.4))
    nulls = results["null_calibration"].get("points", [])
    if nulls:
        axes.scatter(
            [p[4] for p in nulls], [p[3] for p in nulls], s=9, color=PALE, label=f"null neurons (n = {len(nulls)})"
        )
    entries = [e for e in results["validation_results"] if e["concept_drop"] is not None]
    for name, (marker, color) in MARKERS.items():
        some = [e for e in entries if e["verdict"] == name]
        if not some:
            continue
        x, y = [e["unrelated_drop"] for e in some], [e["concept_drop"] for e in some]
        if name == "validated":
            low = [max(e["selectivity"] - e["ci95"][0], 0) for e in some]
            high = [max(e["ci95"][1] - e["selectivity"], 0) for e in some]
            axes.errorbar(x, y, yerr=[low, high], fmt="none", ecolor=color, elinewidth=0.7, alpha=0.6)
        axes.scatter(
            x, y, s=26, marker=marker, color=color, label=f"{name.replace('_', ' ')} (n = {len(some)})", zorder=3
        )
    span = np.array(axes.get_xlim())
    axes.plot(span, span, color=INK, lw=0.8, ls=":")
    axes.text(
        0.99, 0.01, "dotted: same drop on both", transform=axes.transAxes, ha="right", fontsize=8, color="#666666"
    )
    kind = results["configuration"]["damage"][0]
    axes.set(xlabel=f"unrelated drop under {kind} (nats per answer token)",
             ylabel="concept drop (nats per answer token)", xlim=span)  # fmt: skip
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def layer_by_concept(results: Mapping[str, Any]) -> Figure:
    """Where the candidates and the validated vectors sit: layer by concept."""
    names, layers = list(results["candidate_distribution"]), results["layers"]
    grid, valid = np.zeros((2, len(names), len(layers)), int)
    for e in results["validation_results"]:
        cell = names.index(e["concept"]), layers.index(e["layer"])
        grid[cell] += 1
        valid[cell] += e["validated"]
    figure, axes = _figure(results, "Layer by concept: validated / tested", (7.5, max(2.8, 0.32 * len(names) + 1.4)))
    import seaborn

    text = np.array(
        [[f"{v}/{g}" if g else "" for v, g in zip(*row, strict=True)] for row in zip(valid, grid, strict=True)]
    )
    seaborn.heatmap(valid, ax=axes, cmap="viridis", annot=text if len(layers) <= 16 else False, fmt="",
                    xticklabels=layers, yticklabels=names, linewidths=0.5,
                    cbar_kws={"label": "validated vectors"})  # fmt: skip
    axes.set_xlabel("layer")
    axes.tick_params(axis="y", rotation=0)
    return figure


FIGURES = {
    "score_distribution": score_distribution, "concept_distribution": concept_distribution,
    "drops": drops, "layer_by_concept": layer_by_concept,
}  # fmt: skip


def save_figures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every figure whose numbers were measured as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    ready = {"score_distribution": "score_histogram", "concept_distribution": "concept_distribution"}
    paths = []
    for name, draw in FIGURES.items():
        if not results[ready.get(name, "validation_results")]:
            continue
        paths.append(folder / f"{name}.png")
        draw(results).savefig(paths[-1])
    return paths
