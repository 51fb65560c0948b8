"""What the scan says of one pole and one concept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from conceptvec.text import plain


@dataclass(frozen=True)
class Use:
    """First-order effects of removing a pole on a concept's words, in nats, and their p-values.

    Attributes:
        known_words: distinct known words of the concept in the text.
        zero: effect of zero ablation on the mean word.
        mean: effect of mean ablation on the mean of the words that the pole promotes most.
        largest_other: the largest `mean` on another concept.
        largest_other_concept: that concept's name; None where there is no other.
        words: how many distinct words carry the effect.
        without_strongest_word: `mean` without the word that loses most.
        p_words: against permuted words.
        p_moved: of effect and timing together, against vectors under other neurons' firing.
        firing_ratio: mean positive activation before words of the concept, over that before others.
        firing_p: of the timing, against permuted words.
    """

    known_words: int
    zero: float
    mean: float
    largest_other: float
    largest_other_concept: str | None
    words: int
    without_strongest_word: float
    p_words: float
    p_moved: float
    firing_ratio: float
    firing_p: float

    @property
    def p(self) -> float:
        """The larger of both p-values."""
        return max(self.p_words, self.p_moved)

    @property
    def other_share(self) -> float:
        """The largest other effect as a share of the concept's own."""
        return max(self.largest_other, 0.0) / self.mean if self.mean > 0 else math.inf

    def entry(self) -> dict[str, Any]:
        """The `scan` part of an entry of the results."""
        return {
            "zero": plain(self.zero),
            "mean": plain(self.mean),
            "largest_other": plain(self.largest_other),
            "largest_other_concept": self.largest_other_concept,
            "words": self.words,
            "known_words": self.known_words,
            "without_strongest_word": plain(self.without_strongest_word),
            "p_words": plain(self.p_words),
            "p_moved": plain(self.p_moved),
        }
