"""The benchmark of the projection measures every variant there is."""

from __future__ import annotations

import json

import pytest

from conceptvec.cli import main
from conceptvec.extraction import fast, projection
from conceptvec.tools import bench

ARGV = ["bench", "--device", "cpu", "--parts", "projection", "--vectors", "7"]


def test_every_variant_is_compared(monkeypatch, capsys) -> None:
    for name, value in (("VOCABULARY", 3000), ("HIDDEN", 32), ("REPEATS", 2)):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(projection, "LARGE", 0)
    assert main([*ARGV, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["projection"]
    assert measured["compiled"] == (fast.library() is not None)
    assert ("plain" in measured) == measured["compiled"]
    assert ("float32" in measured) == (measured["precision"] == "bfloat16")

    variants = [measured, *(measured[name] for name in ("float32", "plain") if name in measured)]
    for variant in variants:
        seconds = variant["seconds_ours"]
        assert variant["ratio_to_gemm"] == seconds / variant["seconds_gemm"] > 0
        assert variant["full_scale_seconds"] == pytest.approx(seconds / 7 * 26 * 6912)
        naive = measured["seconds_naive"] * 14
        assert variant["speedup_over_naive"] == pytest.approx(naive / seconds)

    assert main(ARGV) == 0
    assert capsys.readouterr().out.count("ratio_to_gemm") == len(variants)
