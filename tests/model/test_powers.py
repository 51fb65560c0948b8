"""Powers of two round nothing."""

from __future__ import annotations

import pytest
import torch

from conceptvec.model.powers import lengths, near_one, times_power


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1.0, 1e20, 1e37])
def test_lengths_of_any_vectors(scale: float) -> None:
    vectors = torch.randn(9, 5) * scale
    expected = vectors.double().norm(dim=1)
    torch.testing.assert_close(lengths(vectors).double(), expected, rtol=1e-6, atol=0)


def test_there_and_back_is_exact() -> None:
    vectors = torch.randn(9, 5) * torch.logspace(-30, 30, 9)[:, None]
    scaled, exponents = near_one(vectors)
    assert torch.equal(times_power(scaled, exponents), vectors)
    assert ((scaled.abs().amax(1) >= 0.5) & (scaled.abs().amax(1) < 1)).all()


def test_zero_stays_zero() -> None:
    assert not lengths(torch.zeros(3, 4)).any()
