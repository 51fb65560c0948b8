"""Named streams of random numbers: every draw of a run follows from its seed and a name."""

from __future__ import annotations

import hashlib

import numpy as np


def rng(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for a seed, a name and numbers such as a layer's."""
    text = "/".join([str(seed), name, *map(str, numbers)])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
