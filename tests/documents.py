"""A results document with everything that can go wrong in a display: hostile text, every verdict, every script."""

from __future__ import annotations

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


def entry(
    number: int, verdict: str = "validated", concept: str = "animals", **changes: Any
) -> dict[str, Any]:
    drop = {
        "concept_drop": 0.4 - 0.05 * number,
        "unrelated_drop": 0.01 * number,
        "selectivity": 0.4 - 0.06 * number,
    }
    return {
        "id": f"L{number % 4:02d}_N{number:04d}{'+-'[number % 2]}", "layer": number % 4, "neuron": number,
        "pole": "+-"[number % 2], "concept": concept, "score": 1 - 0.02 * number, "score_components": {"words": 9},
        "top_tokens": [[t, 2.0 - 0.1 * i] for i, t in enumerate(TOKENS)],
        "opposite_tokens": [[" table", -1.0], [f" only{number}", -0.5]],
        "verdict": verdict, "validated": verdict == "validated", "failed": [] if verdict == "validated" else ["why"],
        **drop, "ci95": [drop["selectivity"] - 0.1, drop["selectivity"] + 0.1], "p_value": 0.001, "q_value": 0.01,
        "n_concept_prompts": 30, "n_unrelated_prompts": 60, "answers_in_top_tokens": 0.5, "firing_share": 0.9,
        "stopped_early": False, "draws": 5,
        "damage": {kind: drop | {"neutral_kl": 0.01} for kind in ("noise", "zero", "mean")},
        "activation": {"mean": 0.1, "max_abs": 3.0, "firing_rate": 0.02, "positive_share": 0.5,
                       "contexts": [[f"the » dog« {HOSTILE}", 3.0]]},
    } | ({"dose_response": [{"ratio": r} | drop for r in (0.5, 1.0, 2.0, 4.0)]} if verdict == "validated" else {}
         ) | changes  # fmt: skip


def document(entries: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    if entries is None:
        verdicts = (
            "validated",
            "validated",
            "not_specific",
            "no_effect",
            "inactive",
            "inconclusive",
        )
        concepts = ("animals", "<b>色</b>")
        entries = [entry(i, v, concepts[i % 2]) for i, v in enumerate(verdicts)]
        entries[-1] |= {"concept_drop": None, "unrelated_drop": None, "selectivity": None, "ci95": [None, None],
                        "p_value": None, "q_value": None}  # fmt: skip
    names = ["animals", "<b>色</b>", "colors"]
    count = lambda some: {n: sum(e["concept"] == n for e in some) for n in names}
    valid = [e for e in entries if e["validated"]]
    return {
        "schema_version": 1, "created": "2026-01-01T00:00:00+00:00", "conceptvec_version": "0",
        "configuration": {"model": "m", "seed": 0, "damage": ["noise", "zero", "mean"], "score_threshold": 0.75},
        "model": {"id": "<i>model</i>", "revision": None, "fingerprint": "0" * 64, "family": "gemma3", "layers": 4,
                  "hidden_size": 8, "intermediate_size": 16, "vocab_size": 1000, "dtype": "float32", "device": "cpu"},
        "environment": {}, "timings": {}, "resources": {},
        "pipeline_stats": {"total_candidates": 64, "filtered_candidates": 60, "concept_candidates": len(entries),
                           "tested_vectors": len(entries), "validated_vectors": len(valid), "success_rate": 0.1},
        "computational_complexity": {"projection_flops": 1, "full_scale_projection_flops": 1, "validation_flops": 1,
                                     "parameters_examined": 1},
        "concept_distribution": count(valid), "candidate_distribution": count(entries), "labels": {"none": 100},
        "score_histogram": {"poles": [5] * 49 + [9], "null": [3] * 50}, "layers": [0, 1, 2, 3],
        "scoring_nulls": {"lists": 150, "reached_threshold": 3, "share": 0.02}, "other_groups": [], "prompts": {},
        "untested_candidates": [],
        "verdicts": {v: sum(e["verdict"] == v for e in entries) for v in {e["verdict"] for e in entries}},
        "validation_results": entries,
        "null_calibration": {"null_neurons": 2, "tested": 2, "false_validations": 0, "false_validation_rate": 0.0,
                             "points": [[0, 1, "animals", 0.001, 0.002], [1, 2, "animals", 0.6, 0.9]]},
    }  # fmt: skip
