"""The rule: every condition leads to its verdict, in the stated order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conceptvec.validation.rule import RULE, VERDICTS, Evidence, judge, worth_damaging

GOOD = Evidence(
    known_words=20,
    own_positions=40,
    matched_positions=40,
    firing_ratio=2.0,
    used=True,
    carrying_words=6,
    largest_other=0.2,
    own_drop=0.3,
    rotate_drop=0.2,
    unrelated_drop=0.05,
    selectivity_low=0.1,
)

FAILURES = [
    ("inconclusive", {"known_words": 5}),
    ("inconclusive", {"own_positions": 23}),
    ("inconclusive", {"matched_positions": 23}),
    ("inactive", {"firing_ratio": 1.0}),
    ("no_effect", {"used": False}),
    ("no_effect", {"carrying_words": 2}),
    ("no_effect", {"own_drop": 0.049}),
    ("no_effect", {"own_drop": None}),
    ("no_effect", {"rotate_drop": 0.049}),
    ("no_effect", {"rotate_drop": None}),
    ("not_specific", {"largest_other": 0.51}),
    ("not_specific", {"unrelated_drop": 0.151}),
    ("not_specific", {"unrelated_drop": None}),
    ("not_specific", {"selectivity_low": 0.0}),
    ("not_specific", {"selectivity_low": None}),
]


def test_what_holds_everywhere_is_validated() -> None:
    judgement = judge(GOOD)
    assert judgement.validated
    assert judgement.failed == ()


@pytest.mark.parametrize(("verdict", "change"), FAILURES)
def test_each_condition_alone_leads_to_its_verdict(verdict: str, change: dict) -> None:
    judgement = judge(replace(GOOD, **change))
    assert judgement.verdict == verdict
    assert len(judgement.failed) == 1


@pytest.mark.parametrize("first", range(len(FAILURES)))
@pytest.mark.parametrize("second", range(len(FAILURES)))
def test_the_first_verdict_of_the_order_wins(first: int, second: int) -> None:
    both = FAILURES[first][1] | FAILURES[second][1]
    order = ["inconclusive", "inactive", "no_effect", "not_specific"]
    expected = min(FAILURES[first][0], FAILURES[second][0], key=order.index)
    assert judge(replace(GOOD, **both)).verdict == expected


def test_thresholds_are_reached_not_passed() -> None:
    edge = replace(
        GOOD,
        known_words=6,
        own_positions=24,
        matched_positions=24,
        carrying_words=3,
        own_drop=0.05,
        rotate_drop=0.05,
        unrelated_drop=0.025,
        largest_other=0.5,
    )
    assert judge(edge).validated


def test_missing_text_is_told_in_numbers() -> None:
    (phrase,) = judge(replace(GOOD, own_positions=20)).failed
    assert phrase == "20 own positions, 4 too few"


def test_other_thresholds_judge_the_same_evidence() -> None:
    strict = replace(RULE, drop=0.4)
    assert judge(GOOD, strict).verdict == "no_effect"


@pytest.mark.parametrize(("verdict", "change"), FAILURES)
def test_what_is_not_worth_damaging_can_not_be_validated(verdict: str, change: dict) -> None:
    undamaged = {
        name: None for name in ("own_drop", "rotate_drop", "unrelated_drop", "selectivity_low")
    }
    evidence = replace(GOOD, **change)
    if not worth_damaging(replace(evidence, **undamaged)):
        assert not judge(evidence).validated


def test_every_verdict_is_listed() -> None:
    assert {verdict for verdict, _ in FAILURES} | {"validated"} == set(VERDICTS)
