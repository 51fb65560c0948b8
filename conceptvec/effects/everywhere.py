"""What the scan says of every pole and every concept at once.

The statistic is that of `significance`, for all poles × concepts:

1. One layer and pole at a time the effects per word become means per concept, the studentised
   contrast, the firing ratio, and the largest effect on another concept. Its variance is moderated:
   among so many tests the largest statistics would be those with the smallest errors.
2. p is the larger of two Monte Carlo values. The nulls match the family that is tested, every pole
   under every concept: random poles under permuted words, and the vectors of random poles under
   other neurons' firing.
3. q by Benjamini-Hochberg over all poles and concepts (`Everywhere.q`).

Effects are kept in float16 and p in float32, so that a run that reads them comes to the same bytes
as one that computes them. Memory: 12 bytes per pole and concept, and the arrays of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from conceptvec.effects.significance import (
    MAX_Q,
    PERMUTATIONS,
    Columns,
    benjamini_hochberg,
    cut_off,
    p_against,
    statistic,
)
from conceptvec.effects.statistics import Contrast, studentised
from conceptvec.records import SIGNS, Pole

Arrays = dict[str, Any]
EFFECTS = ("zero", "mean", "largest_other", "firing")
P_VALUES = ("p", "p_words", "p_moved")
LARGEST = float(np.finfo(np.float16).max)
PRIOR = 10.0  # words that the pole's own variance weighs beside that of a concept
OTHERS = 0.5  # largest effect on another concept, as a share of the concept's own
LEAST_JUDGED = 5  # judged words from which a concept's null values are pooled with the others'


@dataclass(frozen=True)
class Pool:
    """Values of the statistic where nothing is there.

    Attributes:
        shared: sorted, of all concepts that have enough judged words: (K,).
        alone: concept → sorted, of the concepts that have too few, each for itself: (k,).
    """

    shared: np.ndarray
    alone: dict[int, np.ndarray]

    @classmethod
    def of(cls, values: np.ndarray, judged: np.ndarray) -> Pool:
        """The pool of some values.

        Args:
            values: (C, k) of every concept.
            judged: (C,) how many words of each are judged. With few the statistic has heavy tails.
        """
        enough = judged >= LEAST_JUDGED
        few = np.flatnonzero(~enough & (judged > 0))
        alone = {int(concept): np.sort(values[concept]) for concept in few}
        return cls(np.sort(values[enough], axis=None), alone)

    def p(self, t: np.ndarray, concept: int) -> np.ndarray:
        """The share of null values that are at least as large as each of `t`."""
        return p_against(self.alone.get(concept, self.shared), t)


@dataclass(frozen=True)
class Nulls:
    """The two nulls: permuted words, and vectors under other neurons' firing."""

    words: Pool
    moved: Pool


@dataclass(frozen=True)
class Everywhere:
    """First-order effects of every pole on the words of every concept.

    All arrays are (C, L, I, 2): concept, layer, neuron, and the poles + and −.

    Attributes:
        concepts: the concepts' names.
        layers: the layers' numbers in the model.
        zero: float16, nats, zero ablation on the concept's mean word.
        mean: float16, mean ablation on the mean of the words that the pole promotes most.
        largest_other: float16, the largest `mean` on another concept.
        firing: float16, mean positive activation before the concept's words over that before
            others.
        p: float32, the larger of the next two.
        p_words: float32, against permuted words.
        p_moved: float32, against vectors under other neurons' firing.
        about: what it was made of and for, JSON.
    """

    concepts: tuple[str, ...]
    layers: tuple[int, ...]
    zero: np.ndarray
    mean: np.ndarray
    largest_other: np.ndarray
    firing: np.ndarray
    p: np.ndarray
    p_words: np.ndarray
    p_moved: np.ndarray
    about: dict[str, Any]

    def arrays(self) -> Arrays:
        """The record as the arrays of one part of a run folder."""
        about = {"concepts": list(self.concepts), "layers": list(self.layers)} | self.about
        return {"about_json": about} | {name: getattr(self, name) for name in (*EFFECTS, *P_VALUES)}

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Everywhere:
        """The inverse of `arrays`."""
        about = dict(arrays["about_json"])
        concepts, layers = tuple(about.pop("concepts")), tuple(about.pop("layers"))
        kept = {name: arrays[name] for name in (*EFFECTS, *P_VALUES)}
        return cls(concepts, layers, **kept, about=about)

    @cached_property
    def q(self) -> np.ndarray:
        """False discovery rates over all poles and concepts."""
        return benjamini_hochberg(self.p.ravel()).reshape(self.p.shape)

    @cached_property
    def cut_off(self) -> float:
        """The largest p with q ≤ 0.05; −1 where there is none."""
        return cut_off(self.p, self.q)

    @cached_property
    def is_specific(self) -> np.ndarray:
        """Where the concept loses, and every other one at most half as much: bool."""
        return (self.mean > 0) & (np.maximum(self.largest_other, 0) <= OTHERS * self.mean)

    @cached_property
    def is_used(self) -> np.ndarray:
        """Where q ≤ 0.05, and the effect is specific: bool."""
        return (self.q <= MAX_Q) & self.is_specific

    def pole(self, layer: int, neuron: int, sign: int) -> Pole:
        """The pole at a place of the arrays."""
        return Pole(self.layers[layer], int(neuron), SIGNS[sign])


def permuted_words(
    columns: Columns, words: Contrast, stream: np.random.Generator, permutations: int = PERMUTATIONS
) -> Pool:
    """The statistics of some poles under all concepts, with the words' labels shuffled."""
    values = [statistic(columns, words.shuffled(stream), PRIOR) for _ in range(permutations)]
    return Pool.of(np.concatenate(values, 1).astype(np.float32), words.judged)


def moved_vectors(columns: Columns, words: Contrast) -> Pool:
    """The statistics of vectors under other neurons' firing, under all concepts."""
    return Pool.of(statistic(columns, words, PRIOR).astype(np.float32), words.judged)


def measure(
    layers: Sequence[int],
    columns_of: Callable[[int, int], Columns],
    words: Contrast,
    concepts: Sequence[tuple[str, int]],
    nulls: Nulls,
) -> Everywhere:
    """Every pole of some layers under some concepts.

    Args:
        layers: their numbers in the model.
        columns_of: a layer and a sign → the effects per word of all its neurons' poles.
        words: the words' concepts.
        concepts: those that are asked for: name, and number in `words`.
        nulls: what p-values are taken against.
    """
    numbers = [number for _, number in concepts]
    by_layer = []
    for layer in layers:
        poles = [_measure_poles(columns_of(layer, sign), words, numbers, nulls) for sign in (1, -1)]
        by_layer.append({name: np.stack([pole[name] for pole in poles], -1) for name in poles[0]})
    # (C, I, 2) of every layer → (C, L, I, 2)
    whole = {name: np.stack([layer[name] for layer in by_layer], 1) for name in by_layer[0]}
    return Everywhere(tuple(name for name, _ in concepts), tuple(layers), **whole, about={})


def _measure_poles(
    columns: Columns, words: Contrast, concepts: Sequence[int], nulls: Nulls
) -> dict[str, np.ndarray]:
    """The fields of `Everywhere` for P poles: (C, P) each."""
    tested = studentised(columns.mean, columns.readout, words, prior=PRIOR)
    effects = {
        "zero": concept_means(columns.zero, words)[concepts],
        "mean": tested.mean[concepts],
        "largest_other": largest_others(tested.mean, words.sizes)[concepts],
        "firing": firing_ratios(columns.firing, words)[concepts],
    }
    p_words = np.stack([nulls.words.p(tested.t[c], c) for c in concepts]).astype(np.float32)
    p_moved = np.stack([nulls.moved.p(tested.t[c], c) for c in concepts]).astype(np.float32)
    # A concept without a word in the text has no effect that could be tested.
    absent = words.sizes[concepts] == 0
    p_words[absent] = p_moved[absent] = 1
    kept = {name: np.clip(x, -LARGEST, LARGEST).astype(np.float16) for name, x in effects.items()}
    return kept | {
        "p": np.maximum(p_words, p_moved),
        "p_words": p_words,
        "p_moved": p_moved,
    }


def concept_means(values: np.ndarray, words: Contrast) -> np.ndarray:
    """Means over the words of every concept, 0 where it has none: (n, P) → (C, P)."""
    sizes = words.sizes
    share = (words.concept == np.arange(len(sizes))[:, None]) / np.maximum(sizes, 1)[:, None]
    return share.astype(values.dtype) @ values


def largest_others(means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """For every concept the largest mean of another that has words, or else 0: (C, P)."""
    largest = np.zeros_like(means)
    for concept in range(len(sizes)):
        others = (sizes > 0) & (np.arange(len(sizes)) != concept)
        if others.any():
            largest[concept] = means[others].max(0)
    return largest


def firing_ratios(firing: np.ndarray, words: Contrast) -> np.ndarray:
    """Mean firing before each concept's words over that before the contrasted concepts': (C, P)."""
    means = concept_means(firing, words)
    others = words.against.astype(means.dtype) @ means
    never_elsewhere = np.where(means > 0, LARGEST, 0)
    return np.where(others > 0, means / np.maximum(others, 1e-30), never_elsewhere)
