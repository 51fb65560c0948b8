"""Effects of all poles against what Stage 2 says of them, and by layer: counts for the figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from conceptvec.effects.everywhere import Everywhere
from conceptvec.records import PoleScores
from conceptvec.text import plain

SCORES = np.linspace(0, 1, 21)  # edges of the bins of Stage 2's score
SELDOM = 0.01  # largest p of those that are counted by score: so many reach it by chance
NO_CHANCE = 1e-3  # largest p of an effect by layer
SMALLEST, LARGEST, STEPS = 1e-4, 10.0, 40  # nats: bins of the effect on a logarithmic scale
EFFECTS = np.r_[
    -np.geomspace(LARGEST, SMALLEST, STEPS + 1), np.geomspace(SMALLEST, LARGEST, STEPS + 1)
]


@dataclass(frozen=True)
class MovedEffects:
    """Vectors of Stage 2's candidates under other neurons' firing; all (M,).

    Attributes:
        score: of the candidate.
        mean: first-order effect on the candidate's concept, nats.
        p: against both nulls of all poles and concepts.
    """

    score: np.ndarray
    mean: np.ndarray
    p: np.ndarray


def overview(everywhere: Everywhere, scores: PoleScores, moved: MovedEffects) -> dict[str, Any]:
    """The part of the results that the figures of the scan are drawn from.

    Args:
        everywhere: every pole and concept.
        scores: of Stage 2.
        moved: the candidates' vectors under other neurons' firing.
    """
    return {
        "poles_and_concepts": everywhere.p.size,
        "cut_off": plain(everywhere.cut_off) if everywhere.cut_off >= 0 else None,
        "controls": everywhere.about["controls"],
        "effect_by_score": effect_by_score(everywhere, scores, moved),
        "effect_by_layer": effect_by_layer(everywhere),
    }


def effect_by_score(
    everywhere: Everywhere, scores: PoleScores, moved: MovedEffects
) -> dict[str, Any]:
    """How many poles and concepts have which score and effect.

    A pole has Stage 2's score for its best concept alone; every other pole and concept is counted
    in ``without_score``.
    """
    concepts = [everywhere.concepts.index(concept) for concept in scores.concept.tolist()]
    layers = np.searchsorted(everywhere.layers, scores.layer)
    at = (np.array(concepts, int), layers, scores.neuron, scores.sign)
    effect = everywhere.mean[at].astype(float)
    p = everywhere.p
    seldom = int((p <= SELDOM).sum() - (p[at] <= SELDOM).sum())
    counts, _, _ = np.histogram2d(scores.score, _inside(effect), (SCORES, EFFECTS))
    whole, _ = np.histogram(_inside(everywhere.mean.astype(float).ravel()), EFFECTS)
    return {
        "score_edges": SCORES.round(6).tolist(),
        "effect_edges": [plain(edge) for edge in EFFECTS],
        "with_score": counts.astype(int).tolist(),
        "without_score": (whole - counts.sum(0).astype(int)).tolist(),
        "level": SELDOM,
        "seldom_by_score": _seldom_by_score(scores.score, p[at]),
        "seldom_without_score": {"n": p.size - len(effect), "seldom": seldom},
        "moved": [[plain(s), plain(m)] for s, m in zip(moved.score, moved.mean, strict=True)],
        "moved_seldom_by_score": _seldom_by_score(moved.score, moved.p),
    }


def _inside(effect: np.ndarray) -> np.ndarray:
    return np.clip(effect, EFFECTS[0], EFFECTS[-1])


def _seldom_by_score(score: np.ndarray, p: np.ndarray) -> list[dict[str, int]]:
    total, _ = np.histogram(score, SCORES)
    seldom, _ = np.histogram(score[p <= SELDOM], SCORES)
    return [{"n": int(n), "seldom": int(k)} for n, k in zip(total, seldom, strict=True)]


def effect_by_layer(everywhere: Everywhere) -> dict[str, list[Any]]:
    """Concept → by layer: the largest effect of a pole that serves it."""
    serves = everywhere.is_specific & (everywhere.p <= NO_CHANCE)
    serving = np.where(serves, everywhere.mean, 0).max((2, 3))  # (C, L)
    return {
        concept: [plain(effect) for effect in of_layers]
        for concept, of_layers in zip(everywhere.concepts, serving, strict=True)
    }
