"""The scan's figures once more, by real damage: the check on what is only first order.

The weight is gone at every position, both poles of the neuron with it, so the two agree where the
concept's words are the business of one pole and nothing above saturates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from conceptvec.runfolder import Arrays
from conceptvec.text import plain
from conceptvec.validation.measure import (
    CLEAN,
    Measured,
    Request,
    Setting,
    Subject,
    clean_repeats,
    measure_unit,
    split_unit,
)

if TYPE_CHECKING:
    from conceptvec.effects.scan_record import Scan

KINDS = (CLEAN, "zero", "mean")
ROWS_A_WORD = 1  # occurrences of a word that are damaged, at most


def concepts_with_words(scan: Scan) -> set[int]:
    """The concepts with a word at which the scan took gradients; of others nothing is repeated."""
    words = scan.seen.word[scan.effects.chosen]
    return set(scan.text.words.word_concept[words].tolist())


def word_rows(scan: Scan, concept: int) -> np.ndarray:
    """The concept's words at which the scan took gradients, as rows of `Scan.seen`: int64 (n,)."""
    seen = scan.seen
    chosen = scan.effects.chosen & (scan.text.words.word_concept[seen.word] == concept)
    order = np.flatnonzero(chosen)
    order = order[np.argsort(seen.word[order], kind="stable")]
    words = seen.word[order]
    first = np.searchsorted(words, words, side="left")
    return order[np.arange(len(order)) - first < ROWS_A_WORD]


def word_positions(scan: Scan, rows: np.ndarray) -> np.ndarray:
    """The positions before such words: int64 (n,)."""
    return scan.passages.starts[scan.seen.passage[rows]] + scan.seen.position[rows] - 1


def measure_exact(subjects: Sequence[Subject], scan: Scan, setting: Setting) -> Arrays:
    """Zero and mean ablation of some neurons on the words of their concept, which is one."""
    (concept,) = {subject.concept for subject in subjects}
    rows = word_rows(scan, concept)
    clean = scan.seen.log_p[rows].astype(float) if clean_repeats(scan.model.dtype) else None
    positions = word_positions(scan, rows)
    return measure_unit(
        [Request(subject, positions, KINDS, clean) for subject in subjects], setting
    )


def exact_entries(
    subjects: Sequence[Subject], arrays: Arrays, scan: Scan
) -> list[dict[str, float | None]]:
    """Mean effects over distinct words, as the scan takes them, of each of the subjects."""
    positions = word_positions(scan, word_rows(scan, subjects[0].concept))
    requests = [Request(subject, positions, KINDS) for subject in subjects]
    return [
        _entry(subject, measured, positions, scan)
        for subject, measured in zip(subjects, split_unit(requests, arrays), strict=True)
    ]


def _entry(
    subject: Subject, measured: Measured, positions: np.ndarray, scan: Scan
) -> dict[str, float | None]:
    words = scan.text.words.token_word[scan.passages.ids[positions + 1]]
    numbers, which = np.unique(words, return_inverse=True)
    count = np.bincount(which)
    zero = np.bincount(which, measured.drops("zero", positions)) / count
    mean = np.bincount(which, measured.drops("mean", positions)) / count

    # The same third of the words that the scan judges.
    pole = (subject.layer, subject.neuron, subject.sign)
    (promoted,) = scan.promoted_words([pole], [subject.concept])
    is_judged = np.isin(numbers, promoted[: scan.contrast.judged[subject.concept]])
    return {
        "exact_zero": plain(zero.mean()),
        "exact_mean": plain(mean[is_judged].mean()) if is_judged.any() else None,
    }
