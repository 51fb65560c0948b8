"""From sums to what every word loses: zero and mean ablation, firing, and readouts, as rows of poles.

Mean ablation puts the mean of the pole's part over the whole text in its place. To first order it is
``zero − ā · gradient``, with the sums over the rows of a word divided by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from conceptvec.effects.activity import Activity
from conceptvec.effects.moved import Moved
from conceptvec.effects.sums import Effects
from conceptvec.records import Pole

if TYPE_CHECKING:
    from conceptvec.model.network import Model


@dataclass(frozen=True)
class PerWord:
    """What n words lose without each of P poles, and how each fires before them: float32 (P, n).

    Attributes:
        zero: without the pole's part, in nats.
        mean: with its mean in its place, in nats.
        firing: the pole's positive activation where the word is predicted.
    """

    zero: np.ndarray
    mean: np.ndarray
    firing: np.ndarray


def of_layer(effects: Effects, activity: Activity, layer: int, sign: int) -> PerWord:
    """All neurons of a layer, one pole of each."""
    every = np.arange(effects.gradient.shape[2])
    return _of_layer(effects, activity, layer, every, np.full(len(every), sign))


def of_poles(effects: Effects, activity: Activity, poles: Sequence[Pole]) -> PerWord:
    """The given poles, in their order."""
    shape = (len(poles), len(effects.words))
    out = PerWord(*(np.empty(shape, np.float32) for _ in range(3)))
    layers = np.array([pole.layer for pole in poles])
    for layer in np.unique(layers):
        inside = np.flatnonzero(layers == layer)
        neurons = np.array([poles[i].neuron for i in inside])
        signs = np.array([poles[i].direction for i in inside])
        values = _of_layer(effects, activity, int(layer), neurons, signs)
        for name, rows in vars(values).items():
            getattr(out, name)[inside] = rows
    return out


def _of_layer(
    effects: Effects, activity: Activity, layer: int, neurons: np.ndarray, signs: np.ndarray
) -> PerWord:
    at = effects.layers.index(layer)
    side = (signs < 0).astype(int)
    zero = effects.zero[at, side, :, neurons] / effects.rows
    gradient = effects.gradient[at][:, neurons].T / effects.rows
    firing = effects.firing[at, side, :, neurons] / effects.rows
    level = activity.pole_means()[at, side, neurons].astype(np.float32)
    return PerWord(zero, zero - level[:, None] * gradient, firing)


def of_moved(effects: Effects, activity: Activity, moved: Moved) -> np.ndarray:
    """What words gain by the moved vectors beyond their receivers' mean activation: float32 (M, n)."""
    at = np.searchsorted(effects.layers, moved.layer)
    side = (moved.receiver_sign < 0).astype(int)
    level = np.abs(activity.pole_means()[at, side, moved.receiver]).astype(np.float32)
    gradient = effects.gradient[at, :, moved.source] * moved.source_sign[:, None]
    total = effects.moved.T - level[:, None] * gradient
    return (total / effects.rows).astype(np.float32)


def embeddings(unembedding: torch.Tensor, tokens: np.ndarray, word: np.ndarray) -> torch.Tensor:
    """The mean unembedding row of the tokens as which each word was a target: float32 (n, H).

    Args:
        unembedding: (V, H).
        tokens: the rows' tokens.
        word: their words, as rows of the result, all of which occur.
    """
    device = unembedding.device
    rows = unembedding[torch.from_numpy(tokens.astype(np.int64)).to(device)].float().cpu()
    count = np.bincount(word)
    total = torch.zeros(len(count), rows.shape[1])
    total.index_add_(0, torch.from_numpy(word.astype(np.int64)), rows)
    return total / torch.from_numpy(count).float()[:, None]


def readouts(model: Model, layer: int, fold: str, words: torch.Tensor) -> np.ndarray:
    """How much every neuron of a layer promotes each word (its pole − as much suppresses it): (I, n)."""
    directions = model.readout_directions(layer, fold)
    return (directions @ words.to(directions.device).T).cpu().numpy()
