"""The shown rows of an unembedding, chunk by chunk."""

from __future__ import annotations

import pytest
import torch

from conceptvec import RunError
from conceptvec.extraction import rows as module
from conceptvec.extraction.rows import ShownRows

PRECISIONS = [torch.float32, torch.bfloat16]


def drawn(share: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """An unembedding and a mask."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(500, 24, generator=rng), torch.rand(500, generator=rng) < share


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("share", [0, 0.2, 0.99])
@pytest.mark.parametrize("columns", [1, 16, 100, 1000])
def test_chunks_are_the_shown_rows_in_order(precision, share, columns) -> None:
    unembedding, masked = drawn(share)
    shown = ShownRows(unembedding, masked, precision, columns)
    chunks = list(shown.chunks(precision))
    assert torch.equal(torch.cat([rows for _, rows in chunks]), unembedding[~masked].to(precision))
    starts = [start for start, _ in chunks]
    assert starts == list(range(0, int((~masked).sum()), shown.columns))


def test_rows_of_which_nothing_is_masked_are_not_copied() -> None:
    unembedding, _ = drawn()
    shown = ShownRows(unembedding, torch.zeros(500, dtype=torch.bool), torch.float32, 64)
    _, first = next(shown.chunks(torch.float32))
    assert first.data_ptr() == unembedding.data_ptr()


def test_a_copy_that_is_too_large_is_not_kept(monkeypatch) -> None:
    unembedding, masked = drawn()
    small = ShownRows(unembedding, masked, torch.bfloat16, 64)
    monkeypatch.setattr(module, "COPY", 1000)
    large = ShownRows(unembedding, masked, torch.bfloat16, 64)
    assert small.copy is not None
    assert large.copy is None
    both = zip(small.chunks(torch.bfloat16), large.chunks(torch.bfloat16), strict=True)
    for (_, kept), (_, converted) in both:
        assert torch.equal(kept, converted)


@pytest.mark.parametrize("columns", [16, 1000])
def test_mean_and_covariance(columns: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "REDUCED", 50)
    unembedding, masked = drawn()
    shown = ShownRows(unembedding, masked, torch.float32, columns)
    expected = unembedding[~masked].double()
    assert torch.allclose(shown.mean.double(), expected.mean(0), atol=1e-6)
    covariance = torch.cov(expected.T, correction=0)
    assert torch.allclose(shown.covariance().double(), covariance, atol=1e-5)


def test_bounds_are_those_of_the_rows() -> None:
    unembedding, masked = drawn()
    shown = ShownRows(unembedding, masked, torch.bfloat16, 16)
    rows = unembedding[~masked]
    assert shown.largest == pytest.approx(float(rows.norm(dim=1).max()))
    gap = (rows - rows.bfloat16().float()).norm(dim=1)
    assert shown.residual == pytest.approx(float(gap.max()))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_an_error(number: float) -> None:
    unembedding, masked = drawn()
    unembedding[7, 3], masked[7] = number, False
    with pytest.raises(RunError, match="NaN or infinity in the unembedding"):
        ShownRows(unembedding, masked, torch.float32, 64)
