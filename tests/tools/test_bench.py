"""The benchmarks compare what they time: both sides give the same numbers, or there is no time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from conceptvec.cli import main
from conceptvec.errors import RunError
from conceptvec.extraction import fast, projection
from conceptvec.tools import bench, bench_scan, bench_validation
from conceptvec.tools.bench_model import random_model, random_passages
from conceptvec.validation.engine import Engine

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "vocab_size": 600,
    "head_dim": 16,
}


def test_damage_and_the_naive_loops_agree() -> None:
    found = bench_validation.bench_validation(shape=SMALL, positions=6, subjects=2, repeats=1)
    assert found["largest_difference"] < 1e-4
    assert found["layers"] == [0, 3, 5]
    assert found["vectors"] == 6
    assert found["damages"] == 5  # zero, three rotations, mean
    assert found["speedup"] == pytest.approx(found["seconds_naive"] / found["seconds_ours"])
    lean = found["seconds_lean"] / found["seconds_ours"]
    assert found["speedup_over_lean"] == pytest.approx(lean)


def test_the_naive_loop_is_a_real_edit_that_is_undone() -> None:
    """Each damage moves the numbers, and the model is as before."""
    model = random_model("cpu", torch.float32, SMALL)
    case = bench_validation._case(model, 5, 1)
    (request,) = case.requests[3]
    weights = model.layers[3].mlp.down_proj.weight.clone()
    whole = bench_validation.naive(case.setting, request, whole=True)
    lean = bench_validation.naive(case.setting, request, whole=False)
    assert np.abs(whole - lean).max() < 1e-5
    assert (np.abs(whole[1:] - whole[0]).max(1) > 1e-6).all()
    assert torch.equal(model.layers[3].mlp.down_proj.weight, weights)
    assert model.layers[3].mlp.down_proj.bias is None


def test_no_time_where_the_damages_differ(monkeypatch: Any) -> None:
    measure = Engine.measure

    def wrong(self: Engine, *arguments: Any) -> Any:
        answers = measure(self, *arguments)
        answers.log_p[-1] += 0.01
        return answers

    monkeypatch.setattr(Engine, "measure", wrong)
    with pytest.raises(RunError, match=r"differ by 0\.01"):
        bench_validation.bench_validation(shape=SMALL, positions=4, subjects=1, repeats=1)


def test_the_scan_and_a_clean_pass_agree() -> None:
    found = bench_scan.bench_scan(shape=SMALL, passages=20, texts=5, repeats=1)
    assert found["largest_difference"] < 1e-4
    assert found["words"] >= 5
    assert found["moved"] >= 2000
    ratio = found["seconds_scan"] / found["seconds_forward"]
    assert found["ratio_to_forward"] == pytest.approx(ratio)
    ratio = found["seconds_text"] / found["seconds_products"]
    assert found["ratio_text_to_products"] == pytest.approx(ratio)


def test_every_word_of_the_benchmark_becomes_known() -> None:
    """Random weights know nothing, yet the rows have to be as many as in a real text."""
    model = random_model("cpu", torch.float32, SMALL)
    text = random_passages(20, model.vocab_size)
    targets = bench_scan._targets(text)
    numbers = np.arange(len(text))
    passages = [text.passage(i) for i in numbers]
    effects, _ = bench_scan._gradients(model).part(passages, numbers, targets)
    pairs = {*zip(targets.passage.tolist(), targets.concept.tolist(), strict=True)}
    assert effects.rows.sum() == len(pairs)


def test_no_time_where_the_scan_differs(monkeypatch: Any) -> None:
    forward = bench_scan._forward
    monkeypatch.setattr(bench_scan, "_forward", lambda *arguments: forward(*arguments) + 0.01)
    with pytest.raises(RunError, match=r"differ by 0\.01"):
        bench_scan.bench_scan(shape=SMALL, passages=6, texts=2, repeats=1)


def test_random_passages_are_as_long_as_written_ones() -> None:
    text = random_passages(200, 500)
    assert 24 <= text.lengths.min() <= text.lengths.max() < 56
    assert (text.ids[text.starts] == 2).all()
    assert text.digest == random_passages(200, 500).digest


def test_the_command_takes_scan_as_a_part(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(bench, "bench_scan", lambda device, dtype: {"ratio_to_forward": 3.0})
    assert main(["bench", "--device", "cpu", "--parts", "scan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"scan": {"ratio_to_forward": 3.0}}
    assert main(["bench", "--parts", "scans"]) == 2
    assert "projection, scoring, scan, validation" in capsys.readouterr().err


def test_every_variant_of_the_projection_is_compared(monkeypatch: Any, capsys: Any) -> None:
    argv = ["bench", "--device", "cpu", "--parts", "projection", "--vectors", "7"]
    for name, value in (("VOCABULARY", 3000), ("HIDDEN", 32), ("REPEATS", 2)):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(projection, "LARGE", 0)
    assert main([*argv, "--json"]) == 0
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

    assert main(argv) == 0
    assert capsys.readouterr().out.count("ratio_to_gemm") == len(variants)
