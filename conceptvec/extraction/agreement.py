"""A sample of the projection's own rows against full readouts in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from conceptvec.extraction.poles import Projections
from conceptvec.model.reference import agreement, exact_readouts
from conceptvec.model.weights import Weights
from conceptvec.streams import rng

READOUT = 1e-4  # allowed difference of readouts, relative to the largest of the row
LAYERS = 32  # that are looked at, at most
Row = tuple[Projections, int]


def projection_agreement(
    model: Weights, layers: Sequence[Projections], masked: np.ndarray, fold: str, seed: int
) -> dict[str, Any]:
    """One neuron per layer: both kept poles against its full readout.

    Args:
        model: the model.
        layers: what is checked.
        masked: bool (V,), the tokens that are never shown.
        fold: of the readouts.
        seed: which chooses the neurons.

    Raises:
        RunError: the values differ, or a token that belongs to a pole was left out.
    """
    stream = rng(seed, "projection agreement")
    every = -(-len(layers) // LAYERS)
    rows = [(layer, int(stream.integers(len(layer.neurons)))) for layer in layers[::every]]
    difference = readout_difference(model, rows, np.flatnonzero(~masked), fold)
    unit = "relative to the largest readout of the row"
    return agreement("projection", len(rows), difference, READOUT, unit, model.device)


def readout_difference(model: Weights, rows: Sequence[Row], shown: np.ndarray, fold: str) -> float:
    """The largest difference of kept values from the full readouts, relative to the row's largest.

    Args:
        model: the model.
        rows: projections of a layer, and a row of theirs.
        shown: the ids of the tokens that may be kept.
        fold: of the readouts.
    """
    directions = torch.stack([_exact_direction(model, layer, row, fold) for layer, row in rows])
    readouts = exact_readouts(model, directions).numpy()  # (R, V)
    worst = 0.0
    for (layer, row), readout in zip(rows, readouts, strict=True):
        ordered = np.sort(readout[shown])
        largest = max(np.abs(ordered[[0, -1]]).max(), 1e-30)
        for sign, best in (("+", ordered[::-1]), ("-", ordered)):
            ids, values = (kept[row] for kept in layer.pole(sign))
            of_token = np.abs(values - readout[ids]).max()
            of_rank = np.abs(values - best[: len(values)]).max()
            worst = max(worst, float(max(of_token, of_rank) / largest))
    return worst


def _exact_direction(model: Weights, layer: Projections, row: int, fold: str) -> torch.Tensor:
    """A row's folded value vector, float64 (H,) on the CPU."""
    vector = model.value_vectors(layer.layer)[int(layer.neurons[row])]
    scale = model.fold_scale(layer.layer, fold)
    return vector.cpu().double() * scale.cpu().double()
