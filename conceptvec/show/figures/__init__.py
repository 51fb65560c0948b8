"""Figures of a run, each drawn from the results document alone.

A figure is called with the results and returns a matplotlib Figure that shows itself in a notebook.
What was not measured is not drawn: the figure then says so, and `measured` leaves it out.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptvec.runfolder import write_atomic
from conceptvec.show.backend import matplotlib as matplotlib
from conceptvec.show.figures.card import vector_card
from conceptvec.show.figures.comparison import comparison as comparison
from conceptvec.show.figures.counts import concept_distribution, funnel, layer_by_concept
from conceptvec.show.figures.damage import drops
from conceptvec.show.figures.drawing import Drawing
from conceptvec.show.figures.effects import effect_by_layer, effect_by_score
from conceptvec.show.figures.power import calibration as calibration
from conceptvec.show.figures.scores import score_distribution
from conceptvec.show.pictures import attempted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ALL = (
    funnel,
    score_distribution,
    concept_distribution,
    layer_by_concept,
    effect_by_score,
    effect_by_layer,
    drops,
    vector_card,
)
FIGURES: dict[str, Drawing] = {drawing.name: drawing for drawing in _ALL}


def measured(results: Mapping[str, Any]) -> list[str]:
    """Names of the figures whose numbers this document holds."""
    return [name for name, drawing in FIGURES.items() if drawing.measured(results)]


def save_figures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every measured figure as PNG, and remove what an earlier run measured besides.

    A figure that cannot be drawn is left out, and a line says so.
    """
    for name in FIGURES:
        earlier = folder / f"{name}.png"
        if not earlier.is_dir():  # what is there is not ours; it costs this one picture
            earlier.unlink(missing_ok=True)
    paths = [attempted(partial(_save, results, folder, name), name) for name in measured(results)]
    return [path for path in paths if path is not None]


def _save(results: Mapping[str, Any], folder: Path, name: str) -> Path:
    return save_figure(FIGURES[name](results), folder / f"{name}.png")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write one figure as PNG."""
    path, out = Path(path).expanduser(), io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    write_atomic(path, out.getvalue())
    return path
