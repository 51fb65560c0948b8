"""How results look in a terminal and in a notebook cell: plain tables and short sentences."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conceptvec.extraction.stage import Candidates
    from conceptvec.scoring.stage import Scored

ROWS = 25


def _tabulate(rows: list[list[Any]], headers: Sequence[str], form: str = "simple") -> str:
    from tabulate import tabulate  # only where a table is wanted: `score-tokens` does without

    return str(tabulate(rows, headers, tablefmt=form, disable_numparse=True))


def printable(text: str, keep: str = "") -> str:
    """Text from a vocabulary without control characters, so that a terminal shows it and does nothing else."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return "".join(
        "�" if unicodedata.category(ch) in hidden and ch not in keep else ch for ch in text
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where nothing was measured."""
    text = "–" if value is None else f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def summary(document: dict[str, Any]) -> str:
    """The closing lines of a run."""
    stats, model = document["pipeline_stats"], document["model"]
    where = f"{printable(model['id'])} on {model['device']} in {model['dtype']}"
    lines = [f"{where}: {stats['total_candidates']:,} neurons examined"]
    if stats["concept_candidates"] is not None:
        lines[0] += f", {stats['concept_candidates']} concept candidates"
    if stats["tested_vectors"] is not None:
        hit = sum(1 for n in document["concept_distribution"].values() if n)
        lines[0] += f", {stats['tested_vectors']} tested"
        lines.append(
            f"{stats['validated_vectors']} validated vectors in {hit} of {len(document['concept_distribution'])} "
            f"concepts (other verdicts: {_listed({k: v for k, v in document['verdicts'].items() if k != 'validated'})})"
        )
        nulls = document["null_calibration"]
        if nulls.get("tested"):
            lines.append(
                f"nulls: {nulls['false_validations']} of {nulls['tested']} null neurons pass the tests of the "
                "primary damage"
            )
        if stats["validated_vectors"] < nulls.get("fewest_hits", 0):
            lines.append(
                f"resolution: with {nulls['null_neurons']} null neurons, fewer than {nulls['fewest_hits']} hits among "
                "these tested poles cannot reach q ≤ 0.05; more --nulls can"
            )
    elif stats["concept_candidates"] is None:
        lines.append(
            "Stage 1 only, from the weights alone: no activation was measured, nothing was scored or damaged"
        )
    else:
        lines.append(
            f"Stages 1 and 2 only, nothing was damaged: {_listed(document['candidate_distribution'])}"
        )
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return (
        ", ".join(f"{v} {printable(k).replace('_', ' ')}" for k, v in counts.items() if v) or "none"
    )


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


def rows(document: dict[str, Any], limit: int | None = ROWS) -> list[list[str]]:
    """The tested candidates as table rows, best first."""
    return [
        [
            e["id"], printable(e["concept"]), number(e["score"], 2), e["verdict"], number(e["concept_drop"]),
            number(e["unrelated_drop"]), f"{number(e['ci95'][0], 2)} … {number(e['ci95'][1], 2)}",
            number(e["q_value"]), printable(" ".join(t.strip() for t, _ in e["top_tokens"][:6])),
        ]
        for e in document["validation_results"][:limit]
    ]  # fmt: skip


def table(document: dict[str, Any], limit: int | None = ROWS) -> str:
    """The results as text: summary and table. Drops are in nats per answer token."""
    found = document["validation_results"]
    if not found:
        return summary(document)
    text = _tabulate(rows(document, limit), HEADERS)
    more = f"\n… and {len(found) - limit} more (--all)" if limit and len(found) > limit else ""
    return f"{summary(document)}\n\n{text}{more}\n\nDrops are in nats per answer token under the primary damage."


def checks_table(found: dict[str, Any]) -> str:
    """The answer of `selfcheck` as text."""
    body = [
        [c["check"], c["shapes"], "–" if c["largest_difference"] is None else f"{c['largest_difference']:.1e}",
         f"{c['allowed']:.0e}", "ok" if c["ok"] else f"WRONG {printable(c['problem'] or '')}"]
        for c in found["checks"]
    ]  # fmt: skip
    table = _tabulate(body, ("check", "shapes", "difference", "allowed", ""))
    said = (
        "computes correctly"
        if found["ok"]
        else "computes WRONGLY: use --device cpu, or another version of torch"
    )
    return f"{table}\n\n{found['device']} in {found['dtype']} ({found['why']}) {said}"


def bench_table(found: dict[str, Any]) -> str:
    """The answer of `bench` as text: a value per line under its dotted name."""
    body: list[list[Any]] = []
    stack = list(found.items())[::-1]
    while stack:
        name, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{name}.{k}", v) for k, v in value.items()][::-1]
        else:
            body.append([name, f"{value:.4g}" if isinstance(value, float) else value])
    return _tabulate(body, ())


def html(rows: list[list[Any]], headers: tuple[str, ...] | list[str]) -> str:
    """A plain, escaped HTML table."""
    table = _tabulate(rows, headers, "html")
    for tag in ("th", "td"):  # Jupyter aligns cells to the right unless told otherwise
        table = table.replace(f"<{tag}>", f'<{tag} style="text-align: left; padding-right: 1em">')
    return table


def results_html(document: dict[str, Any]) -> str:
    """Results in a notebook cell."""
    lines = "<br>".join(escape(summary(document)).splitlines())
    return f"<p>{lines}</p>{html(rows(document), HEADERS)}"


def candidates_html(candidates: Candidates) -> str:
    """Stage 1 in a notebook cell: the neurons whose readouts have the heaviest tails."""
    best = sorted(
        ((p, i) for p in candidates.layers for i in range(len(p.neurons))),
        key=lambda x: -x[0].kurtosis[x[1]],
    )[:10]
    body = []
    for p, i in best:
        for pole in "+-":
            words = " ".join(
                printable(candidates.tokens[t]).strip() for t in p.pole(pole)[0][i][:8]
            )
            body.append(
                [f"L{p.layer:02d}_N{p.neurons[i]:04d}{pole}", f"{p.kurtosis[i]:.1f}", words]
            )
    return f"<p>{candidates!r}</p>{html(body, ('vector', 'excess kurtosis', 'tokens'))}"


def scored_html(scored: Scored) -> str:
    """Stage 2 in a notebook cell: the best candidates."""
    body = [
        [
            e["id"],
            e["concept"],
            number(e["score"], 2),
            printable(" ".join(t.strip() for t, _ in e["top_tokens"][:8])),
        ]
        for e in scored.entries[:ROWS]
    ]
    return (
        f"<p>{len(scored.entries)} concept candidates; answers: {escape(_listed(scored.labels))}</p>"
        + html(body, ("vector", "concept", "score", "tokens"))
    )


def knowledge_table(document: dict[str, Any]) -> str:
    """How well the model knows the prompts' answers, and the prompts that are left out."""
    from conceptvec.validation.measure import KNOWN_RANK

    groups = document["concepts"]
    body = [
        [
            printable(n),
            g["prompts"],
            g["known"],
            number(g["median_log_p"], 2),
            f"{g['median_rank']:,.0f}",
        ]
        for n, g in groups.items()
    ]
    text = _tabulate(body, ("concept", "prompts", "known", "median log p", "median rank"))
    out = [f"  {printable(a['prompt'] + a['answer'])}  (rank {a['rank']:,})"
           for g in groups.values() for a in g["answers"] if not a["known"]]  # fmt: skip
    rule = (
        f"Left out, because an answer token is not among the {KNOWN_RANK:,} likeliest: {len(out)}"
    )
    return "\n".join([text, "", "log p in nats per answer token. " + rule, *out])


def found_table(found: dict[str, Any]) -> str:
    """What `find` found, as text."""
    forms = "; ".join(f"{w}: {printable(' | '.join(t))}" for w, t in found["words"].items())
    body = [
        [
            f["id"], number(f["standing"], 1), number(f["strength"], 1),
            ", ".join(f"{printable(w['token'].strip())} #{w['rank']}" for w in f["words"].values()),
            printable(" ".join(t.strip() for t, _ in f["top_tokens"][:8])),
        ]
        for f in found["results"]
    ]  # fmt: skip
    table = _tabulate(body, ("vector", "standing", "strength", "best form and its rank", "tokens"))
    return (
        f"{found['neurons_examined']:,} neurons of {found['model']}, forms {forms}\n\n{table}\n\nStrength: the words' "
        "mean readout in standard deviations of the neuron's own; standing: that, against its layer's neurons."
    )


def calibration_table(document: dict[str, Any]) -> str:
    """The answer of `calibrate` as text."""
    groups = [
        ("random neurons", document["random"]),
        ("random, firing", document["firing"]),
        ("permuted labels", document["permuted"]),
    ]
    groups += [(f"planted, worth {row['effect']:g} nats", row) for row in document["planted"]]
    body = [
        [name, g["vectors"], g["tested"], g["validated"], f"{g['rate']:.1%}" if g["vectors"] else "none to find",
         f"{g['ci95'][0]:.1%} … {g['ci95'][1]:.1%}",
         g["validated_uncorrected"], "" if g.get("concept_drop") is None else f"{g['concept_drop']:.3f}"]
        for name, g in groups
    ]  # fmt: skip
    headers = (
        "group",
        "vectors",
        "tested",
        "validated",
        "rate",
        "95 % interval",
        "without correction",
        "concept drop",
    )
    return _tabulate(body, headers)
