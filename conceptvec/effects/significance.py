"""From sums over a text to what is said of a pole and a concept: effects, nulls, p-values.

p is the larger of two Monte Carlo values (Phipson & Smyth 2010), each against a pooled null:

1. The **effect** against permuted words: is it these words that lose, and not others?
2. Effect and **timing** against moved vectors: does it matter that this neuron fires, and not
   another? The timing is the same contrast of the activation before the words; it is what the
   effect says of the moment, without the noise of all other positions.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conceptvec.effects.statistics import Contrast, studentised
from conceptvec.effects.use import Use

PERMUTATIONS = 200
PERMUTED_POLES = 400  # poles whose statistics make the null of permuted words, at most
FIRING_FLOOR = 1.0  # of the standard error of firing, in units of the pole's mean
CARRIES = 0.1  # share of the concept's effect from which a word carries it
MAX_Q = 0.05


@dataclass(frozen=True)
class Columns:
    """Mean effects of removing P poles on n distinct words; all float32 (n, P).

    Attributes:
        zero: of zero ablation, nats, positive where the word loses.
        mean: of mean ablation.
        firing: positive activation of the pole before the word.
        readout: how much the pole's vector promotes the word.
    """

    zero: np.ndarray
    mean: np.ndarray
    firing: np.ndarray
    readout: np.ndarray

    def take(self, poles: np.ndarray) -> Columns:
        """Some of the poles."""
        return Columns(
            self.zero[:, poles],
            self.mean[:, poles],
            self.firing[:, poles],
            self.readout[:, poles],
        )


def joined(parts: Sequence[Columns], n_words: int) -> Columns:
    """Columns side by side; of no poles where there are no parts."""
    nothing = np.zeros((n_words, 0), np.float32)
    names = ("zero", "mean", "firing", "readout")
    return Columns(
        *(np.concatenate([nothing, *(getattr(p, name) for p in parts)], 1) for name in names)
    )


@dataclass(frozen=True)
class Nulls:
    """Sorted statistics where nothing is there.

    Attributes:
        words: of the effect, under permuted words.
        moved: of effect and timing together, of moved vectors.
        firing: of the timing, under permuted words.
    """

    words: np.ndarray
    moved: np.ndarray
    firing: np.ndarray


def permuted_nulls(
    columns: Columns,
    concepts: np.ndarray,
    words: Contrast,
    stream: np.random.Generator,
    permutations: int = PERMUTATIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """Statistics of mean ablation, and of firing, where the words' labels are shuffled; sorted.

    Args:
        columns: the poles.
        concepts: (P,) the concept that each is tested for.
        words: the words' concepts.
        stream: shuffles, and samples the poles where there are many.
        permutations: how often.
    """
    poles = np.arange(len(concepts))
    if len(poles) > PERMUTED_POLES:
        poles = np.sort(stream.choice(poles, PERMUTED_POLES, replace=False))
    sample, tested_as = columns.take(poles), concepts[poles]
    effect, firing = [], []
    for _ in range(permutations):
        shuffled = words.shuffled(stream)
        effect.append(statistic(sample, shuffled)[tested_as, np.arange(len(poles))])
        firing.append(firing_statistic(sample, shuffled)[tested_as, np.arange(len(poles))])
    return np.sort(np.concatenate(effect)), np.sort(np.concatenate(firing))


def statistic(columns: Columns, words: Contrast, prior: float = 0.0) -> np.ndarray:
    """The studentised contrast of mean ablation over the words that a pole promotes: (C, P)."""
    return studentised(columns.mean, columns.readout, words, prior=prior).t


def firing_statistic(columns: Columns, words: Contrast) -> np.ndarray:
    """The studentised contrast of firing before the same words, relative to its mean: (C, P)."""
    mean = columns.firing.sum(0) / max(len(columns.firing), 1)
    relative = columns.firing / np.maximum(mean, 1e-12)
    return studentised(relative, columns.readout, words, FIRING_FLOOR).t


def timed_statistic(columns: Columns, words: Contrast) -> np.ndarray:
    """Effect and timing together, which are held against moved vectors: (C, P)."""
    return statistic(columns, words) + firing_statistic(columns, words)


def p_against(null: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """(1 + #{null ≥ observed}) / (1 + K) for a sorted null (K,)."""
    above = len(null) - np.searchsorted(null, observed, side="left")
    return (1 + above) / (1 + len(null))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the false discovery rate (Benjamini & Hochberg 1995)."""
    n = len(p)
    if not n:
        return np.zeros(0)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * n / np.arange(1, n + 1)
    q = np.empty(n)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def cut_off(p: np.ndarray, q: np.ndarray, level: float = MAX_Q) -> float:
    """The largest p whose q is at most the level; below every p where there is none."""
    return float(p[q <= level].max()) if (q <= level).any() else -1.0


def uses_of(
    columns: Columns,
    concepts: np.ndarray,
    words: Contrast,
    nulls: Nulls,
    names: Sequence[str],
) -> list[Use]:
    """What the scan says of P poles, each under one concept.

    Args:
        columns: the poles.
        concepts: (P,) the concept of each.
        words: the words' concepts.
        nulls: what p-values are taken against.
        names: the concepts' names.
    """
    if not len(concepts):
        return []
    rows = np.arange(len(concepts))
    tested = studentised(columns.mean, columns.readout, words)
    t = tested.t[concepts, rows]
    timing = firing_statistic(columns, words)[concepts, rows]
    p_words, p_moved = p_against(nulls.words, t), p_against(nulls.moved, t + timing)
    firing_p = p_against(nulls.firing, timing)
    sizes = words.sizes

    uses = []
    for row, concept in enumerate(concepts):
        judged = judged_words(columns.readout[:, row], words, concept)
        effect = columns.mean[judged, row]
        others = np.where(sizes > 0, tested.mean[:, row], -np.inf)
        others[concept] = -np.inf
        strongest = int(others.argmax())
        has_other = np.isfinite(others[strongest])
        uses.append(
            Use(
                known_words=int(sizes[concept]),
                zero=_mean(columns.zero[words.concept == concept, row]),
                mean=_mean(effect),
                largest_other=float(others[strongest]) if has_other else 0.0,
                largest_other_concept=names[strongest] if has_other else None,
                words=carrying(effect),
                without_strongest_word=_without_largest(effect),
                p_words=float(p_words[row]),
                p_moved=float(p_moved[row]),
                firing_ratio=firing_ratio(columns.firing[:, row], words, concept),
                firing_p=float(firing_p[row]),
            )
        )
    return uses


def judged_words(readout: np.ndarray, words: Contrast, concept: int) -> np.ndarray:
    """The concept's words that a pole promotes most: indices of the share that is judged."""
    return by_promotion(readout, words, concept)[: words.judged[concept]]


def by_promotion(readout: np.ndarray, words: Contrast, concept: int) -> np.ndarray:
    """The concept's words, those first that a pole promotes most: indices."""
    of_concept = np.flatnonzero(words.concept == concept)
    return of_concept[np.argsort(-readout[of_concept], kind="stable")]


def carrying(effect: np.ndarray) -> int:
    """How many words lose, and at least a tenth of what the mean word loses."""
    if not len(effect):
        return 0
    least = max(CARRIES * float(effect.mean()), 0.0)
    return int(((effect > 0) & (effect >= least)).sum())


def firing_ratio(firing: np.ndarray, words: Contrast, concept: int) -> float:
    """Mean firing before the concept's words over the mean of the contrasted concepts' means."""
    sizes = np.maximum(words.sizes, 1)
    means = np.bincount(words.concept, firing, len(words.against)) / sizes
    others = float(words.against[concept] @ means)
    of_concept = float(means[concept])
    return of_concept / others if others > 0 else float(of_concept > 0) * 1e6


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _without_largest(values: np.ndarray) -> float:
    if len(values) < 2:
        return 0.0
    return float((values.sum() - values.max()) / (len(values) - 1))
