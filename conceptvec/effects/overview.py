"""Effects of all poles against what Stage 2 says of them, and by layer: counts for the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conceptvec.effects.everywhere import Everywhere
from conceptvec.records import PoleScores
from conceptvec.text import plain

SCORES = np.linspace(0, 1, 21)  # edges of the bins of Stage 2's score
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
        is_used: whether its p reaches the cut-off of all poles and concepts.
    """

    score: np.ndarray
    mean: np.ndarray
    is_used: np.ndarray


def overview(
    everywhere: Everywhere,
    named: Sequence[tuple[str, int]],
    scores: PoleScores,
    moved: MovedEffects,
) -> dict[str, Any]:
    """The part of the results that the figures of the scan are drawn from.

    Args:
        everywhere: every pole and concept.
        named: concept and layer of every pole that the scan names.
        scores: of Stage 2.
        moved: the candidates' vectors under other neurons' firing.
    """
    return {
        "poles_and_concepts": everywhere.p.size,
        "cut_off": plain(everywhere.cut_off) if everywhere.cut_off >= 0 else None,
        "controls": everywhere.about["controls"],
        "effect_by_score": effect_by_score(everywhere, scores, moved),
        "effect_by_layer": effect_by_layer(everywhere, named),
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
    effect, is_used = everywhere.mean[at].astype(float), everywhere.is_used[at]
    counts, _, _ = np.histogram2d(scores.score, _inside(effect), (SCORES, EFFECTS))
    whole, _ = np.histogram(_inside(everywhere.mean.astype(float).ravel()), EFFECTS)
    rest = {
        "n": everywhere.p.size - len(effect),
        "used": int(everywhere.is_used.sum() - is_used.sum()),
    }
    return {
        "score_edges": SCORES.round(6).tolist(),
        "effect_edges": [plain(edge) for edge in EFFECTS],
        "with_score": counts.astype(int).tolist(),
        "without_score": (whole - counts.sum(0).astype(int)).tolist(),
        "used_by_score": _used_by_score(scores.score, is_used),
        "used_without_score": rest,
        "moved": [[plain(s), plain(m)] for s, m in zip(moved.score, moved.mean, strict=True)],
        "moved_used_by_score": _used_by_score(moved.score, moved.is_used),
    }


def _inside(effect: np.ndarray) -> np.ndarray:
    return np.clip(effect, EFFECTS[0], EFFECTS[-1])


def _used_by_score(score: np.ndarray, is_used: np.ndarray) -> list[dict[str, int]]:
    total, _ = np.histogram(score, SCORES)
    used, _ = np.histogram(score[is_used], SCORES)
    return [{"n": int(n), "used": int(k)} for n, k in zip(total, used, strict=True)]


def effect_by_layer(
    everywhere: Everywhere, named: Sequence[tuple[str, int]]
) -> dict[str, dict[str, list[Any]]]:
    """Concept → by layer: the largest effect of a pole that serves it, and how many are named."""
    serves = everywhere.is_specific & (everywhere.p <= NO_CHANCE)
    serving = np.where(serves, everywhere.mean, 0).max((2, 3))  # (C, L)
    whole = {}
    for c, concept in enumerate(everywhere.concepts):
        layers = [layer for name, layer in named if name == concept]
        whole[concept] = {
            "largest": [plain(effect) for effect in serving[c]],
            "named": [layers.count(layer) for layer in everywhere.layers],
        }
    return whole
