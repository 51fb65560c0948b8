"""Which words the pass looks at: one row per passage and word, and which passages share a batch.

Of a word that stands several times in a passage, one known occurrence becomes a row. Taking one
word of a *concept* instead (`group`), drawn with a probability in proportion to 1 / (how often the
word occurs in the text), saves a quarter of the backward passes, but a tenth of the words is then
never looked at, and fewer poles are found (docs/scan.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from conceptvec.streams import rng

KNOWN_BELOW = 1000  # unmasked tokens with a larger logit than a known word's


@dataclass(frozen=True)
class Targets:
    """Occurrences of the concepts' words in passages, by passage and position.

    Attributes:
        passage: (n,) number of the passage.
        position: (n,) of the word's token, counted from 0; never 0.
        word: (n,) number of the word.
        group: (n,) of a passage and group one occurrence becomes a row.
        priority: (n,) the one where this is smallest.
    """

    passage: np.ndarray
    position: np.ndarray
    word: np.ndarray
    group: np.ndarray
    priority: np.ndarray

    def __len__(self) -> int:
        return len(self.passage)

    def at(self, chosen: np.ndarray) -> Targets:
        """The chosen occurrences alone."""
        return Targets(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def in_passages(self, passage: np.ndarray) -> Targets:
        """The same with the passages under other numbers."""
        return replace(self, passage=passage)


def targets_of(
    passage: np.ndarray,
    position: np.ndarray,
    word: np.ndarray,
    seed: int,
    group: np.ndarray | None = None,
) -> Targets:
    """All occurrences, in the order of the text, with the draw that decides between them.

    The draw is made for every occurrence of the text, known or not, so that neither batches nor
    parts can change it.

    Args:
        passage: number of each occurrence's passage (n,).
        position: of the word's token (n,).
        word: number of the word (n,).
        seed: of the run.
        group: of a passage and group one occurrence becomes a row; the word where not given (n,).
    """
    draws = rng(seed, "targets").exponential(size=len(word))
    count = np.bincount(word, minlength=1)
    return Targets(passage, position, word, word if group is None else group, draws * count[word])


def choose(targets: Targets, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One known occurrence per passage and group.

    Args:
        targets: occurrences.
        known: bool (n,).

    Returns:
        indices into `targets` (rows,), by passage and group, and each row's number in its passage.
    """
    order = np.lexsort((targets.priority, targets.group, targets.passage))
    order = order[known[order]]
    passage, group = targets.passage[order], targets.group[order]

    first = np.ones(len(order), bool)
    first[1:] = (passage[1:] != passage[:-1]) | (group[1:] != group[:-1])
    rows = order[first]

    starts = np.flatnonzero(np.diff(targets.passage[rows], prepend=-1))
    run = np.diff(np.append(starts, len(rows)))
    slot = np.arange(len(rows)) - np.repeat(starts, run)
    return rows, slot


def slots_needed(targets: Targets, n_passages: int) -> np.ndarray:
    """How many backward passes each passage asks for, were all its words known: (n_passages,)."""
    rows, _ = choose(targets, np.ones(len(targets), bool))
    return np.bincount(targets.passage[rows], minlength=n_passages)


def batch_from(
    order: np.ndarray, start: int, lengths: np.ndarray, slots: np.ndarray, tokens: int
) -> np.ndarray:
    """The next passages of `order` that make a batch: alike in slots, at most `tokens` padded."""
    first = order[start]
    ahead = order[start : start + max(1, tokens // max(1, int(lengths[first])))]
    size = np.maximum.accumulate(lengths[ahead]) * np.arange(1, len(ahead) + 1)
    fits = (size <= tokens) & (slots[ahead] == slots[first])
    fits[0] = True
    return ahead[np.logical_and.accumulate(fits)]


def parts_of(n_passages: int, most: int) -> Iterator[np.ndarray]:
    """The numbers of the passages of every part, as many in each, at most `most`.

    Several parts are an even number where it can be, so that two processes have equal shares.
    """
    count = math.ceil(n_passages / most)
    if count > 1:
        count = min(count + count % 2, n_passages)
    for part in range(count):
        yield np.arange(n_passages * part // count, n_passages * (part + 1) // count)
