"""The rule of Stage 3, in one place (README: what `validated` means). Pure functions of measured numbers."""

from __future__ import annotations

from typing import Any

EFFECT_FLOOR = 0.05  # nats per answer token that a damage must cost on the concept
SPECIFICITY = 0.5  # largest unrelated drop, as a share of the concept drop
MAX_Q = 0.05  # false discovery rate
AGREEING_KINDS = 2  # damage kinds that must show the effect
MIN_CONCEPT_PROMPTS, MIN_UNRELATED_PROMPTS = 8, 16  # fewer known prompts are inconclusive
FIRING_SHARE = (
    0.25  # part of the concept's prompts on which the neuron must fire with the pole's sign
)
INACTIVE = "does not fire with its pole's sign"
VERDICTS = ("validated", "not_specific", "no_effect", "inactive", "inconclusive")


def agrees(concept_drop: float, selectivity: float) -> bool:
    """Whether one kind of damage shows the effect: a concept drop over the floor, and more there than elsewhere."""
    return concept_drop >= EFFECT_FLOOR and selectivity > 0


def verdict(entry: dict[str, Any]) -> tuple[str, list[str]]:
    """The verdict on a tested pole and the conditions that failed.

    `validated` needs all of: enough known prompts and two kinds of damage (else `inconclusive`); a neuron that fires
    with the sign of its pole on a quarter of the concept's prompts (else `inactive`); a concept drop of at least 0.05
    nats under the primary damage, and two kinds that agree (else `no_effect`); an interval of the selectivity above
    zero, an unrelated drop of at most half the concept drop, and q ≤ 0.05 (else `not_specific`).
    """
    damage = entry["damage"]
    if missing := untestable(entry):
        return "inactive" if missing == [INACTIVE] else "inconclusive", missing
    agreeing = [agrees(d["concept_drop"], d["selectivity"]) for d in damage.values()]
    checks = {
        "no_effect": {
            "concept drop under the floor": entry["concept_drop"] >= EFFECT_FLOOR,
            "damage kinds disagree": sum(agreeing) >= AGREEING_KINDS,
        },
        "not_specific": {
            "interval of the selectivity reaches zero": entry["ci95"][0] > 0,
            "unrelated drop too large": entry["unrelated_drop"]
            <= SPECIFICITY * entry["concept_drop"],
            "q over 0.05": entry["q_value"] <= MAX_Q,
        },
    }
    for name, conditions in checks.items():
        if not all(conditions.values()):
            return name, _failed(conditions)
    return "validated", []


def _failed(conditions: dict[str, bool]) -> list[str]:
    return [text for text, holds in conditions.items() if not holds]


def untestable(entry: dict[str, Any]) -> list[str]:
    """What keeps a pole from being tested at all, known before anything is damaged; empty where it is tested.

    Only tested poles share the correction for multiple testing: leaving out hypotheses by something other than their
    outcome keeps the false discovery rate (independent filtering, Bourgon et al. 2010).
    """
    enough = {
        "too few known concept prompts": entry["n_concept_prompts"] >= MIN_CONCEPT_PROMPTS,
        "too few known unrelated prompts": entry["n_unrelated_prompts"] >= MIN_UNRELATED_PROMPTS,
        "fewer than two kinds of damage": len(entry["damage"]) >= AGREEING_KINDS,
    }
    return _failed(enough) or _failed({INACTIVE: entry["firing_share"] >= FIRING_SHARE})


def hopeless(fires: float, other_kinds: list[tuple[float, float]]) -> bool:
    """Whether no further draw of the primary damage can lead to `validated`.

    True where the neuron is inactive, or where none of the other kinds (concept drop, selectivity), already measured in
    full, agrees: two kinds then cannot. Stopping there changes no verdict of `validated`.
    """
    return fires < FIRING_SHARE or not any(
        agrees(drop, selectivity) for drop, selectivity in other_kinds
    )
