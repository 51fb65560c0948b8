"""What a scan reads: a text, and what its tokens mean to the concepts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conceptvec.effects.passages import Passages
from conceptvec.effects.target_words import TargetWords


@dataclass(frozen=True)
class RunningText:
    """A text, and the words of the concepts in it.

    Attributes:
        passages: the text.
        words: which tokens are words of which concept.
        mentions: int16 (V,), the concept that a token speaks of in any way, or −1.
        masked: tokens that do not count when a word is ranked: bool (V,).
        run_concepts: numbers of the run's own concepts, the others serve for contrast.
        pieces: the text of every token (V,).
        seconds: that it took to write or to read.
    """

    passages: Passages
    words: TargetWords
    mentions: np.ndarray
    masked: np.ndarray
    run_concepts: tuple[int, ...]
    pieces: tuple[str, ...]
    seconds: float
