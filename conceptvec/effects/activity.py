"""Activation statistics from the forward passes of the scan, in parts that can be added.

The first token of a passage is left out (its activations are an outlier of every model). A neuron
**fires** where |a| is at least an eighth of its largest |a| rounded down to a power of two. A batch
therefore counts how often |a| reaches its own largest power of two and the three below it; smaller
ones can never be the level of the whole text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Arrays = dict[str, Any]
CONTEXTS = 5  # strongest contexts kept per neuron
LOWEST, BINS = -20, 32  # powers of two of |a| that are told apart
FIRES_BELOW_MAX = 3  # powers of two


@dataclass(frozen=True)
class Activity:
    """Sums over positions, per layer and neuron.

    Attributes:
        layers: the layers' numbers in the model.
        positions: how many positions were counted.
        total: float64 (L, 2, I), of the parts of the poles + and −; the second is negative.
        positive: int64 (L, I), positions with a positive activation.
        largest: float32 (L, I), the largest |a|.
        reached: int64 (L, 4, I), positions with |a| ≥ 2^(e − k), with e the exponent of the
            largest.
        context_values: float32 (L, I, CONTEXTS), strongest first, one per passage.
        context_at: int32 (L, I, CONTEXTS, 2), passage and position, −1 where there are fewer
            passages.
    """

    layers: tuple[int, ...]
    positions: int
    total: np.ndarray
    positive: np.ndarray
    largest: np.ndarray
    reached: np.ndarray
    context_values: np.ndarray
    context_at: np.ndarray

    def arrays(self) -> Arrays:
        """The record as the arrays of one part of a run folder."""
        about = {"layers": list(self.layers), "positions": self.positions}
        return {"activity_json": about} | {name: getattr(self, name) for name in SUMS}

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Activity:
        """The inverse of `arrays`."""
        about = arrays["activity_json"]
        sums = {name: arrays[name] for name in SUMS}
        return cls(tuple(about["layers"]), about["positions"], **sums)

    def firing_rate(self) -> np.ndarray:
        """Share of positions where |a| reaches an eighth of its largest power of two: (L, I)."""
        return self.reached[:, FIRES_BELOW_MAX] / max(self.positions, 1)

    def pole_means(self) -> np.ndarray:
        """The mean of the part of the poles + and − over all positions: float64 (L, 2, I)."""
        return self.total / max(self.positions, 1)


SUMS = ("total", "positive", "largest", "reached", "context_values", "context_at")


def nothing(layers: Sequence[int], neurons: int) -> Activity:
    """No positions yet."""
    n = len(layers)
    return Activity(
        tuple(layers),
        0,
        np.zeros((n, 2, neurons)),
        np.zeros((n, neurons), np.int64),
        np.zeros((n, neurons), np.float32),
        np.zeros((n, 1 + FIRES_BELOW_MAX, neurons), np.int64),
        np.zeros((n, neurons, CONTEXTS), np.float32),
        np.full((n, neurons, CONTEXTS, 2), -1, np.int32),
    )


def add(parts: Iterable[Activity]) -> Activity:
    """The parts added in the order in which they come."""
    parts = list(parts)
    total = parts[0]
    for part in parts[1:]:
        largest = np.maximum(total.largest, part.largest)
        values, at = _strongest(total, part)
        total = Activity(
            total.layers,
            total.positions + part.positions,
            total.total + part.total,
            total.positive + part.positive,
            largest,
            _shifted(total, largest) + _shifted(part, largest),
            values,
            at,
        )
    return total


def exponent(largest: np.ndarray) -> np.ndarray:
    """The power of two at or below the largest |a|, within those that are told apart."""
    _, above = np.frexp(largest)
    return np.where(largest > 0, np.clip(above - 1, LOWEST, LOWEST + BINS - 1), LOWEST)


def _shifted(part: Activity, largest: np.ndarray) -> np.ndarray:
    """`reached` of a part, counted from the exponent of another largest |a|, no smaller one."""
    n = part.reached.shape[1]
    wanted = (
        np.arange(n)[:, None] - (exponent(largest) - exponent(part.largest))[:, None]
    )  # (L, 4, I)
    counts = np.take_along_axis(part.reached, np.maximum(wanted, 0), axis=1)
    return np.where(wanted >= 0, counts, 0)


def _strongest(first: Activity, second: Activity) -> tuple[np.ndarray, np.ndarray]:
    """The strongest contexts of two parts; where they are equal the first part's come first."""
    values = np.concatenate([first.context_values, second.context_values], 2)
    at = np.concatenate([first.context_at, second.context_at], 2)
    best = np.argsort(-np.abs(values), axis=2, kind="stable")[:, :, :CONTEXTS]
    return np.take_along_axis(values, best, 2), np.take_along_axis(at, best[..., None], 2)


def of_batch(
    layers: Sequence[int],
    activations: Sequence[torch.Tensor],
    lengths: torch.Tensor,
    passages: np.ndarray,
) -> Activity:
    """The statistics of one batch.

    Args:
        layers: the layers' numbers in the model.
        activations: of every layer (B, T, I), padded on the right.
        lengths: tokens of each passage (B,).
        passages: numbers of the passages (B,).
    """
    n_positions = int((lengths - 1).sum())
    if not n_positions:
        return nothing(layers, activations[0].shape[2])
    position = torch.arange(1, activations[0].shape[1], device=lengths.device)
    padding = (position >= lengths[:, None])[..., None]  # (B, T - 1, 1)
    columns = []
    for a in activations:
        a = a[:, 1:].float().masked_fill(padding, 0.0)  # a zero changes none of the sums
        columns.append((*_totals(a), *_largest(a), *_contexts(a, passages)))
    stacked = [np.stack(column) for column in zip(*columns, strict=True)]
    return Activity(tuple(layers), n_positions, *stacked)


def _totals(a: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the poles' parts (2, I) and positions with a positive activation (I,)."""
    flat = a.flatten(0, 1)
    upper = flat.clamp(min=0).sum(0)
    lower = flat.clamp(max=0).sum(0)
    positive = (flat > 0).sum(0)
    return torch.stack([upper, lower]).cpu().double().numpy(), positive.cpu().numpy()


def _largest(a: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The largest |a| (I,), how often its power of two and the three below are reached (4, I)."""
    size = a.abs().flatten(0, 1)
    largest = size.amax(0)
    top = torch.from_numpy(exponent(largest.cpu().numpy())).float()
    level = torch.exp2(top).to(a.device)
    reached = [(size >= level * 0.5**k).sum(0) for k in range(1 + FIRES_BELOW_MAX)]
    return largest.cpu().numpy(), torch.stack(reached).cpu().numpy()


def _contexts(a: torch.Tensor, passages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strongest position of the strongest passages: values (I, CONTEXTS) and places (…, 2)."""
    strength, position = a.abs().max(1)  # (B, I)
    signed = a.gather(1, position[:, None])[:, 0]
    kept = min(CONTEXTS, len(a))
    best = strength.argsort(dim=0, descending=True, stable=True)[:kept]

    n_neurons = a.shape[2]
    values = np.zeros((n_neurons, CONTEXTS), np.float32)
    places = np.full((n_neurons, CONTEXTS, 2), -1, np.int32)
    values[:, :kept] = signed.gather(0, best).T.cpu().numpy()
    places[:, :kept, 0] = passages[best.T.cpu().numpy()]
    places[:, :kept, 1] = position.gather(0, best).T.cpu().numpy() + 1
    return values, places
