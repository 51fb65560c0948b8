"""How results look in a terminal and in a notebook cell: short sentences and a plain table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from conceptvec.text import html_table, listed, notebook_html, number, printable, table, words_of

ROWS = 25
SHOWN_TOKENS = 6
HEADERS = (
    "id",
    "concept",
    "score",
    "verdict",
    "concept drop",
    "unrelated",
    "95 % interval",
    "q",
    "tokens",
)
CANDIDATE_HEADERS = ("id", "concept", "score", "tokens")
EFFECT_ONLY_HEADERS = ("id", "concept", "effect", "carrying words", "q", "tokens")
GROUPS = 10
GROUP_HEADERS = ("poles", "central words")
GROUPS_TITLE = "The largest groups outside the concepts"
SIGNS = {
    "plus_plus": "gate + and up +",
    "plus_minus": "gate + and up −",
    "minus_plus": "gate − and up +",
    "minus_minus": "gate − and up −",
}
UNIT = "Drops are in nats under the primary damage; – where the verdict needed no damage."


def summary(document: Mapping[str, Any]) -> str:
    """The closing lines of a run."""
    stats = document["pipeline_stats"]
    if stats["tested_vectors"] is not None:
        closing = [_verdicts(document), *_nulls(document)]
    elif stats["concept_candidates"] is not None:
        candidates = listed(document["candidate_distribution"])
        closing = [f"Stages 1 and 2 only, nothing was damaged: {candidates}"]
    else:
        closing = [
            "Stage 1 only, from the weights alone: no activation was measured, "
            "nothing was scored or damaged"
        ]
    return "\n".join([_examined(document), *closing])


def _examined(document: Mapping[str, Any]) -> str:
    """The model, and how much of it each stage looked at."""
    stats, model = document["pipeline_stats"], document["model"]
    steps = [f"{stats['total_candidates']:,} neurons examined"]
    if stats["concept_candidates"] is not None:
        steps.append(f"{stats['concept_candidates']} concept candidates")
    if stats["tested_vectors"] is not None:
        steps.append(f"{stats['tested_vectors']} tested")
    where = f"{printable(model['id'])} on {model['device']} in {model['dtype']}"
    return f"{where}: {', '.join(steps)}"


def _verdicts(document: Mapping[str, Any]) -> str:
    per_concept = document["concept_distribution"]
    hit = sum(count > 0 for count in per_concept.values())
    others = {k: n for k, n in document["verdicts"].items() if k != "validated"}
    return (
        f"{document['pipeline_stats']['validated_vectors']} validated vectors in {hit} of "
        f"{len(per_concept)} concepts (other verdicts: {listed(others)})"
    )


CONTROLS = {
    "null": "null neurons",
    "wrong_concept": "candidates under a wrong concept",
    "moved": "vectors moved to other neurons",
}


def _nulls(document: Mapping[str, Any]) -> list[str]:
    """What the controls gave."""
    calibration = document["null_calibration"]
    phrases = list[str]()
    for kind, name in CONTROLS.items():
        control = calibration if kind == "null" else calibration.get(kind, {})
        if control.get("n") and "false_validations" in control:
            phrases.append(f"{control['false_validations']} of {control['n']} {name}")
    return [f"controls validated: {', '.join(phrases)}"] if phrases else []


def result_rows(document: Mapping[str, Any], limit: int | None = ROWS) -> list[list[str]]:
    """The tested candidates as table rows under `HEADERS`, best first."""
    return [_row(entry) for entry in document["validation_results"][:limit]]


def _row(entry: Mapping[str, Any]) -> list[str]:
    low, high = entry["ci95"]
    return [
        entry["id"],
        printable(entry["concept"]),
        number(entry["score"], 2),
        entry["verdict"],
        number(entry["concept_drop"]),
        number(entry["unrelated_drop"]),
        f"{number(low, 2)} … {number(high, 2)}",
        number(entry["q_value"]),
        words_of(token for token, _ in entry["top_tokens"][:SHOWN_TOKENS]),
    ]


def candidate_rows(document: Mapping[str, Any], limit: int | None = ROWS) -> list[list[str]]:
    """Candidates that no stage has tested as rows under `CANDIDATE_HEADERS`, best first."""
    return [
        [
            entry["id"],
            printable(entry["concept"]),
            number(entry["score"], 2),
            words_of(token for token, _ in entry["top_tokens"][:SHOWN_TOKENS]),
        ]
        for entry in document["untested_candidates"][:limit]
    ]


def effect_only_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Poles that the scan alone names as rows under `EFFECT_ONLY_HEADERS`, as they are listed."""
    return [
        [
            entry["id"],
            printable(entry["concept"]),
            number(entry["scan"]["mean"]),
            str(entry["scan"]["words"]),
            number(entry["q"], 4),
            words_of(token for token, _ in entry["top_tokens"][:SHOWN_TOKENS]),
        ]
        for entry in document["effect_only"]
    ]


def signs_line(entry: Mapping[str, Any]) -> str:
    """In which signs of gate and up a neuron fires before its words; empty where not measured."""
    shares = entry.get("gate_up")
    if not shares:
        return ""
    phrases = [f"{name} in {shares[key]:.0%}" for key, name in SIGNS.items() if shares[key]]
    return f"signs before its words: {', '.join(phrases)}"


def group_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """The largest groups of poles that are coherent and no concept, under `GROUP_HEADERS`."""
    return [
        [str(len(group["ids"])), words_of(group["tokens"])]
        for group in document["other_groups"][:GROUPS]
    ]


def _best(document: Mapping[str, Any], limit: int | None) -> tuple[list[list[str]], Any, int]:
    """Rows and heads of what was tested, or else of the candidates, and how many there are."""
    if tested := document["validation_results"]:
        return result_rows(document, limit), HEADERS, len(tested)
    return candidate_rows(document, limit), CANDIDATE_HEADERS, len(document["untested_candidates"])


def results_table(document: Mapping[str, Any], limit: int | None = ROWS) -> str:
    """The results as text: summary, what was tested, and the largest groups besides."""
    blocks = [summary(document)]
    rows, heads, total = _best(document, limit)
    if rows:
        rest = f"\n… and {total - len(rows)} more (--all)" if total > len(rows) else ""
        blocks.append(table(rows, heads) + rest)
    if document["validation_results"]:
        blocks.append(UNIT)
    if groups := group_rows(document):
        blocks.append(f"{GROUPS_TITLE}:\n\n{table(groups, GROUP_HEADERS)}")
    return "\n\n".join(blocks)


def results_html(document: Mapping[str, Any]) -> str:
    """Results in a notebook cell."""
    lines = "<br>".join(escape(summary(document)).splitlines())
    rows, heads, _ = _best(document, ROWS)
    blocks = [f"<p>{lines}</p>", html_table(rows, heads) if rows else ""]
    if groups := group_rows(document):
        blocks.append(f"<p>{GROUPS_TITLE}</p>{html_table(groups, GROUP_HEADERS)}")
    return notebook_html("".join(blocks))
