"""What the scorer says of lists of tokens: the five answers, and a batch of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ANSWERS = ("concept", "lexical", "other", "mixed", "none")
NONE, MIXED, LEXICAL, OTHER = -1, -2, -3, -4  # instead of a concept's index
LABELS = {NONE: "none", MIXED: "mixed", LEXICAL: "lexical", OTHER: "other"}


@dataclass(frozen=True)
class Lists:
    """What the scorer says of n lists; arrays of length n.

    Attributes:
        label: index of the concept, or below zero: `LABELS`.
        concept: index of the best concept, whatever the label; -1 where there is none.
        score: in [0, 1], of that concept.
        components: what the score and the label were made of.
        first: bool (n, `evidence.RANKS`), the token is the first form of a whole word.
    """

    label: np.ndarray
    concept: np.ndarray
    score: np.ndarray
    components: dict[str, np.ndarray]
    first: np.ndarray
