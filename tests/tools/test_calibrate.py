"""Stage 3 judges itself: few random or mislabelled neurons pass, planted ones do, and the statistics hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from conceptvec import Config, load_model
from conceptvec.concepts import data
from conceptvec.show.figures import calibration
from conceptvec.tools.calibrate import calibrate, calibration_table
from conceptvec.validation import statistics as stats
from conceptvec.validation.rule import hopeless, untestable, verdict

EFFECT = 0.2  # nats: what a planted vector is worth that must be found


def test_false_validations_and_power(tmp_path: Path) -> None:
    some = {
        name: {"keywords": [name], "prompts": data("prompts", f"{name}.json")["prompts"]}
        for name in ("animals", "food", "time")
    }
    (tmp_path / "concepts.json").write_text(json.dumps({"concepts": some}), encoding="utf-8")
    config = Config(device="cpu", concepts=str(tmp_path / "concepts.json"), nulls=160, draws=3)
    found = calibrate(load_model(config), config, vectors=30, planted=18, effects=(0.001, EFFECT))
    assert found["random"]["rate"] <= 0.05
    assert found["permuted"]["rate"] <= 0.05
    assert found["firing"]["rate"] <= 0.05
    assert found["firing"]["tested"] == found["firing"]["vectors"] >= 10
    assert (
        found["random"]["tested"] + found["permuted"]["tested"] >= 8
    )  # it is not low because nothing was tested
    weak, strong = found["planted"]
    assert weak["rate"] == 0
    assert strong["vectors"] >= 5
    assert strong["rate"] >= 0.95
    json.dumps(found, allow_nan=False)
    assert "planted, worth 0.2 nats" in calibration_table(found)
    assert calibration(found)._repr_png_().startswith(b"\x89PNG")


def test_null_p_is_valid_and_never_zero() -> None:
    rng = np.random.default_rng(0)
    p = np.array([stats.null_p(x[0], x[1:]) for x in rng.standard_normal((4000, 60))])
    assert p.min() >= 1 / 60
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() <= level + 0.02


def test_permutation_and_interval_hold_their_level() -> None:
    rng = np.random.default_rng(1)
    groups = [(rng.standard_normal(30), rng.standard_normal(60)) for _ in range(300)]
    p = np.array([stats.permutation_p(a, b, rng) for a, b in groups])
    assert 0.02 <= (p <= 0.05).mean() <= 0.09
    above = np.mean([stats.bootstrap_selectivity(a, b, rng)[0] > 0 for a, b in groups])
    assert above <= 0.06
    shifted = [stats.bootstrap_selectivity(a + 1, b, rng) for a, b in groups]
    assert 0.9 <= np.mean([low <= 1 <= high for low, high in shifted]) <= 0.98


def test_benjamini_hochberg_controls_the_false_discovery_rate_under_early_stopping() -> None:
    """Setting the p of some hypotheses to 1 by their own data leaves the rate below its level."""
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(300):
        true = np.arange(100) < 20
        z = rng.standard_normal(100) + 3.5 * true
        p = np.array([0.5 * math.erfc(x / 2**0.5) for x in z])
        p[rng.random(100) < 0.5 * (z < 0)] = 1.0
        found = stats.benjamini_hochberg(p) <= 0.05
        shares.append((found & ~true).sum() / max(found.sum(), 1))
    assert np.mean(shares) <= 0.05
    assert stats.benjamini_hochberg(np.array([0.01, 0.04, 0.03, 1.0])).tolist() == pytest.approx(
        [0.04, 0.16 / 3, 0.16 / 3, 1]
    )


GOOD = {
    "n_concept_prompts": 30, "n_unrelated_prompts": 60, "firing_share": 0.9, "concept_drop": 0.4,
    "unrelated_drop": 0.01, "ci95": [0.2, 0.6], "q_value": 0.01,
    "damage": {"noise": {"concept_drop": 0.4, "selectivity": 0.39}, "zero": {"concept_drop": 0.3, "selectivity": 0.3},
               "mean": {"concept_drop": 0.0, "selectivity": 0.0}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "validated"), ({"n_concept_prompts": 7}, "inconclusive"), ({"n_unrelated_prompts": 15}, "inconclusive"),
        ({"damage": {"zero": GOOD["damage"]["zero"]}}, "inconclusive"), ({"firing_share": 0.2}, "inactive"),
        ({"concept_drop": 0.04}, "no_effect"), ({"ci95": [-0.1, 0.6]}, "not_specific"),
        ({"damage": GOOD["damage"] | {"zero": GOOD["damage"]["mean"]}}, "no_effect"),
        ({"unrelated_drop": 0.21}, "not_specific"), ({"q_value": 0.051}, "not_specific"),
    ],
)  # fmt: skip
def test_the_rule(change: dict, expected: str) -> None:
    name, failed = verdict(GOOD | change)
    assert name == expected
    assert bool(failed) == (name != "validated")
    assert bool(untestable(GOOD | change)) == (name in ("inconclusive", "inactive"))


def test_stopping_early_never_loses_a_validated_vector() -> None:
    """Whatever `hopeless` stops would not have been validated, whichever numbers the primary damage gave."""
    rng = np.random.default_rng(3)
    stopped = 0
    for _ in range(3000):
        numbers = rng.normal(0.05, 0.1, (2, 2))
        kinds = {
            k: {"concept_drop": c, "selectivity": s}
            for k, (c, s) in zip(("zero", "mean"), numbers, strict=True)
        }
        e = GOOD | {
            "firing_share": float(rng.random()),
            "damage": {"noise": GOOD["damage"]["noise"]} | kinds,
        }
        if hopeless(e["firing_share"], [tuple(k.values()) for k in kinds.values()]):
            stopped += 1
            assert verdict(e)[0] != "validated"
    assert stopped > 500
