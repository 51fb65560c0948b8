"""A vocabulary whose animals, colours and some unlisted words each share a direction."""

from __future__ import annotations

import numpy as np
import torch

from conceptvec.concepts import Concept, ConceptSet
from conceptvec.scoring.scorer import Scorer
from tests.conftest import ANIMALS, COLORS

UNLISTED = [f"zq{i:02d}x" for i in range(40)]  # words of no lexicon
THEME = UNLISTED[:10]  # they share a direction of their own
NEAR = UNLISTED[10:15]  # they lie among the animals
NOISE = UNLISTED[20:]
TWO = ConceptSet(
    (Concept("animals", {"en": tuple(ANIMALS)}), Concept("colors", {"en": tuple(COLORS)})), ()
)


def planted(spread: float = 0.5) -> tuple[list[str], torch.Tensor]:
    """The tokens and their rows (V, 48)."""
    rng = np.random.default_rng(0)
    words = ANIMALS + COLORS + UNLISTED + [f"vb{i:04d}k" for i in range(5000)]
    rows = rng.normal(size=(len(words), 48))
    centres = rng.normal(size=(3, 48)) * 3
    for i, word in enumerate(words):
        for centre, members in zip(centres, ([*ANIMALS, *NEAR], COLORS, THEME), strict=True):
            if word in members:
                rows[i] = centre + spread * rows[i]
    return [f" {w}" for w in words], torch.tensor(rows, dtype=torch.float32)


def make_scorer(concepts: ConceptSet = TWO, threshold: float = 0.75) -> Scorer:
    """A scorer over the planted vocabulary."""
    tokens, rows = planted()
    return Scorer(tokens, np.zeros(len(tokens), bool), rows, concepts, threshold)


def ids_of(words: list[str]) -> np.ndarray:
    """Token ids of words of the planted vocabulary."""
    index = {token.strip(): i for i, token in enumerate(planted()[0])}
    return np.array([index[word] for word in words])
