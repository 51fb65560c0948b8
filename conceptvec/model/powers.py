"""Scaling by powers of two, which rounds nothing: vectors of any length stay among the numbers.

Squares and fourth powers of a readout leave float32 and float64 long before the weights do.
"""

from __future__ import annotations

import torch


def near_one(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (n, H) times powers of two, and the exponents to come back with: int (n,) on the CPU.

    The largest element of each comes to lie between a half and one; zero stays zero.
    """
    largest = vectors.abs().amax(1).cpu()
    _, exponents = torch.frexp(largest)
    return times_power(vectors, -exponents), exponents


def times_power(values: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Values (n, k) times two to the power of a row's exponent.

    In two steps: what brings 2^-149 to one is more than float32 can hold.
    """
    half = torch.div(exponents, 2, rounding_mode="floor")
    for part in (half, exponents - half):
        values = values * torch.exp2(part.float()).to(values.device)[:, None]
    return values


def lengths(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean lengths (n,) of vectors (n, H)."""
    scaled, exponents = near_one(vectors)
    return times_power(torch.linalg.vector_norm(scaled, dim=1)[:, None], exponents)[:, 0]
