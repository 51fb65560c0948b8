"""Null lists: what the scorer says of directions that stand for nothing.

They are Gaussian mixtures of a layer's own value vectors (`extraction.poles.null_directions`),
projected and masked as the value vectors are. All layers' are projected together, so that the
unembedding is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from conceptvec.extraction.poles import null_directions
from conceptvec.extraction.projection import Projector, Readouts
from conceptvec.scoring import evidence as ev
from conceptvec.scoring.scorer import Scorer

if TYPE_CHECKING:
    from conceptvec.model.weights import Weights

DIRECTIONS = 200  # per layer; each gives two lists
BATCH = 1024  # directions projected at a time


@dataclass(frozen=True)
class NullLists:
    """The null lists of one layer.

    Attributes:
        layer: zero-based.
        score: (n,).
        reached: how many reach the threshold.
        coherence: (n,), ascending.
    """

    layer: int
    score: np.ndarray
    reached: int
    coherence: np.ndarray


def null_readouts(
    model: Weights, layers: Sequence[int], masked: np.ndarray, top_k: int, *, fold: str, seed: int
) -> list[Readouts]:
    """The readouts of `DIRECTIONS` null directions of each layer."""
    if not layers:
        return []
    directions = [null_directions(model, layer, fold, DIRECTIONS, seed) for layer in layers]
    projector = Projector(model.unembedding, torch.as_tensor(masked), top_k)
    readouts = projector(torch.cat(directions), BATCH)
    starts = range(0, len(layers) * DIRECTIONS, DIRECTIONS)
    return [Readouts(*(part[start : start + DIRECTIONS] for part in readouts)) for start in starts]


def null_lists(
    scorer: Scorer, layers: Sequence[int], readouts: Sequence[Readouts], vocabulary: int
) -> list[NullLists]:
    """The scored null lists of layers, both poles of every direction."""
    scored = []
    for layer, of_layer in zip(layers, readouts, strict=True):
        ids, standout = both_poles(of_layer, vocabulary)
        coherence = np.sort(scorer.coherence(ids, ev.read(scorer.table, ids).first))
        lists = scorer(ids, standout, coherence)
        scored.append(NullLists(layer, lists.score, int((lists.label >= 0).sum()), coherence))
    return scored


def both_poles(readouts: Readouts, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Both poles of n readouts: token ids (2·n, k), and how far they stand out (2·n,)."""
    ids = torch.cat([readouts.top_ids, readouts.bottom_ids]).numpy()
    top, bottom = readouts.top_values.numpy(), readouts.bottom_values.numpy()
    mean, variance = readouts.mean.numpy(), readouts.variance.numpy()
    standout = [
        ev.standout(top, mean, variance, vocabulary),
        ev.standout(-bottom, -mean, variance, vocabulary),
    ]
    return ids, np.concatenate(standout)
