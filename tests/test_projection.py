"""The projection against float64 brute force, and the safety of its preselection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptvec import projection
from conceptvec.errors import RunError
from conceptvec.memory import Batch
from conceptvec.projection import Projector


def true_values(rows: torch.Tensor, d: torch.Tensor) -> np.ndarray:
    """Correctly rounded float32 values (V,) of one readout: error-free sums of exact products."""
    products = rows.double() * d.double()
    return np.array([math.fsum(p) for p in products.tolist()]).astype(np.float32)


def check(found, rows: torch.Tensor, d: torch.Tensor, masked: torch.Tensor, k: int, moments: bool = True) -> None:
    shown = torch.nonzero(~masked).flatten().numpy()
    k = min(k, len(shown))
    for i in range(len(d)):
        z = true_values(rows, d[i])[shown]
        for ids, values, sign in (
            (found.top_ids, found.top_values, 1),
            (found.bottom_ids, found.bottom_values, -1),
        ):
            best = np.lexsort((shown, -sign * z))[:k]  # by value, then by lower id
            assert ids[i].tolist() == shown[best].tolist()
            assert np.array_equal(values[i].numpy(), z[best])
    if not moments:  # those of a bfloat16 product are approximate
        return
    z = (rows.double() @ d.double().T)[shown].numpy()
    c = z - z.mean(0)
    variance = (c**2).mean(0)
    assert np.allclose(found.mean, z.mean(0), atol=1e-5 * np.abs(z).max() + 1e-9)
    assert np.allclose(found.variance, variance, rtol=1e-4, atol=1e-9)
    ok = variance > 1e-6
    assert np.allclose(found.skew[ok], ((c**3).mean(0)[ok] / variance[ok] ** 1.5), rtol=1e-3, atol=1e-3)
    assert np.allclose(found.kurtosis[ok], ((c**4).mean(0)[ok] / variance[ok] ** 2 - 3), rtol=1e-3, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.integers(1, 400), hidden=st.integers(1, 40), n=st.integers(1, 9), k=st.integers(1, 60),
    columns=st.sampled_from([32, 64, 512]), batch=st.sampled_from([1, 3, 200]), masked=st.floats(0, 0.9),
    ties=st.booleans(), precision=st.sampled_from([torch.float32, torch.bfloat16]),
    stored=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_equals_brute_force(vocabulary, hidden, n, k, columns, batch, masked, ties, precision, stored, seed) -> None:
    """Any sizes, masks and precisions; with ties the values are few small integers and everything is exact."""
    rng = torch.Generator().manual_seed(seed)
    draw = (
        (lambda *s: torch.randint(-1, 2, s, generator=rng).float())
        if ties
        else (lambda *s: torch.randn(*s, generator=rng))
    )
    rows, d = draw(vocabulary, hidden).to(stored), draw(n, hidden)
    mask = torch.rand(vocabulary, generator=rng) < masked
    mask[seed % vocabulary] = False
    found = Projector(rows, mask, k, precision=precision, columns=columns)(d, batch)
    check(found, rows.float(), d, mask, k, moments=precision is torch.float32)


def test_does_not_depend_on_batch_chunks_or_threads() -> None:
    torch.manual_seed(1)
    rows, d = torch.randn(3000, 96), torch.randn(37, 96)
    mask = torch.rand(3000) < 0.1
    before, seen = torch.get_num_threads(), []
    choices = [(1, 1, 8192), (1, 5, 1024), (1, 37, 128), (1, 200, 8192), (2, 37, 8192), (2, 5, 1024)]
    try:
        for threads, batch, columns in choices:
            torch.set_num_threads(threads)
            for precision in (torch.float32, torch.bfloat16):
                seen.append(Projector(rows, mask, 50, precision=precision, columns=columns)(d, batch))
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        for a, b in zip(seen[0][:4], other[:4], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(seen[0][4:], other[4:], strict=True):
            assert torch.allclose(a, b, rtol=1e-2, atol=1e-2)  # moments of a bfloat16 product are approximate
    check(seen[0], rows, d, mask, 50)


def near_ties(vocabulary: int, hidden: int, gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose readouts lie `gap` apart, in random order, and the direction."""
    torch.manual_seed(3)
    d = torch.randn(1, hidden)
    unit = d / d.norm()
    noise = torch.randn(vocabulary, hidden)
    noise -= (noise @ unit.T) * unit
    return noise + unit * (10 + gap * torch.randperm(vocabulary)[:, None]), d


@pytest.mark.parametrize(("gap", "repeated", "full"), [(1e-3, 1, 0), (1e-7, 1, 1)])
def test_adversarial_near_ties_fall_back_and_are_counted(gap, repeated, full) -> None:
    """Two thousand values closer than bfloat16 (than float32) can tell apart are still ranked rightly."""
    rows, d = near_ties(2000, 64, gap)
    mask = torch.zeros(2000, dtype=torch.bool)
    projector = Projector(rows, mask, 50, precision=torch.bfloat16)
    check(projector(d), rows, d, mask, 50, moments=False)
    assert projector.fallbacks.tolist() == [repeated, full]
    hopeful = (rows.bfloat16() @ d.bfloat16().T).float().flatten().topk(50).indices
    assert set(true_values(rows, d[0]).argsort()[-50:]) != set(hopeful.tolist())  # what the check is for


def test_ordinary_rows_do_not_fall_back() -> None:
    torch.manual_seed(5)
    rows, d = torch.randn(20_000, 128), torch.randn(40, 128)
    for precision in (torch.float32, torch.bfloat16):
        projector = Projector(rows, torch.zeros(20_000, dtype=torch.bool), 50, precision=precision)
        projector(d)
        assert projector.fallbacks[0] <= (0 if precision is torch.float32 else 8)
        assert projector.fallbacks[1] == 0


def test_a_device_that_computes_wrongly_is_noticed(monkeypatch) -> None:
    """A product that is off in one direction is caught by the survivors' own values, and the result is still right."""
    torch.manual_seed(6)
    rows, d = torch.randn(500, 32), torch.randn(6, 32)
    right = projection._product

    def wrong(rows, columns, last):
        z = right(rows, columns, last)
        z[:, 0] = z[:, 0].flip(0)
        return z

    monkeypatch.setattr(projection, "_product", wrong)
    mask = torch.zeros(500, dtype=torch.bool)
    projector = Projector(rows, mask, 10, precision=torch.float32, columns=512)
    found = projector(d)
    assert projector.fallbacks.tolist() == [1, 1]
    one = slice(1, None)  # the moments of the broken row are the product's
    check(type(found)(*(x[one] for x in found)), rows, d[one], mask, 10)
    assert found.top_ids[0, 0] == int(true_values(rows, d[0]).argmax())


def test_zero_directions_take_the_lowest_ids() -> None:
    mask = torch.zeros(100, dtype=torch.bool)
    mask[:3] = True
    found = Projector(torch.randn(100, 8), mask, 5)(torch.zeros(2, 8))
    assert found.top_ids.tolist() == [[3, 4, 5, 6, 7]] * 2 == found.bottom_ids.tolist()


def test_batch_halves_on_out_of_memory_and_says_so(caplog) -> None:
    sizes = []

    def work(size: int) -> int:
        sizes.append(size)
        if size > 3:
            raise RuntimeError("MPS backend out of memory")
        return size

    assert Batch(13).run(work) == 3
    assert sizes == [13, 6, 3]
    assert "going on with 3 instead of 6" in caplog.text

    def hopeless(size: int) -> int:
        raise MemoryError

    with pytest.raises(RunError, match="one of the"):
        Batch(4).run(hopeless)

    def other(size: int) -> int:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Batch(4).run(other)
