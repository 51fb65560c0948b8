"""Which poles are used for which concept: a test over distinct words, with two nulls that are pooled.

Words are the unit: a test over texts takes *day* for a concept, because words repeat (Clark 1973).
Other concepts are the contrast: against any other word the strongest neurons are those that help all
nouns.

1. Of every concept's words the third is judged that the pole promotes most, by its readout, so from
   the weights alone.
2. The statistic is the concept's mean effect minus the mean of the other concepts' means, over its
   standard error with a floor: a neuron without any effect has no spread.
3. **Permuted words**: the words' labels are shuffled, then 1 and 2 done again. It asks whether these
   words differ from others, and nothing of the neuron's timing: the same vector fired by another
   neuron passes as well.
4. **Moved vectors**: 1 and 2 for vectors under other neurons' firing.

Each null is pooled over poles and draws, and p is the larger of the two. Nothing imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

STREAM = 41  # of random numbers: permutations
PERMUTATIONS = 200
SHARE = 3  # one word in so many is judged
FLOOR = 0.0015  # nats, of the standard error
MAX_Q = 0.05
CARRIES = 0.1  # of the concept's effect, from which a word carries it


@dataclass(frozen=True)
class Words:
    """The n words that are compared.

    Attributes:
        concept: each word's concept, 0 … C − 1: int (n,).
        against: how much each concept counts in another's contrast, rows sum to one: (C, C).
        share: one word in so many is judged.
    """

    concept: np.ndarray
    against: np.ndarray
    share: int = SHARE

    @property
    def sizes(self) -> np.ndarray:
        """Words of every concept: (C,)."""
        return np.bincount(self.concept, minlength=len(self.against))

    @property
    def judged(self) -> np.ndarray:
        """How many of them are judged: (C,)."""
        return -(-self.sizes // self.share)


@dataclass(frozen=True)
class Tested:
    """Statistics of P poles under C concepts.

    Attributes:
        t: the studentised contrast (C, P).
        mean: the mean effect on the concept's judged words, in nats (C, P).
    """

    t: np.ndarray
    mean: np.ndarray


def against_others(n_concepts: int) -> np.ndarray:
    """Every concept against all others alike: (C, C)."""
    return (1 - np.eye(n_concepts)) / max(n_concepts - 1, 1)


def ranked(readout: np.ndarray) -> np.ndarray:
    """The words by how much each pole promotes them, most promoted first: (P, n) → int32 (P, n)."""
    return np.argsort(-readout, axis=1, kind="stable").astype(np.int32)


def judged_words(order: np.ndarray, words: Words) -> list[np.ndarray]:
    """For every concept the words that each pole is judged on, most promoted first: (P, judged) each."""
    label = words.concept.astype(np.int16)
    by_concept = np.argsort(label[order], axis=1, kind="stable")  # a radix sort: linear
    starts = np.cumsum(words.sizes) - words.sizes
    return [
        np.take_along_axis(order, by_concept[:, start : start + judged], 1)
        for start, judged in zip(starts, words.judged, strict=True)
    ]


def studentised(
    effect: np.ndarray, order: np.ndarray, words: Words, floor: float = FLOOR
) -> Tested:
    """The statistic of every pole under every concept.

    Args:
        effect: what each word loses without the pole, in nats (P, n).
        order: `ranked`.
        words: the words' concepts.
        floor: of the standard error.
    """
    shape = (len(words.against), len(effect))
    mean, variance = np.zeros(shape), np.zeros(shape)
    for concept, chosen in enumerate(judged_words(order, words)):
        n_judged = chosen.shape[1]
        if n_judged:
            losses = np.take_along_axis(effect, chosen, 1)
            mean[concept] = losses.mean(1)
        if n_judged > 1:
            variance[concept] = losses.var(1, ddof=1) / n_judged
    contrast = mean - words.against @ mean
    squared_error = variance + words.against**2 @ variance
    return Tested(contrast / np.sqrt(squared_error + floor**2), mean)


def permuted(
    effect: np.ndarray,
    order: np.ndarray,
    words: Words,
    concept: np.ndarray,
    draws: int = PERMUTATIONS,
    seed: int = 0,
    floor: float = FLOOR,
) -> np.ndarray:
    """The statistic under shuffled labels, of each pole for its own concept: (draws, P).

    Args:
        effect: (P, n).
        order: `ranked`.
        words: the words' concepts.
        concept: each pole's concept (P,).
        draws: how often the labels are shuffled.
        seed: of the run.
        floor: of the standard error.
    """
    rng = np.random.default_rng([seed, STREAM])
    poles = np.arange(len(effect))
    out = np.empty((draws, len(effect)))
    for draw in range(draws):
        shuffled = replace(words, concept=rng.permutation(words.concept))
        out[draw] = studentised(effect, order, shuffled, floor).t[concept, poles]
    return out


def upper_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """The p-values against a pooled null: (1 + #{null ≥ observed}) / (1 + K) (Phipson & Smyth 2010)."""
    ordered = np.sort(null, axis=None)
    at_least = len(ordered) - np.searchsorted(ordered, observed, side="left")
    return (1 + at_least) / (1 + len(ordered))


def held_out_p(values: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The p-values of a null, each against the values of the other folds."""
    out = np.ones(len(values))
    for one in np.unique(fold):
        out[fold == one] = upper_p(values[fold == one], values[fold != one])
    return out


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the false discovery rate (Benjamini & Hochberg 1995)."""
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    out = np.empty(len(p))
    out[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return out
