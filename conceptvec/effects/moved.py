"""Moved vectors: what a candidate's vector would do under the firing of another neuron of its layer.

To first order it is the gradient along the candidate's vector times the other neuron's activation, so the same pass
gives it. A vector that promotes a concept's words helps them a little whoever fires it; only where its own neuron's
timing serves the concept does the real one stand out from the moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from conceptvec.records import Pole

STREAM = 42  # of random numbers: receivers
DRAWS = 12  # per candidate at least
NULL_VALUES = 2000  # at least, over all candidates
SIDE = 64  # random source poles, and random receiving poles, of every layer
HELD_OUT_SHARE = 8  # one receiver in so many is a control


@dataclass(frozen=True)
class Moved:
    """M vectors under other neurons' firing, all of shape (M,).

    Attributes:
        pole: which of the given poles the vector is.
        layer: the layer of both neurons.
        source: the neuron whose vector it is.
        source_sign: +1 or −1, the pole that the vector stands for.
        receiver: the neuron that fires.
        receiver_sign: +1 or −1, the pole of it that fires.
    """

    pole: np.ndarray
    layer: np.ndarray
    source: np.ndarray
    source_sign: np.ndarray
    receiver: np.ndarray
    receiver_sign: np.ndarray

    def __len__(self) -> int:
        return len(self.layer)

    def take(self, at: np.ndarray) -> Moved:
        """Some of them."""
        return Moved(*(getattr(self, field.name)[at] for field in fields(self)))


def draws_for(n_candidates: int) -> int:
    """Receivers per candidate: a dozen, or more where the pooled null would be small."""
    return max(DRAWS, -(-NULL_VALUES // max(n_candidates, 1)))


def draw_moved(
    poles: Sequence[Pole], draws: int, neurons: int, taken: set[tuple[int, int]], seed: int
) -> Moved:
    """Receivers for every pole: other neurons of its layer that are no candidates, each at most once a pole.

    Args:
        poles: whose vectors are moved.
        draws: receivers of each, fewer where the layer has no more.
        neurons: of a layer.
        taken: layer and neuron of all candidates of any concept.
        seed: of the run.
    """
    rows: list[tuple[int, int, int, int, int, int]] = []
    for number, pole in enumerate(poles):
        free = [n for n in range(neurons) if n != pole.neuron and (pole.layer, n) not in taken]
        rng = np.random.default_rng([seed, STREAM, pole.layer, pole.neuron, pole.sign == "+"])
        drawn = rng.choice(free, min(draws, len(free)), replace=False) if free else []
        signs = rng.choice((-1, 1), len(drawn))
        rows += [
            (number, pole.layer, pole.neuron, pole.direction, int(receiver), int(sign))
            for receiver, sign in zip(drawn, signs, strict=True)
        ]
    columns = np.array(rows, np.int64).reshape(-1, 6).T
    return Moved(*columns)


def draw_grid(layers: Sequence[int], neurons: int, seed: int) -> Moved:
    """Random poles of every layer, each under all of some random receivers of its layer.

    They are the null of all poles and concepts, which has to be about as large as what is tested.
    The first receivers of every source are to be held out (`held_out_receivers`): they fire
    nothing in the null.
    """
    side = grid_side(neurons)
    grids = []
    for number, layer in enumerate(layers):
        stream = np.random.default_rng([seed, STREAM, layer])
        sources, receivers = (stream.permutation(2 * neurons)[:side] for _ in range(2))
        row, column = np.divmod(np.arange(side * side), side)
        source, source_sign = _pole_of(sources[row])
        receiver, receiver_sign = _pole_of(receivers[column])
        grid = Moved(
            number * side + row,
            np.full(side * side, layer),
            source,
            source_sign,
            receiver,
            receiver_sign,
        )
        grids.append(grid.take(np.flatnonzero(source != receiver)))
    return joined(grids)


def _pole_of(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neurons and signs of the poles of a layer, two a neuron."""
    return number // 2, 1 - 2 * (number % 2)


def grid_side(neurons: int) -> int:
    """Source poles, and as many receiving poles, of one layer."""
    return min(SIDE, 2 * neurons)


def held_out_receivers(neurons: int) -> int:
    """Receivers of one layer that are controls."""
    return max(1, grid_side(neurons) // HELD_OUT_SHARE)


def joined(parts: Sequence[Moved]) -> Moved:
    """Parts one after the other; the numbers of their poles stay."""
    names = [field.name for field in fields(Moved)]
    return Moved(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def side_by_side(first: Moved, second: Moved, poles: int) -> Moved:
    """Both, the second's poles counted on from the first's number of poles."""
    return joined([first, replace(second, pole=second.pole + poles)])
