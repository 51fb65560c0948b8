"""The compiled kernels are PyTorch's passes; where they cannot be built, nothing else changes."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conceptvec.extraction import fast, projection
from conceptvec.extraction.projection import Projector
from conceptvec.extraction.sweep import Scan, Workspace, dots

DTYPES = [torch.float32, torch.bfloat16]
BUILD = "from conceptvec.extraction.fast import library; assert library() is not None"


@pytest.mark.usefixtures("kernels")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_compiled_scan_is_pytorchs(data: st.DataObject) -> None:
    draw = data.draw
    tokens, n = draw(st.integers(1, 700)), draw(st.integers(1, 70))
    keep = min(draw(st.integers(1, 80)), tokens)
    columns = draw(st.sampled_from([16, 48, 512]))
    ties, has_nan = draw(st.booleans()), draw(st.booleans())
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    z = torch.randn(tokens, n, generator=rng).mul(2 if ties else 100)
    z = z.to(draw(st.sampled_from(DTYPES)))
    z = z.round() if ties else z
    if has_nan:
        z[0, 0] = math.nan
    mean = torch.randn(n, generator=rng)

    scans = [kind(mean, keep, Workspace()) for kind in (Scan, fast.CompiledScan)]
    for start in range(0, tokens, columns):
        for scan in scans:
            scan.add(z[start : start + columns].clone(), start)

    # The power sums are those of float64.
    powers = (z.double() - mean)[:, :, None] ** torch.tensor([2, 3, 4])
    allowed = 1e-5 * powers.abs().sum(0) + 1e-9
    for scan in scans:
        off = (scan.sums.T - powers.sum(0)).abs()
        assert ((off <= allowed) | powers.sum(0).isnan()).all()
        assert torch.equal(scan.sums.T.isnan(), powers.sum(0).isnan())

    # The best are the same; with NaN among them fewer may be left: such rows are not safe.
    clean = slice(1 if has_nan else 0, None)
    (_, plain), (ids, values) = (scan.best() for scan in scans)
    assert torch.equal(plain[:, clean], values[:, clean])
    for pole, sign in ((0, 1), (1, -1)):
        of_ids = z.float().T.gather(1, ids[pole])
        assert torch.equal(of_ids[clean] * sign, values[pole][clean])
        assert all(len(set(row.tolist())) == keep for row in ids[pole][clean])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 31, 32, 100])
def test_compiled_dots_are_exact(dtype: torch.dtype, hidden: int) -> None:
    matrix = torch.randint(-9, 9, (50, hidden)).to(dtype)
    d = torch.randint(-9, 9, (7, hidden)).float()
    ids = torch.randint(0, 50, (7, 20))
    assert torch.equal(fast.compiled_dots(matrix, ids, d), dots(matrix, ids, d))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernels are built on Linux alone")
def test_a_library_without_its_functions_is_the_slower_way(tmp_path, monkeypatch, caplog) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(fast, "_load", lambda: SimpleNamespace())
    fast.library.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert fast.library() is None
    finally:
        fast.library.cache_clear()
    assert "can't be built" in caplog.text


def broken_compiler(folder: Path, words: str) -> str:
    """A compiler that says its version and fails at everything else."""
    compiler = folder / "g++"
    compiler.write_text(f"#!/bin/sh\n[ $1 = --version ] || {{ {words}exit 1; }}\n")
    compiler.chmod(0o755)
    return str(compiler)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernels are built on Linux alone")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", "no g++"),
        ("broken", "bad source"),
        ("silent", "g++"),
        ("locked", "file"),
        ("latin", "bad caf"),
    ],
)
def test_without_a_build_the_projection_is_pytorchs(
    kind, said, monkeypatch, tmp_path, caplog
) -> None:
    """No g++, one that fails, or a cache that can't be written: said once, nothing else changes."""
    words = "" if kind == "silent" else "echo bad source >&2; "
    if kind == "latin":  # bytes that are no UTF-8
        words = "printf 'bad caf\\351' >&2; "
    compiler = None if kind == "none" else broken_compiler(tmp_path, words)
    (tmp_path / "file").touch()
    cache = tmp_path / ("file" if kind == "locked" else "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(shutil, "which", lambda _: compiler)
    monkeypatch.setattr(projection, "LARGE", 0)
    fast.library.cache_clear()
    try:
        with caplog.at_level("INFO"):
            projector = Projector(torch.randn(100, 8), torch.zeros(100, dtype=torch.bool), 5)
            readouts = projector(torch.randn(2, 8))
    finally:
        fast.library.cache_clear()
    assert not projector.compiled
    assert len(readouts.top_ids) == 2
    assert said in caplog.text
    assert caplog.text.count("can't be built") == 1


@pytest.mark.whole
@pytest.mark.usefixtures("kernels")
def test_processes_build_at_once(tmp_path, monkeypatch) -> None:
    """Each builds on its own and moves the result into place; a damaged one is built anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    started = [subprocess.Popen([sys.executable, "-c", BUILD]) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    (built,) = (tmp_path / "conceptvec").glob("*.so")
    sound = built.read_bytes()
    for damaged in (b"no library", sound[: len(sound) // 2], sound[:-1] + b"x"):
        built.write_bytes(damaged)
        assert subprocess.run([sys.executable, "-c", BUILD]).returncode == 0
        assert built.read_bytes() == sound
