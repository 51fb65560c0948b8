"""Figures, each a pure function of the results that returns a matplotlib Figure.

Where two classes meet, shape or place differs as well as colour. What was not measured is not drawn: `measured` names
the figures that a results document can fill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from conceptvec.show.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PALE,
    RED,
    STYLE,
    WIDTH,
    Plot,
    drawable,
    font_of,
    frame,
)  # fmt: skip
from conceptvec.text import number
from conceptvec.validation.rule import EFFECT_FLOOR, MAX_Q, SPECIFICITY

MARKERS = {
    "validated": ("o", GREEN), "not_specific": ("s", ORANGE), "no_effect": ("v", "#56b4e9"),
    "inactive": ("x", "#8a8a8a"), "inconclusive": ("+", "#cc79a7"),
}  # fmt: skip


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under `STYLE`, with the fonts that the concepts' names and the drawn entry's tokens need."""

    @wraps(draw)
    def styled(results: Mapping[str, Any], *args: Any) -> Figure:
        words = [*results["candidate_distribution"], results["model"]["id"]]
        for e in results["validation_results"] if args or draw.__name__ == "vector_card" else ():
            words += [t for t, _ in [*e["top_tokens"], *e.get("opposite_tokens", ())]]
            words += [text for text, _ in e["activation"]["contexts"]]
        needed = dict.fromkeys(font_of(ch) or "DejaVu Sans" for ch in sorted(set("".join(words))))
        family = ["DejaVu Sans", *(name for name in needed if name != "DejaVu Sans")]
        style: Any = {**STYLE, "font.family": family}
        with matplotlib.rc_context(style):
            if draw.__name__ not in measured(results):
                figure, (axes,) = frame(results, draw.__name__.replace("_", " ").capitalize(), 1.4)
                axes.set_axis_off()
                axes.text(0, 0.5, NOTHING[draw.__name__], transform=axes.transAxes, va="center")
                return figure
            return draw(results, *args)

    return styled


def _concept_axis(axes: Axes, names: Iterable[str]) -> None:
    labels = [drawable(n) for n in names]
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)


@_styled
def funnel(results: Mapping[str, Any]) -> Figure:
    """How many neurons and poles each step of the pipeline left."""
    steps = {
        "total_candidates": "neurons examined", "filtered_candidates": "neurons past the filter",
        "concept_candidates": "concept candidates (poles)", "tested_vectors": "poles damaged",
        "validated_vectors": "validated poles",
    }  # fmt: skip
    stats = results["pipeline_stats"]
    found = [(text, stats[key]) for key, text in steps.items() if stats[key] is not None]
    nulls = results["null_calibration"]
    note = "null neurons that pass the tests of the primary damage: {false_validations} of {tested}"
    figure, (axes,) = frame(
        results, "From neurons to validated concept vectors", 0.42 * len(found) + 1.5,
        note=note.format(**nulls) if nulls.get("tested") else "",
    )  # fmt: skip
    colors = [PALE, PALE, BLUE, BLUE, GREEN]
    axes.barh(range(len(found)), [n for _, n in found], color=colors, height=0.66)
    for y, (_, n) in enumerate(found):
        axes.annotate(
            f"{n:,}", (n, y), (5, 0), textcoords="offset points", va="center", fontweight="bold"
        )
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, max(n for _, n in found) * 4 + 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()
    _concept_axis(axes, [text for text, _ in found])
    axes.set_xlabel("count (logarithmic from 1)")
    return figure


@_styled
def score_distribution(results: Mapping[str, Any]) -> Figure:
    """Stage 2 scores of all poles, with the threshold and the curve of the null directions."""
    poles, null = (np.array(results["score_histogram"][k], float) for k in ("poles", "null"))
    figure, (axes,) = frame(results, "Stage 2 scores against null directions", 3.9)
    edges = np.linspace(0, 1, len(poles) + 1)
    threshold = results["configuration"]["score_threshold"]
    share = results["scoring_nulls"].get("share")
    over = "" if share is None else f", {share:.1%} reach the threshold".replace("%", " %")
    axes.stairs(poles / max(poles.sum(), 1), edges, fill=True, color=BLUE, alpha=0.75,
                label=f"poles, n = {poles.sum():,.0f}")  # fmt: skip
    axes.stairs(null / max(null.sum(), 1), edges, color=RED, lw=1.6,
                label=f"null directions, n = {null.sum():,.0f}{over}")  # fmt: skip
    axes.axvline(threshold, color=INK, ls="--", lw=1)
    axes.text(threshold - 0.01, 0.9, f"threshold {threshold:g}", transform=axes.get_xaxis_transform(), va="top",
              ha="right", fontsize=8.5)  # fmt: skip
    axes.set(
        yscale="log", xlabel="score (0 to 1)", ylabel="share of lists (log scale)", xlim=(0, 1)
    )
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.4%}".rstrip("%").rstrip("0").rstrip(".") + " %")
    )
    axes.minorticks_off()
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@_styled
def concept_distribution(results: Mapping[str, Any]) -> Figure:
    """Candidates and validated vectors per concept."""
    found, valid = results["candidate_distribution"], results["concept_distribution"]
    figure, (axes,) = frame(results, "Vectors per concept", max(2.6, 0.3 * len(found) + 1.5))
    y = np.arange(len(found))
    axes.barh(
        y,
        list(found.values()),
        height=0.72,
        color=PALE,
        label=f"candidates, n = {sum(found.values())}",
    )
    if valid:
        axes.barh(y, [valid.get(n, 0) for n in found], height=0.4, color=GREEN,
                  label=f"causally validated, n = {sum(valid.values())}")  # fmt: skip
    for i, (name, n) in enumerate(found.items()):
        text = f"{valid.get(name, 0)} of {n}" if valid else f"{n}"
        axes.annotate(
            text, (n, i), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=MUTED
        )
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _concept_axis(axes, found)
    axes.set_xlabel("poles of value vectors")
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@_styled
def layer_by_concept(results: Mapping[str, Any]) -> Figure:
    """Heat map of the tested poles, layer by concept; in each cell validated / tested."""
    import seaborn

    names, layers = list(results["candidate_distribution"]), results["layers"]
    tested, valid = np.zeros((2, len(names), len(layers)), int)
    for e in results["validation_results"]:
        cell = names.index(e["concept"]), layers.index(e["layer"])
        tested[cell] += 1
        valid[cell] += e["validated"]
    wide = len(layers) > 14  # then a cell has room for one number: what was validated
    text = [
        [
            (f"{v}" if v else "") if wide else f"{v}/{n}" if n else ""
            for v, n in zip(*row, strict=True)
        ]
        for row in zip(valid, tested, strict=True)
    ]
    cell = "number in a cell: validated" if wide else "in a cell: validated/tested"
    note = f"{valid.sum()} validated of {tested.sum()} tested; {cell}"
    figure, (axes,) = frame(
        results, "Layer by concept", max(3.4, 0.3 * len(names) + 1.5), note=note
    )
    seaborn.heatmap(
        tested, ax=axes, cmap=seaborn.light_palette(BLUE, as_cmap=True), mask=tested == 0, annot=np.array(text), fmt="",
        annot_kws={"fontsize": 8.5}, vmin=0, vmax=max(tested.max(), 2), xticklabels=layers, linewidths=1,
        cbar_kws={"label": "tested poles", "ticks": MaxNLocator(integer=True)},
    )  # fmt: skip
    for y, x in np.argwhere(valid):  # a frame: visible without telling colours apart
        axes.add_patch(Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, fill=False, ec=GREEN, lw=2))
    axes.hlines(np.arange(1, len(names)), 0, len(layers), color=PALE, lw=0.4)
    axes.set_yticks(np.arange(len(names)) + 0.5, [drawable(n) for n in names], rotation=0)
    axes.set_xlabel("layer")
    return figure


@_styled
def drops(results: Mapping[str, Any]) -> Figure:
    """Concept drop against unrelated drop of every tested pole, verdict by marker; null neurons as a cloud."""
    note = "bars: 95 % interval of concept − unrelated drop"
    figure, (axes,) = frame(
        results, "What the model loses when a vector is damaged", 5.2, note=note
    )
    points = results["null_calibration"].get("points", [])
    axes.scatter([p[4] for p in points], [p[3] for p in points], s=8, color=PALE, lw=0,
                 label=f"null neurons (n = {len(points)})")  # fmt: skip
    entries = [e for e in results["validation_results"] if e["concept_drop"] is not None]
    for name, (marker, color) in MARKERS.items():
        some = [e for e in entries if e["verdict"] == name]
        if not some:
            continue
        x, y = [e["unrelated_drop"] for e in some], [e["concept_drop"] for e in some]
        full = [e for e in some if e["ci95"][0] is not None and not e["stopped_early"]]
        low, high = (
            [max(s * (e["selectivity"] - e["ci95"][i]), 0) for e in full]
            for i, s in ((0, 1), (1, -1))
        )
        axes.errorbar([e["unrelated_drop"] for e in full], [e["concept_drop"] for e in full], yerr=[low, high],
                      fmt="none", ecolor=color, elinewidth=0.8, alpha=0.6)  # fmt: skip
        axes.scatter(x, y, s=28, marker=marker, color=color, zorder=3, lw=1.2 if marker in "x+" else 0,
                     label=f"{name.replace('_', ' ')} (n = {len(some)})")  # fmt: skip
    both = [(p[3], p[4]) for p in points] + [
        (e["concept_drop"], e["unrelated_drop"]) for e in entries
    ]
    reach = max([abs(v) for pair in both for v in pair] + [2 * EFFECT_FLOOR])
    edge = np.geomspace(EFFECT_FLOOR, 4 * reach, 60)
    axes.fill_between(
        np.r_[-4 * reach, SPECIFICITY * edge], np.r_[EFFECT_FLOOR, edge], 4 * reach, color=GREEN, alpha=0.07, lw=0,
        label="large and specific enough",
    )  # fmt: skip
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=EFFECT_FLOOR, linscale=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_major_locator(FixedLocator([-5, -1, -0.5, -0.1, -0.05, 0, 0.05, 0.1, 0.5, 1, 5]))
        axis.set_minor_locator(NullLocator())
    low = min(
        [
            -EFFECT_FLOOR / 2,
            *(1.3 * e[k] for e in entries for k in ("concept_drop", "unrelated_drop")),
        ]
    )
    axes.set(xlim=(low, 1.5 * reach), ylim=(low, 2 * reach),
             xlabel=f"unrelated drop under {results['configuration']['damage'][0]} (nats per answer token)",
             ylabel="concept drop (nats per answer token)")  # fmt: skip
    figure.legend(loc="outside lower left", ncols=3)
    return figure


@_styled
def dose_response(results: Mapping[str, Any]) -> Figure:
    """Drops of the validated vectors under noise of growing norm: each vector thin, their mean bold."""
    curves = [e["dose_response"] for e in results["validation_results"] if e.get("dose_response")]
    figure, panels = frame(results, "Dose-response of the validated vectors", 3.7, columns=2)
    panels_of = (
        ("concept_drop", "concept prompts", GREEN),
        ("unrelated_drop", "unrelated prompts", RED),
    )
    for axes, (key, text, color) in zip(panels, panels_of, strict=True):
        ratios = [p["ratio"] for p in curves[0]]
        values = np.array([[p[key] for p in curve] for curve in curves], float)
        axes.plot(ratios, values.T, color=color, lw=0.7, alpha=0.45)
        axes.plot(
            ratios, values.mean(0), color=color, lw=2.4, marker="o", label=f"mean of {len(curves)}"
        )
        axes.axhline(0, color=PALE, lw=0.8, zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ratios, [f"{r:g}" for r in ratios])
        axes.set_xlabel(f"norm of the noise / norm of the vector\n({text})")
    panels[0].set_ylabel("drop (nats per answer token)")
    panels[0].legend(loc="upper left")
    return figure


@_styled
def vector_card(results: Mapping[str, Any], vector: str | None = None) -> Figure:
    """One tested vector: promoted and suppressed tokens, its damage, the contexts that excite it most.

    Args:
        results: the results.
        vector: its id, such as ``L12_N0345+``; the best one where none is given.
    """
    entries = results["validation_results"]
    e = next((e for e in entries if vector in (None, e["id"])), None)
    if e is None:
        raise ValueError(
            f"{vector!r} is not among the {len(entries)} tested vectors; see results['validation_results']"
        )
    figure = Plot(figsize=(WIDTH, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(3.4, 1), width_ratios=(1, 1, 0.9))
    title = [
        e["id"],
        drawable(e["concept"]),
        e["verdict"].replace("_", " "),
        f"score {number(e['score'], 2)}",
    ]
    figure.suptitle("   ".join(title), x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    turned = "" if e["pole"] == "+" else " by negative a"
    poles = [
        (e["top_tokens"], "promoted" + turned, BLUE),
        (e.get("opposite_tokens", []), "suppressed", ORANGE),
    ]
    for column, (tokens, text, color) in enumerate(poles):
        axes = figure.add_subplot(grid[0, column])
        axes.set_title(text if tokens else f"{text}: not in the file", loc="left", fontsize=10)
        if not tokens:
            axes.set_axis_off()
            continue
        axes.barh(
            range(len(tokens[:14])), [abs(v) for _, v in tokens[:14]], color=color, height=0.7
        )
        _concept_axis(axes, [drawable(t, 16) for t, _ in tokens[:14]])
        axes.set_xlabel("|readout|")
    axes = figure.add_subplot(grid[0, 2])
    axes.set_title("damage", loc="left", fontsize=10)
    for shift, key, color in ((-0.2, "concept_drop", GREEN), (0.2, "unrelated_drop", RED)):
        found = [(i, d[key]) for i, d in enumerate(e["damage"].values()) if d[key] is not None]
        axes.bar(
            [i + shift for i, _ in found],
            [v for _, v in found],
            width=0.38,
            color=color,
            label=key.split("_")[0],
        )
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
    axes.set_xticks(range(len(e["damage"])), list(e["damage"]))
    axes.set_ylabel("drop (nats per answer token)")
    axes.legend(fontsize=8)
    axes = figure.add_subplot(grid[1, :])
    axes.set_axis_off()
    a = e["activation"]
    low, high = (number(x, 2) for x in e["ci95"])
    lines = [
        f"selectivity {number(e['selectivity'])} [{low}, {high}] nats, q {number(e['q_value'])}, "
        f"n = {e['n_concept_prompts']} concept and {e['n_unrelated_prompts']} unrelated prompts",
        f"fires on {a['firing_rate']:.1%} of the corpus, largest |a| {a['max_abs']:.3g}; strongest activations a:",
    ]
    lines += [f"{value:+.2f}  {drawable(text, 88)}" for text, value in a["contexts"][:4]]
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=8.5, color=MUTED, linespacing=1.5)
    return figure


FIGURES: dict[str, Callable[..., Figure]] = {
    "funnel": funnel, "score_distribution": score_distribution, "concept_distribution": concept_distribution,
    "layer_by_concept": layer_by_concept, "drops": drops, "dose_response": dose_response, "vector_card": vector_card,
}  # fmt: skip


NOTHING = {  # what a figure says where its numbers are not in the document
    "score_distribution": "Nothing was scored: run Stage 2.",
    "concept_distribution": "Nothing was scored: run Stage 2.",
    "layer_by_concept": "No candidate was tested, so there is nothing to draw.",
    "drops": "No candidate was measured, so there is nothing to draw.",
    "dose_response": "No vector was validated, so there is nothing to draw.",
    "vector_card": "No candidate was tested, so there is nothing to draw.",
}


def measured(results: Mapping[str, Any]) -> list[str]:
    """Names of the figures whose numbers this document holds."""
    entries = results["validation_results"]
    missing = {
        "score_distribution": not results["score_histogram"],
        "concept_distribution": not results["candidate_distribution"],
        "layer_by_concept": not entries,
        "drops": all(e["concept_drop"] is None for e in entries),
        "dose_response": not any(e.get("dose_response") for e in entries),
        "vector_card": not entries,
    }
    return [name for name in FIGURES if not missing.get(name)]


def save_figures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every measured figure as PNG, and remove what an earlier run measured and this one did not."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        (folder / f"{name}.png").unlink(missing_ok=True)
    paths = []
    for name in measured(results):
        paths.append(folder / f"{name}.png")
        FIGURES[name](results).savefig(paths[-1], dpi=150)
    return paths


def calibration(document: Mapping[str, Any]) -> Figure:
    """What `calibrate` found: power against the worth of planted vectors, and p-values where nothing is there."""
    false = {name: document[name] for name in ("random", "firing", "permuted")}
    looks = dict(zip(false, ((BLUE, "-"), (ORANGE, "--"), (RED, "-.")), strict=True))
    style: Any = {**STYLE, "font.family": ["DejaVu Sans"]}
    with matplotlib.rc_context(style):
        figure, (left, right) = frame(document, "Stage 3 tested on itself", 3.9, columns=2)
        rows = [row for row in document["planted"] if row["vectors"]]
        rates = np.array([[r["rate"], *r["ci95"]] for r in rows]).reshape(-1, 3).T
        errors = np.maximum([rates[0] - rates[1], rates[2] - rates[0]], 0)
        left.errorbar(
            [r["effect"] for r in rows], rates[0], errors, marker="o", capsize=3, color=GREEN
        )
        for row, rate in zip(rows, rates[0], strict=True):
            text = f"{row['validated']} of {row['vectors']}"
            left.annotate(
                text,
                (row["effect"], rate),
                (6, 16 if rate < 0.1 else -11),
                textcoords="offset points",
                fontsize=8.5,
                color=MUTED,
            )
        left.axhline(MAX_Q, color=INK, ls=":", lw=0.8)
        left.set(
            xlabel="worth of a planted vector (nats)",
            ylabel="planted vectors validated (share)",
            ylim=(-0.05, 1.05),
        )
        left.margins(x=0.15)
        for name, group in false.items():
            p = np.sort([v for v in group["p_values"] if v is not None])
            share = np.append(np.arange(1, len(p) + 1), len(p)) / max(len(p), 1)
            label = f"{name}: {group['validated']} of {group['vectors']} validated"
            right.step(
                np.append(p, 1),
                share,
                where="post",
                color=looks[name][0],
                ls=looks[name][1],
                label=label,
            )
        right.plot([0, 1], [0, 1], color=PALE, lw=0.8)
        right.set(xlabel="p (share of the tested false candidates at most p)", xlim=(0, 1))
        right.legend(loc="upper left")
        return figure
