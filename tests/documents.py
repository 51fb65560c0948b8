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
KINDS = ("noise", "zero", "mean")
VERDICTS = ("validated", "validated", "not_specific", "no_effect", "inactive", "inconclusive")
UNTESTED = {
    "concept_drop": None,
    "unrelated_drop": None,
    "selectivity": None,
    "ci95": [None, None],
    "p_value": None,
    "q_value": None,
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
        "selectivity": 0.4 - 0.06 * number,
    }
    damaged = drops | {"neutral_kl": 0.01}
    validated = verdict == "validated"
    tested = {
        "verdict": verdict,
        "validated": validated,
        "failed": [] if validated else ["why"],
        "ci95": [drops["selectivity"] - 0.1, drops["selectivity"] + 0.1],
        "p_value": 0.001,
        "q_value": 0.01,
        "p_null": 0.001,
        "p_labels": 0.001,
        "n_nulls": 2,
        "n_concept_prompts": 30,
        "n_unrelated_prompts": 60,
        "n_concept_prompts_left_out": 6,
        "split_half": [0.4, 0.4],
        "firing_share": 0.9,
        "answers_in_top_tokens": 0.5,
        "stopped_early": False,
        "draws": 5,
        "damage": {kind: damaged for kind in KINDS},
        "activation": {
            "mean": 0.1,
            "max_abs": 3.0,
            "firing_rate": 0.02,
            "positive_share": 0.5,
            "contexts": [[f"the » dog« {HOSTILE}", 3.0]],
        },
    }
    if validated:
        tested["dose_response"] = [{"ratio": ratio} | drops for ratio in (0.5, 1.0, 2.0, 4.0)]
    return candidate(number, concept) | damaged | tested | changes


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
        "schema_version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "conceptvec_version": "0",
        "configuration": {
            "model": "m",
            "seed": 0,
            "damage": list(KINDS),
            "score_threshold": 0.75,
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
        "prompts": {},
        "validation_results": entries,
        "null_calibration": {
            "null_neurons": 2,
            "fewest_hits": 0,
            "tested": 2,
            "false_validations": 0,
            "false_validation_rate": 0.0,
            "points": [[0, 1, "animals", 0.001, 0.002], [1, 2, "animals", 0.6, 0.9]],
        },
    }
