"""Moved vectors: what a candidate's vector would do if another neuron of its layer fired it.

To first order it is the gradient along the candidate's vector times the other neuron's activation,
so the same pass gives it. A vector that promotes a concept's words helps them a little whoever
fires it; only where its own neuron's timing serves the concept does the real one stand out from the
moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from conceptvec.records import SIGNS, Pole
from conceptvec.streams import rng

DRAWS = 12  # per candidate at least
NULL_VALUES = 2000  # at least, over all candidates


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
    """Receivers for every pole: other neurons of its layer, no candidates, each once a pole.

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
        stream = rng(seed, f"receivers {pole.id}")
        drawn = stream.choice(free, min(draws, len(free)), replace=False) if free else []
        signs = stream.choice((-1, 1), len(drawn))
        rows += [
            (number, pole.layer, pole.neuron, pole.direction, int(receiver), int(sign))
            for receiver, sign in zip(drawn, signs, strict=True)
        ]
    columns = np.array(rows, np.int64).reshape(-1, 6).T
    return Moved(*columns)


def draw_poles(n: int, layers: Sequence[int], neurons: int, seed: int) -> list[Pole]:
    """Random poles of some layers, each at most once; all where there are no more than `n`."""
    whole = 2 * neurons * len(layers)
    stream = rng(seed, "poles whose vectors are moved")
    drawn = np.sort(stream.choice(whole, min(n, whole), replace=False))
    of_layer, neuron, sign = np.unravel_index(drawn, (len(layers), neurons, 2))
    return [
        Pole(layers[i], int(j), SIGNS[s])
        for i, j, s in zip(of_layer.tolist(), neuron.tolist(), sign.tolist(), strict=True)
    ]


def side_by_side(first: Moved, second: Moved, poles: int) -> Moved:
    """Both, the second's poles counted on from the first's number of poles."""
    renumbered = replace(second, pole=second.pole + poles)
    columns = [
        np.concatenate([getattr(first, field.name), getattr(renumbered, field.name)])
        for field in fields(Moved)
    ]
    return Moved(*columns)
