"""How many: along the pipeline, per concept, and per layer and concept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from conceptvec.show.figures.drawing import drawing, heat_map, name_rows, note, was_tested
from conceptvec.show.style import BLUE, GREEN, INK, PALE, drawable, frame

STEPS = {
    "total_candidates": ("neurons examined", PALE),
    "filtered_candidates": ("neurons past the filter", PALE),
    "concept_candidates": ("concept candidates (poles)", BLUE),
    "tested_vectors": ("poles tested", BLUE),
    "validated_vectors": ("validated poles", GREEN),
}
MANY_LAYERS = 14  # with more of them a cell has room for one number


@drawing()
def funnel(results: Mapping[str, Any]) -> Figure:
    """How many neurons and poles each step of the pipeline left."""
    stats, nulls = results["pipeline_stats"], results["null_calibration"]
    steps = [(*STEPS[key], stats[key]) for key in STEPS if stats[key] is not None]
    names, colors, counts = zip(*steps, strict=True)
    passed = "null neurons that pass the same tests: {false_validations} of {n}"
    figure, (axes,) = frame(
        results,
        "From neurons to validated concept vectors",
        height=0.42 * len(steps) + 1.5,
        note=passed.format(**nulls) if nulls.get("n") else "",
    )
    axes.barh(range(len(steps)), counts, color=colors, height=0.66)
    for row, count in enumerate(counts):
        bold: dict[str, Any] = {"va": "center", "fontweight": "bold", "fontsize": 10, "color": INK}
        note(axes, f"{count:,}", (count, row), (5, 0), **bold)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, max(counts) * 4 + 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()
    name_rows(axes, names)
    axes.set_xlabel("count (logarithmic from 1)")
    return figure


@drawing(
    lambda results: bool(results["candidate_distribution"]), "Nothing was scored: run Stage 2."
)
def concept_distribution(results: Mapping[str, Any]) -> Figure:
    """Candidates and validated vectors per concept."""
    candidates, valid = results["candidate_distribution"], results["concept_distribution"]
    height = max(2.6, 0.3 * len(candidates) + 1.5)
    figure, (axes,) = frame(results, "Vectors per concept", height)
    rows = np.arange(len(candidates))
    total = sum(candidates.values())
    axes.barh(
        rows, list(candidates.values()), height=0.72, color=PALE, label=f"candidates, n = {total}"
    )
    if valid:
        counts = [valid.get(name, 0) for name in candidates]
        label = f"causally validated, n = {sum(valid.values())}"
        axes.barh(rows, counts, height=0.4, color=GREEN, label=label)
    for row, (name, count) in enumerate(candidates.items()):
        text = f"{valid.get(name, 0)} of {count}" if valid else f"{count}"
        note(axes, text, (count, row), (4, 0), va="center")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    name_rows(axes, candidates)
    axes.set_xlabel("poles of value vectors")
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@drawing(was_tested, "No candidate was tested, so there is nothing to draw.")
def layer_by_concept(results: Mapping[str, Any]) -> Figure:
    """Heat map of the tested poles, layer by concept; in each cell validated / tested."""
    concepts, layers = list(results["candidate_distribution"]), results["layers"]
    tested, valid = _count(results, concepts, layers)
    is_wide = len(layers) > MANY_LAYERS
    legend = "number in a cell: validated" if is_wide else "in a cell: validated/tested"
    figure, (axes,) = frame(
        results,
        "Layer by concept",
        height=max(3.4, 0.3 * len(concepts) + 1.5),
        note=f"{valid.sum()} validated of {tested.sum()} tested; {legend}",
    )
    heat_map(
        axes,
        tested,
        _cell_texts(tested, valid, is_wide),
        "tested poles",
        mask=tested == 0,
        vmin=0,
        vmax=max(tested.max(), 2),
        xticklabels=layers,
        cbar_kws={"ticks": MaxNLocator(integer=True)},
    )
    _frame_hits(axes, valid)
    axes.set_yticks(np.arange(len(concepts)) + 0.5, [drawable(c) for c in concepts], rotation=0)
    axes.set_xlabel("layer")
    return figure


def _count(
    results: Mapping[str, Any], concepts: list[str], layers: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Tested and validated poles: (concepts, layers) each."""
    tested, valid = np.zeros((2, len(concepts), len(layers)), int)
    for entry in results["validation_results"]:
        cell = concepts.index(entry["concept"]), layers.index(entry["layer"])
        tested[cell] += 1
        valid[cell] += entry["validated"]
    return tested, valid


def _cell_texts(tested: np.ndarray, valid: np.ndarray, is_wide: bool) -> np.ndarray:
    texts = np.full(tested.shape, "", dtype=object)
    for cell in np.argwhere(tested):
        hits, total = valid[tuple(cell)], tested[tuple(cell)]
        texts[tuple(cell)] = (f"{hits}" if hits else "") if is_wide else f"{hits}/{total}"
    return texts


def _frame_hits(axes: Axes, valid: np.ndarray) -> None:
    """Frames around cells with a validated pole, visible without colours; lines under the rows."""
    for row, column in np.argwhere(valid):
        corner = (column + 0.04, row + 0.04)
        axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, ec=GREEN, lw=2))
    axes.hlines(np.arange(1, len(valid)), 0, valid.shape[1], color=PALE, lw=0.4)
