"""A results document with everything that can go wrong in a display: hostile text, every verdict and script."""

from __future__ import annotations

from collections import Counter
from typing import Any

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
TOKENS = [
    " dog",
    "狗",
    " собака",
    " कुत्ता",
    " كلب",
    " 🐶",
    HOSTILE,
    "\x1b[31mred",
    "\u202eabc",
    " $x_1$",
    "a&amp;b",
    " λ",
]
KINDS = ("zero", "rotate", "mean")
VERDICTS = ("validated", "validated", "not_specific", "no_effect", "inactive", "inconclusive")
NO_DROPS = dict.fromkeys(
    (
        "concept_drop",
        "unrelated_drop",
        "elsewhere_drop",
        "others_drop",
        "silent_drop",
        "selectivity",
    )
)
UNTESTED = NO_DROPS | {"ci95": [None, None], "damage": {}, "examples": [], "words": []}
SCAN = {
    "zero": 0.05,
    "mean": 0.06,
    "largest_other": 0.01,
    "largest_other_concept": "colors",
    "words": 7,
    "known_words": 30,
    "without_strongest_word": 0.05,
    "p_words": 0.001,
    "p_moved": 0.001,
    "exact_zero": None,
    "exact_mean": None,
    "by_concept": {"animals": 0.06, "<b>色</b>": -0.004, "colors": None},
}
EXAMPLE = {
    "ids": [2, 10, 11],
    "text": f"the {HOSTILE}",
    "word": " dog",
    "own": True,
    "activation": 3.0,
    "clean": -1.0,
    "damaged": -2.5,
}


def candidate(number: int, concept: str = "animals") -> dict[str, Any]:
    """A candidate of Stage 2; even numbers are positive poles."""
    sign = "+-"[number % 2]
    return {
        "id": f"L{number % 4:02d}_N{number:04d}{sign}",
        "layer": number % 4,
        "neuron": number,
        "pole": sign,
        "concept": concept,
        "score": 1 - 0.02 * number,
        "score_components": {"words": 9},
        "top_tokens": [[token, 2.0 - 0.1 * i] for i, token in enumerate(TOKENS)],
        "opposite_tokens": [[" table", -1.0], [f" only{number}", -0.5]],
    }


def entry(
    number: int, verdict: str = "validated", concept: str = "animals", **changes: Any
) -> dict[str, Any]:
    """A tested candidate; the larger its number, the smaller its effect."""
    drops = {
        "concept_drop": 0.4 - 0.05 * number,
        "unrelated_drop": 0.01 * number,
        "elsewhere_drop": 0.01 * number,
        "others_drop": 0.0,
        "silent_drop": 0.0,
        "selectivity": 0.4 - 0.06 * number,
    }
    validated = verdict == "validated"
    tested = {
        "verdict": verdict,
        "validated": validated,
        "failed": [] if validated else ["why"],
        "ci95": [drops["selectivity"] - 0.1, drops["selectivity"] + 0.1],
        "p_value": 0.001,
        "q_value": 0.01,
        "n_concept_positions": 30,
        "n_unrelated_positions": 28,
        "n_silent_positions": 16,
        "n_unmatched_positions": 2,
        "answers_in_top_tokens": 0.5,
        "damage": {kind: drops for kind in KINDS},
        "scan": SCAN,
        "firing": {"ratio": 2.0, "p": 0.001},
        "gate_up": {
            "plus_plus": 0.75,
            "plus_minus": 0.0,
            "minus_plus": 0.0,
            "minus_minus": 0.25,
        },
        "words": [["dog", 0.6, 4]],
        "examples": [EXAMPLE],
        "prompts": None,
        "continuations": [],
        "found_by": "projection",
        "activation": {
            "mean": 0.1,
            "max_abs": 3.0,
            "firing_rate": 0.02,
            "positive_share": 0.5,
            "contexts": [[f"the » dog« {HOSTILE}", 3.0]],
        },
    }
    return candidate(number, concept) | drops | tested | changes


def six_entries() -> list[dict[str, Any]]:
    """One entry of each verdict, two of them validated, the last one unmeasured."""
    concepts = ("animals", "<b>色</b>")
    entries = [entry(i, verdict, concepts[i % 2]) for i, verdict in enumerate(VERDICTS)]
    entries[-1] |= UNTESTED
    return entries


def document(entries: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The results of a run of all stages."""
    entries = six_entries() if entries is None else entries
    names = ["animals", "<b>色</b>", "colors"]
    candidates = Counter(e["concept"] for e in entries)
    valid = Counter(e["concept"] for e in entries if e["validated"])
    return {
        "schema_version": 2,
        "created": "2026-01-01T00:00:00+00:00",
        "conceptvec_version": "0",
        "configuration": {
            "model": "m",
            "seed": 0,
            "damage": list(KINDS),
            "score_threshold": 0.75,
            "fold": "both",
        },
        "model": {
            "id": "<i>model</i>",
            "revision": None,
            "fingerprint": "0" * 64,
            "family": "gemma3",
            "layers": 4,
            "hidden_size": 8,
            "intermediate_size": 16,
            "vocab_size": 1000,
            "dtype": "float32",
            "why_dtype": "exact on a CPU",
            "device": "cpu",
        },
        "environment": {},
        "pipeline_stats": {
            "total_candidates": 64,
            "filtered_candidates": 60,
            "concept_candidates": len(entries),
            "tested_vectors": len(entries),
            "validated_vectors": valid.total(),
            "success_rate": 0.1,
        },
        "computational_complexity": {
            "projection_flops": 1,
            "full_scale_projection_flops": 1,
            "validation_flops": 1,
            "parameters_examined": 1,
        },
        "timings": {},
        "resources": {},
        "agreement": {},
        "concept_distribution": {name: valid[name] for name in names},
        "candidate_distribution": {name: candidates[name] for name in names},
        "labels": {"none": 100},
        "score_histogram": {"poles": [5] * 49 + [9], "null": [3] * 50},
        "scoring_nulls": {"lists": 150, "reached_threshold": 3, "share": 0.02, "layers": []},
        "other_groups": [],
        "untested_candidates": [],
        "layers": [0, 1, 2, 3],
        "verdicts": dict(Counter(e["verdict"] for e in entries)),
        "validation_results": entries,
        "null_calibration": control(points=[point(0.001, 0.002), point(0.9, 0.6)])
        | {"wrong_concept": control(), "moved": control(n=20)},
        "effect_only": [],
        "concept_sets": [],
        "scan_overview": None,
        "text": {
            "corpus": "self",
            "digest": "0" * 64,
            "passages": 3,
            "documents": 3,
            "tokens": 100,
            "known_words": {name: 9 for name in names},
        },
    }


def control(n: int = 2, points: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What one kind of control gave."""
    return {
        "n": n,
        "used": len(points or []),
        "false_validations": 0,
        "false_validation_rate": 0.0,
        "ci95": [0.0, 0.5],
        "points": points or [],
    }


def point(unrelated: float, own: float) -> dict[str, Any]:
    """A control that was damaged."""
    return {
        "id": "L00_N0001+",
        "in_place_of": None,
        "concept": "animals",
        "concept_drop": own,
        "unrelated_drop": unrelated,
        "verdict": "no_effect",
    }
