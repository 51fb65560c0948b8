"""The projection against float64 brute force, and the safety of its preselection."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conceptvec.extraction import projection
from conceptvec.extraction.projection import Projector, Readouts

PRECISIONS = [torch.float32, torch.bfloat16]
EACH_DRAW_IS_INDEPENDENT = [HealthCheck.function_scoped_fixture]


def nothing_masked(vocabulary: int) -> torch.Tensor:
    return torch.zeros(vocabulary, dtype=torch.bool)


def true_values(rows: torch.Tensor, d: torch.Tensor) -> np.ndarray:
    """Correctly rounded float32 values (V,) of one readout: error-free sums of exact products."""
    products = rows.double() * d.double()
    return np.array([math.fsum(p) for p in products.tolist()]).astype(np.float32)


def check_poles(
    readouts: Readouts, rows: torch.Tensor, d: torch.Tensor, masked: torch.Tensor, k: int
) -> None:
    """Both poles are those of the true readouts: by value, then by lower id."""
    shown = torch.nonzero(~masked).flatten().numpy()
    poles = [
        (readouts.top_ids, readouts.top_values, 1),
        (readouts.bottom_ids, readouts.bottom_values, -1),
    ]
    for i in range(len(d)):
        z = true_values(rows, d[i])[shown]
        for ids, values, sign in poles:
            best = np.lexsort((shown, -sign * z))[: min(k, len(shown))]
            assert ids[i].tolist() == shown[best].tolist()
            assert np.array_equal(values[i].numpy(), z[best])


def check_moments(
    readouts: Readouts, rows: torch.Tensor, d: torch.Tensor, masked: torch.Tensor
) -> None:
    z = (rows.double() @ d.double().T)[~masked].numpy()  # (shown, n)
    centred = z - z.mean(0)
    variance, third, fourth = ((centred**power).mean(0) for power in (2, 3, 4))
    # A readout is rounded by the size of its terms, which may cancel.
    terms = (rows.double().abs() @ d.double().abs().T)[~masked].numpy()  # (shown, n)
    error = np.abs(readouts.mean.double().numpy() - z.mean(0))
    assert (error <= 1e-6 * terms.max(0) + 1e-9).all()
    assert np.allclose(readouts.variance, variance, rtol=1e-4, atol=1e-9)
    ok = variance > 1e-6
    skew, kurtosis = third[ok] / variance[ok] ** 1.5, fourth[ok] / variance[ok] ** 2 - 3
    assert np.allclose(readouts.skew[ok], skew, rtol=1e-3, atol=1e-3)
    assert np.allclose(readouts.kurtosis[ok], kurtosis, rtol=1e-3, atol=1e-3)


@settings(max_examples=60, deadline=None, suppress_health_check=EACH_DRAW_IS_INDEPENDENT)
@given(data=st.data())
def test_equals_brute_force(data: st.DataObject, is_compiled: bool) -> None:
    """Any sizes, masks and precisions.

    With ties the values are few small integers and everything is exact.
    """
    draw = data.draw
    vocabulary, hidden = draw(st.integers(1, 400)), draw(st.integers(1, 40))
    n, k = draw(st.integers(1, 9)), draw(st.integers(1, 60))
    columns, batch = draw(st.sampled_from([32, 64, 512])), draw(st.sampled_from([1, 3, 200]))
    stored, precision = draw(st.sampled_from(PRECISIONS)), draw(st.sampled_from(PRECISIONS))
    seed, ties = draw(st.integers(0, 10**6)), draw(st.booleans())
    rng = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        if ties:
            return torch.randint(-1, 2, shape, generator=rng).float()
        return torch.randn(shape, generator=rng)

    rows, d = numbers(vocabulary, hidden).to(stored), numbers(n, hidden)
    masked = torch.rand(vocabulary, generator=rng) < draw(st.floats(0, 0.9))
    masked[seed % vocabulary] = False
    options = {"precision": precision, "columns": columns, "compiled": is_compiled}
    readouts = Projector(rows, masked, k, **options)(d, batch)
    check_poles(readouts, rows.float(), d, masked, k)
    if precision is torch.float32:  # those of a bfloat16 product are approximate
        check_moments(readouts, rows.float(), d, masked)


@pytest.fixture
def threads():
    """Sets the number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("number", "batch", "columns"),
    [(1, 1, 8192), (1, 5, 1024), (1, 200, 128), (2, 37, 8192)],
)
def test_does_not_depend_on_batch_chunks_or_threads(
    number, batch, columns, precision, threads, is_compiled
) -> None:
    torch.manual_seed(1)
    rows, d = torch.randn(3000, 96), torch.randn(20, 96)
    masked = torch.rand(3000) < 0.1
    threads(number)
    options = {"precision": precision, "columns": columns, "compiled": is_compiled}
    readouts = Projector(rows, masked, 50, **options)(d, batch)
    check_poles(readouts, rows, d, masked, 50)
    if precision is torch.float32:
        check_moments(readouts, rows, d, masked)
        return
    exact = Projector(rows, masked, 50, precision=torch.float32, compiled=False)(d)
    for approximate, moment in zip(readouts[4:], exact[4:], strict=True):
        assert torch.allclose(approximate, moment, rtol=1e-2, atol=1e-2)


def near_ties(vocabulary: int, hidden: int, gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose readouts lie `gap` apart, in random order, and the direction."""
    torch.manual_seed(3)
    d = torch.randn(1, hidden)
    unit = d / d.norm()
    noise = torch.randn(vocabulary, hidden)
    noise -= (noise @ unit.T) * unit
    return noise + unit * (10 + gap * torch.randperm(vocabulary)[:, None]), d


@pytest.mark.parametrize(("gap", "repeated", "full"), [(1e-3, 1, 0), (1e-7, 1, 1)])
def test_near_ties_fall_back_and_are_counted(gap, repeated, full, is_compiled) -> None:
    """Two thousand values closer than bfloat16 (than float32) can tell apart are ranked rightly."""
    rows, d = near_ties(2000, 64, gap)
    masked = nothing_masked(2000)
    projector = Projector(rows, masked, 50, precision=torch.bfloat16, compiled=is_compiled)
    check_poles(projector(d), rows, d, masked, 50)
    assert projector.fallbacks.tolist() == [repeated, full]


def test_a_hopeful_preselection_would_rank_near_ties_wrongly() -> None:
    """What the check is for."""
    rows, d = near_ties(2000, 64, 1e-3)
    hopeful = (rows.bfloat16() @ d.bfloat16().T).float().flatten().topk(50).indices
    assert set(true_values(rows, d[0]).argsort()[-50:]) != set(hopeful.tolist())


@pytest.mark.parametrize(("precision", "most"), [(torch.float32, 0), (torch.bfloat16, 8)])
def test_ordinary_rows_do_not_fall_back(precision, most) -> None:
    torch.manual_seed(5)
    rows, d = torch.randn(20_000, 128), torch.randn(40, 128)
    projector = Projector(rows, nothing_masked(20_000), 50, precision=precision)
    projector(d)
    repeated, full = projector.fallbacks
    assert repeated <= most
    assert full == 0


def test_a_device_that_computes_wrongly_is_noticed(monkeypatch) -> None:
    """A product that is off in one direction is caught by the survivors' own values.

    The result is still right.
    """
    torch.manual_seed(6)
    rows, d = torch.randn(500, 32), torch.randn(6, 32)
    right = projection._product

    def wrong(rows, columns, workspace):
        z = right(rows, columns, workspace)
        z[:, 0] = z[:, 0].flip(0)
        return z

    monkeypatch.setattr(projection, "_product", wrong)
    masked = nothing_masked(500)
    projector = Projector(rows, masked, 10, precision=torch.float32, columns=512)
    readouts = projector(d)
    assert projector.fallbacks.tolist() == [1, 1]
    check_poles(readouts, rows, d, masked, 10)
    sound = Readouts(*(values[1:] for values in readouts))  # the broken row's are the product's
    check_moments(sound, rows, d[1:], masked)


def test_zero_directions_take_the_lowest_ids() -> None:
    masked = nothing_masked(100)
    masked[:3] = True
    readouts = Projector(torch.randn(100, 8), masked, 5)(torch.zeros(2, 8))
    assert readouts.top_ids.tolist() == [[3, 4, 5, 6, 7]] * 2
    assert readouts.bottom_ids.tolist() == [[3, 4, 5, 6, 7]] * 2


@pytest.mark.parametrize(
    ("version", "capability", "expected"),
    [
        ("2.13.0+cu130", 9, torch.bfloat16),
        ("2.8.0", 8, torch.bfloat16),
        ("2.7.1", 9, torch.float32),
        ("2.13.0", 7, torch.float32),
    ],
)
def test_the_preselection_of_a_gpu(version, capability, expected, monkeypatch) -> None:
    """bfloat16 needs the units, and a product that comes out in float32 (torch 2.8)."""
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    assert projection.preselection(torch.device("cuda")) is expected


@pytest.fixture
def projector() -> Projector:
    torch.manual_seed(8)
    return Projector(torch.randn(2000, 32), nothing_masked(2000), 5)


@pytest.mark.parametrize("factor", [1e-3, 1e-8])
def test_shape_does_not_depend_on_a_directions_length(factor: float, projector) -> None:
    """Down to where float32's own squares are lost."""
    d = torch.randn(3, 32)
    whole, tiny = projector(d), projector(d * factor)
    assert torch.allclose(tiny.skew, whole.skew, atol=1e-3)
    assert torch.allclose(tiny.kurtosis, whole.kurtosis, atol=1e-3)


def test_moments_of_nothing_are_numbers(projector) -> None:
    readouts = projector(torch.zeros(1, 32))
    assert (readouts.variance, readouts.skew, readouts.kurtosis) == (0, 0, -3)


def test_any_two_precisions_give_the_same_poles() -> None:
    torch.manual_seed(9)
    rows, d = torch.randn(4000, 48), torch.randn(8, 48)
    every = [
        Projector(rows.to(stored), nothing_masked(4000), 20, precision=precision)(d)
        for stored, precision in itertools.product([torch.float32], PRECISIONS)
    ]
    for one, other in itertools.pairwise(every):
        assert torch.equal(one.top_ids, other.top_ids)
        assert torch.equal(one.bottom_values, other.bottom_values)


SCALES = [1e-36, 1e-30, 1e-15, 1e-12, 7e-11, 1e8, 5.7e10, 1e20, 1e36]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_the_length_of_a_direction_cannot_matter(scale: float, compiled: bool) -> None:
    """Ids, skew and kurtosis are the direction's; values, mean and variance follow its length."""
    stream = torch.Generator().manual_seed(0)
    rows, directions = torch.randn(500, 16, generator=stream), torch.randn(5, 16, generator=stream)
    masked = torch.zeros(500, dtype=torch.bool)
    projector = Projector(rows, masked, 7, compiled=compiled)
    scaled = directions * scale
    plain, other = projector(directions), projector(scaled)
    assert torch.equal(plain.top_ids, other.top_ids)
    assert torch.equal(plain.bottom_ids, other.bottom_ids)
    factor = torch.tensor(scale, dtype=torch.float64)
    for name in ("skew", "kurtosis"):
        torch.testing.assert_close(getattr(other, name), getattr(plain, name), atol=1e-4, rtol=1e-4)
    for name, power in (("top_values", 1), ("bottom_values", 1), ("mean", 1), ("variance", 2)):
        expected = getattr(plain, name).double() * factor**power
        close = torch.isclose(getattr(other, name).double(), expected, rtol=1e-4, atol=0)
        assert close.all(), name


def test_a_direction_of_zeros_stays_one() -> None:
    projector = Projector(torch.randn(50, 4), torch.zeros(50, dtype=torch.bool), 3)
    out = projector(torch.zeros(2, 4))
    assert not out.top_values.any() and not out.variance.any()
    assert torch.isfinite(out.kurtosis).all() and torch.isfinite(out.skew).all()
