"""Which poles are used for which concept: a test over distinct words, with two pooled nulls.

Words are the unit: a test over texts takes *day* for a concept, because words repeat (Clark 1973).
Other concepts are the contrast: against any other word the strongest neurons are those that help
all nouns.

1. Of every concept's words the third that the pole promotes most is taken, by its readout, so from
   the weights alone.
2. The statistic is the concept's mean effect minus the mean of the other concepts' means, over its
   standard error with a floor: a neuron without any effect has no spread.
3. **Permuted words**: the words' labels are shuffled, and 1 and 2 done again. It says whether these
   words differ from others, and nothing of the neuron's timing: the same vector fired by another
   neuron passes it just as well.
4. **Moved vectors**: the statistic of vectors under other neurons' firing.

Each null is pooled, over poles and draws, and p is the larger of the two. Nothing imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 200
PROMOTED = 3  # one word in three is judged
FLOOR = 0.0015  # nats, of the standard error
MAX_Q = 0.05


@dataclass(frozen=True)
class Contrast:
    """The words that are compared.

    Attributes:
        concept: (n,) each word's concept, 0 … C − 1.
        against: (C, C) weights of the concepts with which each is contrasted; rows sum to one.
        share: one word in so many is judged.
    """

    concept: np.ndarray
    against: np.ndarray
    share: int = PROMOTED

    @property
    def sizes(self) -> np.ndarray:
        """Words of every concept: (C,)."""
        return np.bincount(self.concept, minlength=len(self.against))

    @property
    def judged(self) -> np.ndarray:
        """How many words of every concept are judged: (C,)."""
        return -(-self.sizes // self.share)

    def shuffled(self, rng: np.random.Generator) -> Contrast:
        """The same with the words' labels permuted."""
        return Contrast(rng.permutation(self.concept), self.against, self.share)


@dataclass(frozen=True)
class Tested:
    """Statistics of P poles under C concepts.

    Attributes:
        t: (C, P) the studentised contrast.
        mean: (C, P) the mean effect on the concept's judged words, in nats.
        contrast: (C, P) the same minus the mean of the contrasted concepts' means.
    """

    t: np.ndarray
    mean: np.ndarray
    contrast: np.ndarray


def others(n_concepts: int) -> np.ndarray:
    """Every concept against all others alike: (C, C)."""
    return (1 - np.eye(n_concepts)) / max(n_concepts - 1, 1)


def studentised(
    effect: np.ndarray,
    readout: np.ndarray,
    words: Contrast,
    floor: float = FLOOR,
    prior: float = 0.0,
) -> Tested:
    """The statistic of every pole and concept.

    Args:
        effect: (n, P) mean effect of removing the pole on each word, positive where the word loses.
        readout: (n, P) how much the pole promotes each word.
        words: the words' concepts.
        floor: of the standard error.
        prior: in words, what the pole's variance over all concepts weighs beside a concept's own.
    """
    mean, variance = _moments(effect, readout, words)
    judged = words.judged[:, None]
    if prior:
        variance = moderated(variance, judged, prior)
    of_mean = variance / np.maximum(judged, 1)
    contrast = mean - words.against @ mean
    error = np.sqrt(of_mean + words.against**2 @ of_mean)
    return Tested(contrast / np.sqrt(error**2 + floor**2), mean, contrast)


def moderated(variance: np.ndarray, judged: np.ndarray, prior: float) -> np.ndarray:
    """Variances drawn towards the pole's own over all concepts (Smyth 2004).

    A variance of few words may be small by chance, and the largest of very many statistics are then
    those with the smallest errors.

    Args:
        variance: (C, P) over each concept's judged words.
        judged: (C, 1) how many there are.
        prior: in words, what the pooled variance weighs.
    """
    freedom = np.maximum(judged - 1, 0)
    pooled = (freedom * variance).sum(0) / max(int(freedom.sum()), 1)
    return (prior * pooled + freedom * variance) / (prior + freedom)


def _moments(
    effect: np.ndarray, readout: np.ndarray, words: Contrast
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over each concept's judged words: (C, P) each."""
    shape = (len(words.against), effect.shape[1])
    mean, variance = np.zeros(shape), np.zeros(shape)
    for c, size in enumerate(words.sizes):
        if not size:
            continue
        of_concept = np.flatnonzero(words.concept == c)
        judged = int(words.judged[c])
        chosen = effect[of_concept]
        if judged < size:
            best = np.argpartition(-readout[of_concept], judged - 1, axis=0)[:judged]
            chosen = np.take_along_axis(chosen, best, 0)
        mean[c] = chosen.mean(0)
        if judged > 1:
            variance[c] = chosen.var(0, ddof=1)
    return mean, variance
