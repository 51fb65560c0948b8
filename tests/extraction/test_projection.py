"""The projection against float64 brute force, and the safety of its preselection."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptvec.cli import main
from conceptvec.errors import RunError
from conceptvec.extraction import fast as compiled
from conceptvec.extraction import projection
from conceptvec.extraction.projection import Projector
from conceptvec.extraction.sweep import Scan, Workspace, dots
from conceptvec.model.memory import Batch
from conceptvec.tools import bench

needs_kernels = pytest.mark.skipif(
    compiled.library() is None, reason="no g++ on Linux: no compiled kernels"
)
COMPILED = st.booleans() if compiled.library() else st.just(False)


def true_values(rows: torch.Tensor, d: torch.Tensor) -> np.ndarray:
    """Correctly rounded float32 values (V,) of one readout: error-free sums of exact products."""
    products = rows.double() * d.double()
    return np.array([math.fsum(p) for p in products.tolist()]).astype(np.float32)


def check(
    found, rows: torch.Tensor, d: torch.Tensor, masked: torch.Tensor, k: int, moments: bool = True
) -> None:
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
    assert np.allclose(
        found.skew[ok], ((c**3).mean(0)[ok] / variance[ok] ** 1.5), rtol=1e-3, atol=1e-3
    )
    assert np.allclose(
        found.kurtosis[ok], ((c**4).mean(0)[ok] / variance[ok] ** 2 - 3), rtol=1e-3, atol=1e-3
    )


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.integers(1, 400), hidden=st.integers(1, 40), n=st.integers(1, 9), k=st.integers(1, 60),
    columns=st.sampled_from([32, 64, 512]), batch=st.sampled_from([1, 3, 200]), masked=st.floats(0, 0.9),
    ties=st.booleans(), precision=st.sampled_from([torch.float32, torch.bfloat16]),
    stored=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 10**6), compiled=COMPILED,
)  # fmt: skip
def test_equals_brute_force(
    vocabulary, hidden, n, k, columns, batch, masked, ties, precision, stored, seed, compiled
) -> None:
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
    found = Projector(rows, mask, k, precision=precision, columns=columns, compiled=compiled)(
        d, batch
    )
    check(found, rows.float(), d, mask, k, moments=precision is torch.float32)


def test_does_not_depend_on_batch_chunks_or_threads() -> None:
    torch.manual_seed(1)
    rows, d = torch.randn(3000, 96), torch.randn(37, 96)
    mask = torch.rand(3000) < 0.1
    before, seen = torch.get_num_threads(), []
    choices = [
        (1, 1, 8192),
        (1, 5, 1024),
        (1, 37, 128),
        (1, 200, 8192),
        (2, 37, 8192),
        (2, 5, 1024),
    ]
    kinds = [False, True] if compiled.library() else [False]
    try:
        for threads, batch, columns in choices:
            torch.set_num_threads(threads)
            for precision, kind in itertools.product((torch.float32, torch.bfloat16), kinds):
                seen.append(
                    Projector(rows, mask, 50, precision=precision, columns=columns, compiled=kind)(
                        d, batch
                    )
                )
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        for a, b in zip(seen[0][:4], other[:4], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(seen[0][4:], other[4:], strict=True):
            assert torch.allclose(
                a, b, rtol=1e-2, atol=1e-2
            )  # moments of a bfloat16 product are approximate
    check(seen[0], rows, d, mask, 50)


def near_ties(vocabulary: int, hidden: int, gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose readouts lie `gap` apart, in random order, and the direction."""
    torch.manual_seed(3)
    d = torch.randn(1, hidden)
    unit = d / d.norm()
    noise = torch.randn(vocabulary, hidden)
    noise -= (noise @ unit.T) * unit
    return noise + unit * (10 + gap * torch.randperm(vocabulary)[:, None]), d


@pytest.mark.parametrize("kind", [False, pytest.param(True, marks=needs_kernels)])
@pytest.mark.parametrize(("gap", "repeated", "full"), [(1e-3, 1, 0), (1e-7, 1, 1)])
def test_adversarial_near_ties_fall_back_and_are_counted(gap, repeated, full, kind) -> None:
    """Two thousand values closer than bfloat16 (than float32) can tell apart are still ranked rightly."""
    rows, d = near_ties(2000, 64, gap)
    mask = torch.zeros(2000, dtype=torch.bool)
    projector = Projector(rows, mask, 50, precision=torch.bfloat16, compiled=kind)
    check(projector(d), rows, d, mask, 50, moments=False)
    assert projector.fallbacks.tolist() == [repeated, full]
    hopeful = (rows.bfloat16() @ d.bfloat16().T).float().flatten().topk(50).indices
    assert set(true_values(rows, d[0]).argsort()[-50:]) != set(
        hopeful.tolist()
    )  # what the check is for


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

    def wrong(rows, columns, workspace):
        z = right(rows, columns, workspace)
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


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 700), n=st.integers(1, 70), keep=st.integers(1, 80), columns=st.sampled_from([16, 48, 512]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), ties=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_the_compiled_scan_is_pytorchs(tokens, n, keep, columns, dtype, ties, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, n, generator=rng).mul(2 if ties else 100).to(dtype)
    z = z.round() if ties else z
    z[0, 0], keep = math.nan if seed % 5 == 0 else 1, min(keep, tokens)
    mean = torch.randn(n, generator=rng)
    scans = [kind(mean, keep, Workspace()) for kind in (Scan, compiled.CompiledScan)]
    for start in range(0, tokens, columns):
        for scan in scans:
            scan.add(z[start : start + columns].clone(), start)
    powers = (z.double() - mean)[:, :, None] ** torch.tensor([2, 3, 4])
    for scan in scans:
        off = (scan.sums.T - powers.sum(0)).abs()
        assert ((off <= 1e-5 * powers.abs().sum(0) + 1e-9) | powers.sum(0).isnan()).all()
        assert torch.equal(scan.sums.T.isnan(), powers.sum(0).isnan())
    (_, plain), (ids, values) = (scan.best() for scan in scans)
    clean = slice(
        1 if seed % 5 == 0 else 0, None
    )  # with NaN among them, fewer may be left: such rows are not safe
    assert torch.equal(plain[:, clean], values[:, clean])
    for pole, sign in ((0, 1), (1, -1)):
        assert torch.equal(z.float().T.gather(1, ids[pole])[clean] * sign, values[pole][clean])
        assert all(len(set(row.tolist())) == keep for row in ids[pole][clean])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [1, 31, 32, 100])
def test_compiled_dots_are_exact(dtype, hidden) -> None:
    matrix, d = (
        torch.randint(-9, 9, (50, hidden)).to(dtype),
        torch.randint(-9, 9, (7, hidden)).float(),
    )
    ids = torch.randint(0, 50, (7, 20))
    assert torch.equal(compiled.compiled_dots(matrix, ids, d), dots(matrix, ids, d))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernels are built on Linux alone")
@pytest.mark.parametrize("compiler", ["none", "broken", "silent", "locked"])
def test_without_a_build_the_projection_is_pytorchs(
    compiler, monkeypatch, tmp_path, caplog
) -> None:
    """No g++, one that fails, or a cache that can't be written: said once, and nothing else changes."""
    broken = tmp_path / "g++"
    words = "" if compiler == "silent" else "echo bad source >&2; "
    broken.write_text(f"#!/bin/sh\n[ $1 = --version ] || {{ {words}exit 1; }}\n")
    broken.chmod(0o755)
    (tmp_path / "file").touch()
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / ("file" if compiler == "locked" else "cache"))
    )
    monkeypatch.setattr(shutil, "which", lambda _: None if compiler == "none" else str(broken))
    monkeypatch.setattr(projection, "LARGE", 0)
    compiled.library.cache_clear()
    try:
        with caplog.at_level("INFO"):
            projector = Projector(torch.randn(100, 8), torch.zeros(100, dtype=torch.bool), 5)
            assert not projector.compiled and len(projector(torch.randn(2, 8)).top_ids) == 2
    finally:
        compiled.library.cache_clear()
    said = {"none": "no g++", "broken": "bad source", "silent": "g++", "locked": "file"}[compiler]
    assert said in caplog.text and caplog.text.count("can't be built") == 1


@needs_kernels
def test_processes_build_at_once(tmp_path, monkeypatch) -> None:
    """Each builds on its own and moves the result into place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = "from conceptvec.extraction.fast import library; assert library() is not None"
    started = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    (built,) = (tmp_path / "conceptvec").iterdir()
    assert built.suffix == ".so"
    built.write_bytes(b"no library")  # is built anew
    assert (
        subprocess.run([sys.executable, "-c", program]).returncode == 0
        and built.stat().st_size > 10_000
    )


def test_the_bench_compares_every_variant_there_is(monkeypatch, capsys) -> None:
    for name, value in (("VOCABULARY", 3000), ("HIDDEN", 32), ("REPEATS", 2)):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(projection, "LARGE", 0)
    assert (
        main(["bench", "--device", "cpu", "--parts", "projection", "--vectors", "7", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)["projection"]
    variants = [found, *(found[name] for name in ("float32", "plain") if name in found)]
    assert ("plain" in found) == found["compiled"] == (compiled.library() is not None)
    assert ("float32" in found) == (found["precision"] == "bfloat16")
    for v in variants:
        assert v["ratio_to_gemm"] == v["seconds_ours"] / v["seconds_gemm"] > 0
        assert v["full_scale_seconds"] == pytest.approx(v["seconds_ours"] / 7 * 26 * 6912)
        assert v["speedup_over_naive"] == pytest.approx(
            found["seconds_naive"] * 14 / v["seconds_ours"]
        )
    assert bench.bench_table({"projection": found}).count("ratio_to_gemm") == len(variants)


@pytest.mark.parametrize(
    ("version", "capability", "expected"),
    [
        ("2.13.0+cu130", 9, torch.bfloat16),
        ("2.8.0", 8, torch.bfloat16),
        ("2.7.1", 9, torch.float32),
        ("2.13.0", 7, None),
    ],
)
def test_the_preselection_of_a_gpu(version, capability, expected, monkeypatch) -> None:
    """bfloat16 needs the units, and a product that comes out in float32 (torch 2.8)."""
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    assert projection.preselection(torch.device("cuda")) is (expected or torch.float32)


def test_moments_of_tiny_readouts_are_numbers() -> None:
    """Skew and kurtosis do not depend on a direction's length, down to where float32's own squares are lost."""
    torch.manual_seed(8)
    rows, d = torch.randn(2000, 32), torch.randn(3, 32)
    projector = Projector(rows, torch.zeros(2000, dtype=torch.bool), 5)
    whole = projector(d)
    for factor in (1e-3, 1e-8):
        tiny = projector(d * factor)
        assert torch.allclose(tiny.skew, whole.skew, atol=1e-3) and torch.allclose(
            tiny.kurtosis, whole.kurtosis, atol=1e-3
        )
    nothing = projector(torch.zeros(1, 32))
    assert (nothing.variance, nothing.skew, nothing.kurtosis) == (0, 0, -3)
