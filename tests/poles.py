"""Made-up lists of a run: scored poles, and their effects on every concept."""

from __future__ import annotations

from typing import Any

import numpy as np

from conceptvec.effects.everywhere import EFFECTS, P_VALUES, Everywhere
from conceptvec.scoring.poles import WORDS, PoleTable

CONCEPTS = ("animals", "<b>色</b>", "colors")


def table_of(
    layers: int = 2, neurons: int = 40, texts: int = 300, words: tuple[str, ...] = ()
) -> PoleTable:
    """Made-up poles: words as often as words are, every answer, scores from a seed."""
    random = np.random.default_rng(0)
    size = layers * neurons * 2
    index = np.arange(size)
    names = [*words, *(f"word{number}" for number in range(len(words), texts))]
    label = random.choice(5, size, p=[0.02, 0.05, 0.03, 0.2, 0.7]).astype(np.int8)
    return PoleTable(
        CONCEPTS,
        tuple(names),
        (index // (2 * neurons)).astype(np.int16),
        (index // 2 % neurons).astype(np.int32),
        np.where(index % 2, -1, 1).astype(np.int8),
        label,
        random.integers(0, len(CONCEPTS), size).astype(np.int16),
        random.random(size).astype(np.float32),
        ((texts + 1) ** random.random((size, WORDS)) - 1).astype(np.int32),
    )


def scan_of(layers: int = 2, neurons: int = 40, concepts: tuple[str, ...] = CONCEPTS) -> Everywhere:
    """Made-up effects; the text holds no word of the last concept."""
    random = np.random.default_rng(1)
    shape = (len(concepts), layers, neurons, 2)
    arrays: dict[str, Any] = {
        name: random.normal(0, 0.05, shape).astype(np.float16) for name in (*EFFECTS, *P_VALUES)
    }
    known = dict.fromkeys(concepts, 9) | {concepts[-1]: 0}
    about = {"known_words": known, "controls": {}}
    return Everywhere(concepts, tuple(range(layers)), **arrays, about=about)
