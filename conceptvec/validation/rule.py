"""The rule of Stage 3, in one place: what each verdict means. Pure functions of measured numbers.

The run, its controls and ``conceptvec calibrate`` all call `judge`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["validated", "not_specific", "no_effect", "inactive", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = (
    "validated",
    "not_specific",
    "no_effect",
    "inactive",
    "inconclusive",
)


@dataclass(frozen=True)
class Thresholds:
    """What the verdicts ask for. They are no options.

    Attributes:
        known_words: of the concept that must stand in the text.
        positions: own positions, and positions matched to them, that must be there.
        firing_ratio: mean activation before the concept's words over that before others.
        q: false discovery rate of `used`.
        carrying_words: distinct words that must carry the effect.
        drop: nats that the damage must cost at own positions.
        unrelated: largest drop elsewhere, as a share of the own one.
        other_concept: largest first-order effect on another concept, as a share of the own one.
    """

    known_words: int = 6
    positions: int = 24
    firing_ratio: float = 1.0
    q: float = 0.05
    carrying_words: int = 3
    drop: float = 0.05
    unrelated: float = 0.5
    other_concept: float = 0.5


RULE = Thresholds()


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on; None where it was not measured.

    Attributes:
        known_words: distinct known words of the concept in the text.
        own_positions: at words of the concept, by activation.
        matched_positions: the smaller number of the two kinds of positions matched to them.
        firing_ratio: mean activation before the concept's words over that before others.
        used: whether the scan finds the pole used for the concept.
        carrying_words: distinct words that carry the effect.
        largest_other: largest effect on another concept over that on this one, first order.
        own_drop: nats lost at own positions when the vector is gone.
        rotate_drop: the same when a random vector of its norm stands in for it.
        unrelated_drop: the larger of the drops at the two kinds of matched positions.
        selectivity_low: lower end of the 95 % interval of own − unrelated.
    """

    known_words: int
    own_positions: int
    matched_positions: int
    firing_ratio: float
    used: bool
    carrying_words: int
    largest_other: float
    own_drop: float | None = None
    rotate_drop: float | None = None
    unrelated_drop: float | None = None
    selectivity_low: float | None = None


@dataclass(frozen=True)
class Judgement:
    """A verdict and the conditions that failed, as phrases."""

    verdict: Verdict
    failed: tuple[str, ...]

    @property
    def validated(self) -> bool:
        """Whether nothing failed."""
        return self.verdict == "validated"


def judge(evidence: Evidence, rule: Thresholds = RULE) -> Judgement:
    """The first verdict of the list below any of whose conditions fails; `validated` without one.

    Order: `inconclusive`, `inactive`, `no_effect`, `not_specific`. What was not measured because an
    earlier condition had failed counts as failed.
    """
    for verdict, conditions in _conditions(evidence, rule):
        failed = tuple(phrase for phrase, holds in conditions if not holds)
        if failed:
            return Judgement(verdict, failed)
    return Judgement("validated", ())


Conditions = list[tuple[str, bool]]


def _conditions(evidence: Evidence, rule: Thresholds) -> Iterator[tuple[Verdict, Conditions]]:
    """Verdicts, each with the conditions whose failure leads to it."""
    yield "inconclusive", enough_text(evidence, rule)
    yield (
        "inactive",
        [
            (
                "does not fire more before the concept's words",
                evidence.firing_ratio > rule.firing_ratio,
            )
        ],
    )
    yield (
        "no_effect",
        [
            (f"not used for the concept (q over {rule.q:g})", evidence.used),
            (
                f"fewer than {rule.carrying_words} words carry it",
                evidence.carrying_words >= rule.carrying_words,
            ),
            (
                f"own drop under {rule.drop:g} nats",
                at_least(evidence.own_drop, rule.drop),
            ),
            (
                f"own drop under rotation below {rule.drop:g} nats",
                at_least(evidence.rotate_drop, rule.drop),
            ),
        ],
    )
    yield (
        "not_specific",
        [
            (
                "another concept's effect is more than half of its own",
                evidence.largest_other <= rule.other_concept,
            ),
            (
                "unrelated drop is more than half of the own one",
                _specific(evidence, rule),
            ),
            (
                "interval of the selectivity reaches zero",
                evidence.selectivity_low is not None and evidence.selectivity_low > 0,
            ),
        ],
    )


def conditions(evidence: Evidence, rule: Thresholds = RULE) -> Conditions:
    """All conditions in their order, each as the phrase that its failure is told by."""
    by_verdict = _conditions(evidence, rule)
    return [condition for _, conditions_of_it in by_verdict for condition in conditions_of_it]


def enough_text(evidence: Evidence, rule: Thresholds = RULE) -> Conditions:
    """What the text must hold for any other verdict, with how much is missing."""

    def missing(have: int, need: int, what: str) -> tuple[str, bool]:
        return f"{have} {what}, {need - have} too few", have >= need

    return [
        missing(evidence.known_words, rule.known_words, "known words of the concept"),
        missing(evidence.own_positions, rule.positions, "own positions"),
        missing(evidence.matched_positions, rule.positions, "matched positions"),
    ]


def worth_damaging(evidence: Evidence, rule: Thresholds = RULE) -> bool:
    """Whether the verdict needs damage: what the scan decides before it holds."""
    first = [
        *enough_text(evidence, rule),
        ("fires", evidence.firing_ratio > rule.firing_ratio),
        ("used", evidence.used),
        ("words", evidence.carrying_words >= rule.carrying_words),
    ]
    return all(holds for _, holds in first)


def at_least(value: float | None, least: float) -> bool:
    """Whether a measured value reaches a threshold; what was not measured does not."""
    return value is not None and value >= least


def _specific(evidence: Evidence, rule: Thresholds) -> bool:
    if evidence.own_drop is None or evidence.unrelated_drop is None:
        return False
    return evidence.unrelated_drop <= rule.unrelated * evidence.own_drop
