"""Where a pole is tested: positions in running text, chosen by activation alone from a clean pass.

A position t stands for the prediction of the token after it. For one pole and one concept:

* **of the concept**, the *own* ones: the next token is one of the concept's words that the pole
  promotes most, the same third that the scan judges, and the pole fires there; strongest first, one
  a document, few of one word.
* **elsewhere**: the next token is no word of the concept, and the pole fires as strongly as at the
  own position that it is matched to.
* **others**: the next token is a known word of another concept, of like clean log-probability.
* **silent**: the next token is such a word of the concept, and the neuron rests.

Which words a pole promotes is read from the weights, where it fires from the clean pass. Nothing
here looks at the outcome of a damage. A pair that cannot be matched is dropped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from conceptvec.effects.statistics import PROMOTED

LARGEST_SET = 48  # own positions, where the text has them
ENOUGH = 32  # own positions from which the words that the scan judges are enough
OF_ONE_WORD = 64  # an even share of these, and at least MIN_OF_ONE_WORD, may stand before one word
MIN_OF_ONE_WORD = 4
ALIKE = 0.2  # largest relative difference of activation in a matched pair
SHORTLIST = 8  # positions nearest in activation, of which the nearest in log-probability is taken
SILENT_SET = 16
AT_REST = 0.05  # |activation| at a silent position, as a share of the median own one

LogP = Callable[[np.ndarray], np.ndarray]  # positions → clean log-probability of the next token


@dataclass(frozen=True)
class Field:
    """Running text as flat arrays over its n tokens; position i predicts token i + 1.

    Attributes:
        document: int32 (n,).
        scored: bool (n,), whether the next token belongs to the same passage and may be scored.
        mentions: int16 (n,), the concept that the next token speaks of in any way, or −1.
        target: int32 (n,), the distinct known word that the next token is, or −1.
        word_concept: int32 (W,), the concept of each distinct word.
    """

    document: np.ndarray
    scored: np.ndarray
    mentions: np.ndarray
    target: np.ndarray
    word_concept: np.ndarray

    def known_words(self, concept: int) -> int:
        """Distinct known words of a concept in the text."""
        words = np.unique(self.target[self.target >= 0])
        return int((self.word_concept[words] == concept).sum())


@dataclass(frozen=True)
class Positions:
    """The positions of one pole and one concept: int64 arrays; the matched ones in pairs.

    Attributes:
        of_concept: (n,), the own ones, strongest first.
        elsewhere: (n,), matched to `of_concept` one by one.
        others: (m,), of the other concepts.
        silent: (s,).
        unmatched: own positions that were dropped because nothing elsewhere is alike.
    """

    of_concept: np.ndarray
    elsewhere: np.ndarray
    others: np.ndarray
    silent: np.ndarray
    unmatched: int

    @property
    def matched(self) -> int:
        """The smaller number of the two kinds of matched positions."""
        return min(len(self.elsewhere), len(self.others))

    def all(self) -> np.ndarray:
        """Every position, each once."""
        kinds = [self.of_concept, self.elsewhere, self.others, self.silent]
        return np.unique(np.concatenate(kinds))


def own_positions(
    field: Field, activation: np.ndarray, words: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions before the words that the pole promotes most, where it fires, strongest first.

    A vector of dogs need not do anything for fish. A concept with few words in the text would
    leave too few positions, so more of them are taken there.

    Args:
        field: the text.
        activation: signed activation of the pole, positive where it fires: float32 (n,).
        words: distinct words of the concept, most promoted first: int (w,).

    Returns:
        the positions, and the words that were taken.
    """
    positions, taken = np.zeros(0, np.int64), words
    for shares in range(1, PROMOTED + 1):
        taken = words[: -(-shares * len(words) // PROMOTED)]
        at = _before(field, taken)
        at = at[activation[at] > 0]
        at = at[np.argsort(-activation[at], kind="stable")]
        of_one_word = math.ceil(OF_ONE_WORD / max(len(taken), 1))
        positions = _limited(field, at, max(MIN_OF_ONE_WORD, of_one_word))
        if len(positions) >= ENOUGH:
            break
    return positions, taken


def _before(field: Field, words: np.ndarray) -> np.ndarray:
    return np.flatnonzero((field.target >= 0) & np.isin(field.target, words))


def _limited(field: Field, at: np.ndarray, of_one_word: int) -> np.ndarray:
    """The positions in their order, one a document and at most `of_one_word` of one word."""
    seen_documents: set[int] = set()
    count: dict[int, int] = {}
    kept = []
    for position in at:
        document, word = int(field.document[position]), int(field.target[position])
        if document in seen_documents or count.get(word, 0) >= of_one_word:
            continue
        seen_documents.add(document)
        count[word] = count.get(word, 0) + 1
        kept.append(int(position))
    return np.array(kept, np.int64)


def choose_positions(
    field: Field,
    activation: np.ndarray,
    concept: int,
    words: np.ndarray,
    log_p: LogP,
    seed: np.random.Generator,
) -> Positions:
    """All positions of one pole and one concept.

    Args:
        field: the text.
        activation: signed activation of the pole, positive where it fires: float32 (n,).
        concept: its number.
        words: distinct words of the concept, those first that the pole promotes most: int (w,).
        log_p: gives clean log-probabilities of next tokens.
        seed: breaks ties between positions that are alike.
    """
    of_concept, taken = own_positions(field, activation, words)
    pairs = _elsewhere(field, activation, concept, of_concept, log_p)
    kept = of_concept[[index for index, _ in pairs]][:LARGEST_SET]
    elsewhere = np.array([position for _, position in pairs], np.int64)[:LARGEST_SET]
    others = _others(field, concept, kept, log_p, seed)
    silent = _silent(field, activation, taken, kept)
    unmatched = min(len(of_concept), LARGEST_SET) - len(kept)
    return Positions(kept, elsewhere, others, silent, max(unmatched, 0))


def _elsewhere(
    field: Field, activation: np.ndarray, concept: int, of_concept: np.ndarray, log_p: LogP
) -> list[tuple[int, int]]:
    """Pairs of an index into `of_concept` and the position matched to it, at most `LARGEST_SET`."""
    allowed = np.flatnonzero(field.scored & (field.mentions != concept) & (activation > 0))
    allowed = allowed[np.argsort(activation[allowed], kind="stable")]
    strength = activation[allowed]

    # Log-probabilities cost a product each: those of later own positions are only computed where
    # the first ones were not all matched.
    pairs: list[tuple[int, int]] = []
    free = np.ones(int(field.document.max()) + 1, bool)
    for start in range(0, min(len(of_concept), 2 * LARGEST_SET), LARGEST_SET):
        if len(pairs) == LARGEST_SET:
            break
        nearest_to = of_concept[start : start + LARGEST_SET]
        wanted = activation[nearest_to]
        lows = np.searchsorted(strength, wanted * (1 - ALIKE))
        highs = np.searchsorted(strength, wanted * (1 + ALIKE))
        shortlists = [
            allowed[_nearest(strength, a, low, high)]
            for a, low, high in zip(wanted, lows, highs, strict=True)
        ]
        log_p(np.concatenate(shortlists))  # one product for all of them; the loop looks them up

        # Of the shortlist the nearest in log-probability whose document is free. Where own
        # positions of like activation have used it up, the nearest in activation takes its place.
        for index, (shortlist, own_log_p) in enumerate(
            zip(shortlists, log_p(nearest_to), strict=True)
        ):
            near = shortlist[free[field.document[shortlist]]]
            if len(near):
                gap = np.abs(log_p(near) - own_log_p)
            else:
                near = allowed[lows[index] : highs[index]]
                near = near[free[field.document[near]]]
                gap = np.abs(activation[near] - wanted[index])
            if not len(near) or len(pairs) == LARGEST_SET:
                continue
            best = int(near[gap.argmin()])
            free[field.document[best]] = False
            pairs.append((start + index, best))
    return pairs


def _nearest(strength: np.ndarray, a: float, low: int, high: int) -> np.ndarray:
    """Places of the ascending values nearest to `a`, from `low` to before `high`."""
    at = np.searchsorted(strength, a)
    window = np.arange(max(at - SHORTLIST, low), min(at + SHORTLIST, high))
    return window[np.argsort(np.abs(strength[window] - a), kind="stable")[:SHORTLIST]]


def _others(
    field: Field, concept: int, of_concept: np.ndarray, log_p: LogP, seed: np.random.Generator
) -> np.ndarray:
    """For each own position one before a word of another concept, in turn, of like log p."""
    known = np.flatnonzero(field.target >= 0)
    concept_of = field.word_concept[field.target[known]]
    names = [c for c in np.unique(concept_of) if c != concept]
    if not names or not len(of_concept):
        return np.zeros(0, np.int64)
    pools = {c: known[concept_of == c] for c in names}
    chances = {c: log_p(pool) for c, pool in pools.items()}
    order = list(seed.permutation(len(names)))

    chosen: list[int] = []
    free = np.ones(int(field.document.max()) + 1, bool)
    for turn, own_log_p in enumerate(log_p(of_concept)):
        c = names[order[turn % len(names)]]
        left = free[field.document[pools[c]]]
        if not left.any():
            continue
        gap = np.where(left, np.abs(chances[c] - own_log_p), np.inf)
        best = int(pools[c][gap.argmin()])
        free[field.document[best]] = False
        chosen.append(best)
    return np.array(chosen, np.int64)


def _silent(
    field: Field, activation: np.ndarray, words: np.ndarray, of_concept: np.ndarray
) -> np.ndarray:
    """Positions before the same words where the neuron rests, one a document."""
    if not len(of_concept):
        return np.zeros(0, np.int64)
    rest = AT_REST * float(np.median(activation[of_concept]))
    at = _before(field, words)
    at = at[np.abs(activation[at]) <= rest]
    at = at[np.argsort(np.abs(activation[at]), kind="stable")]
    return _limited(field, at, MIN_OF_ONE_WORD)[:SILENT_SET]
