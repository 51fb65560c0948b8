"""Named streams of random numbers: every draw of a run follows from its seed and a name.

A stream does not depend on which draws came before it, so neither the order of the layers nor the
number of processes changes a result.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def rng(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for a seed, a name and numbers such as a layer's."""
    return np.random.default_rng(_entropy(seed, name, numbers))


def torch_rng(seed: int, name: str, *numbers: int) -> torch.Generator:
    """The same for torch, on the CPU: what it draws does not depend on the device."""
    import torch

    return torch.Generator().manual_seed(_entropy(seed, name, numbers) % 2**63)


def _entropy(seed: int, name: str, numbers: tuple[int, ...]) -> int:
    text = "/".join([str(seed), name, *map(str, numbers)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:16], "little")
