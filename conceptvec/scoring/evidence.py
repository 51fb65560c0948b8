"""What a list of tokens is made of, and the score of that.

For n lists of k tokens, strongest first, of which the first `RANKS` are read:

- The **share** of a theme is the rank-weighted part of the tokens that belongs to it, ``S = Σ_r
  w_r·m(t_r) / Σ_r w_r`` with ``w_r = 2^(-r/30)`` and m from the token table. Tokens that are no
  words, and pieces of words, belong to nothing and count in the sum below. The concept of a list is
  that with the largest share; the **rival** is the strongest of all other themes.
- The **words** of a concept are the same sum over distinct words, without weights: forms of one
  word count once.
- The **score** is ``1 / (1 + exp(-(A + B·ln(S + 0.02) + C·standout)))``, where **standout** says
  how far the list rises out of its readout (`standout`), times ``min(words / 3, 1)``, and halved
  where a rival is as strong (`RIVAL`) or where the list is one word in many forms that is not
  plainly the concept's.

A, B and C were fitted on lists that careful readers labelled, with null directions as negatives,
and A was moved so that 0.75 stands where a reader gives nine of ten lists to the concept
(docs/scoring.md). Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from conceptvec.scoring.table import NOT_A_WORD, TokenTable

RANKS = 30  # tokens of a list that are read: what a person looks at
HALF_LIFE = 30  # ranks after which a token's weight has halved
INTERCEPT, SLOPE, STANDOUT = 4.75, 4.5, 2.15  # A, B and C
OFFSET = 0.02  # of the share, under the logarithm
WORDS = 3  # distinct words of a concept, fewer lower the score
RIVAL = 0.8  # part of the concept's share from which another theme counts as strong as it
TINY = 1e-300  # smallest variance that is divided by
STANDOUT_RANK = 10  # the token by which a list stands out
STANDOUT_FULL = 0.5  # standard deviations from which more counts no more
ONE_WORD = 0.73  # part of a list on one word from which it is a list of that word
# Lists with so much on one word need that share: the word must be the concept's own.
MOSTLY, PLAIN = 0.5, 0.6


@dataclass(frozen=True)
class Evidence:
    """What n lists are made of; arrays of length n unless said otherwise.

    Attributes:
        concept: index of the concept with the largest share, -1 where there is none.
        share: its share.
        words: its distinct words, each as far as it belongs.
        rival: index of the strongest other theme.
        rival_share: its share.
        distinct: distinct whole words in the list.
        signs: part of the weight on tokens that are no words.
        first: bool (n, k), the token is the first form of a whole word.
    """

    concept: np.ndarray
    share: np.ndarray
    words: np.ndarray
    rival: np.ndarray
    rival_share: np.ndarray
    distinct: np.ndarray
    signs: np.ndarray
    first: np.ndarray


def first_forms(lemmas: np.ndarray) -> np.ndarray:
    """Where a word appears for the first time in its list, bool (n, k), by the words' numbers."""
    order = np.argsort(lemmas, axis=1, kind="stable")
    ordered = np.take_along_axis(lemmas, order, axis=1)
    is_new = np.ones_like(ordered, bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.zeros_like(is_new)
    np.put_along_axis(first, order, is_new, axis=1)
    return first & (lemmas != NOT_A_WORD)


def rank_weights(ranks: int) -> np.ndarray:
    """The weights w_r of the first tokens of a list; they add up to 1."""
    weights = 0.5 ** (np.arange(ranks) / HALF_LIFE)
    return weights / max(weights.sum(), 1e-12)


def forms(table: TokenTable, ids: np.ndarray) -> np.ndarray:
    """The weighted part of a list on each word, standing at its first form; elsewhere 0, (n, k).

    Signs are left out of the whole; pieces of words are a part of it.
    """
    n, k = ids.shape
    lemmas = np.where(table.is_word[ids], table.lemma[ids], NOT_A_WORD)
    weights = rank_weights(k) * np.ones((n, 1))
    whole = (weights * (table.lemma[ids] != NOT_A_WORD)).sum(1, keepdims=True)
    weight = weights * (lemmas != NOT_A_WORD) / np.maximum(whole, 1e-12)
    # The forms of a word stand side by side once the tokens are sorted by word.
    order = np.argsort(lemmas, axis=1, kind="stable")
    ordered = np.take_along_axis(lemmas, order, axis=1)
    is_new = np.ones((n, k), bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.flatnonzero(is_new)
    sums = np.add.reduceat(np.take_along_axis(weight, order, axis=1).ravel(), starts)
    total = np.zeros((n, k))
    rows, columns = np.divmod(starts, max(k, 1))
    total[rows, order[rows, columns]] = sums
    return total


def gather(table: TokenTable, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ_r weights_r · membership(ids_r): (n, themes) for ids and weights (n, k)."""
    n, themes = len(ids), len(table.themes)
    row = np.arange(n)[:, None] * themes
    total = np.zeros(n * themes)
    for kept in range(table.theme.shape[1]):
        cell = row + table.theme[ids, kept]
        value = table.weight[ids, kept] * weights
        total += np.bincount(cell.ravel(), value.ravel(), n * themes)
    return total.reshape(n, themes)


def read(table: TokenTable, ids: np.ndarray) -> Evidence:
    """The evidence of n lists of token ids (n, k)."""
    ids = ids[:, :RANKS]
    n, k = ids.shape
    lemmas, is_word = table.lemma[ids], table.is_word[ids]
    first = first_forms(lemmas) & is_word
    weights = rank_weights(k) * np.ones((n, 1))
    share = gather(table, ids, weights * is_word)
    rows = np.arange(n)
    concepts = share[:, : table.concepts]
    best = concepts.argmax(1) if table.concepts else np.zeros(n, int)
    top = concepts[rows, best] if table.concepts else np.zeros(n)
    others = share.copy()
    if table.concepts:
        others[rows, best] = 0
    words = gather(table, ids, first.astype(float))[rows, best] if table.concepts else top
    return Evidence(
        concept=np.where(top > 0, best, -1),
        share=top,
        words=words,
        rival=others.argmax(1),
        rival_share=others.max(1),
        distinct=first.sum(1),
        signs=(weights * (lemmas == NOT_A_WORD)).sum(1),
        first=first,
    )


def standout(
    top: np.ndarray, mean: np.ndarray, variance: np.ndarray, vocabulary: int
) -> np.ndarray:
    """How far a list rises out of its readout, in [0, 1] for n lists.

    The tenth token's distance from the readout's mean in standard deviations, less the distance
    that it has in a Gaussian readout over as many tokens, as a part of `STANDOUT_FULL`.

    Args:
        top: (n, k) readout values, strongest first; of the suppressed pole with their signs turned.
        mean: (n,) of the readout, with its sign turned likewise.
        variance: (n,) of the readout.
        vocabulary: tokens that are shown.
    """
    rank = min(STANDOUT_RANK, top.shape[1])
    distance = (top[:, rank - 1] - mean) / np.sqrt(np.maximum(variance, TINY))
    above = min(max(1 - rank / max(vocabulary, 1), 0.5), 1 - 1e-12)
    return np.clip((distance - NormalDist().inv_cdf(above)) / STANDOUT_FULL, 0, 1)


def combine(evidence: Evidence, stands_out: np.ndarray, one_word: np.ndarray) -> np.ndarray:
    """The score in [0, 1] from its parts: the formula of the module.

    Args:
        evidence: of n lists.
        stands_out: (n,) in [0, 1].
        one_word: (n,) part of the list on its strongest word.
    """
    logit = INTERCEPT + SLOPE * np.log(evidence.share + OFFSET) + STANDOUT * stands_out
    score = np.minimum(evidence.words / WORDS, 1) / (1 + np.exp(-logit))
    rivalled = evidence.rival_share > RIVAL * evidence.share
    another_word = (one_word >= MOSTLY) & (evidence.share < PLAIN)
    return np.where(rivalled | another_word, score / 2, score)
