"""Stage 3: damage each candidate, measure what the model loses on its concept and elsewhere, compare with nulls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.config import Config
from conceptvec.runfolder import Arrays, Parts, Task, part_name
from conceptvec.scoring.stage import Scored
from conceptvec.text import plain
from conceptvec.validation import statistics as stats
from conceptvec.validation.agreement import damage_agreement
from conceptvec.validation.measure import RATIOS, Experiment, PromptTable
from conceptvec.validation.nulls import (
    Entry,
    Likeness,
    Nulls,
    calibration,
    measure_nulls,
    selectivity,
)
from conceptvec.validation.rule import VERDICTS, untestable, verdict
from conceptvec.validation.sets import add_continuations, measure_sets

if TYPE_CHECKING:
    from conceptvec.extraction.activations import Activations
    from conceptvec.model.network import Model

CANDIDATES_PER_UNIT = 8


@dataclass(frozen=True)
class Validation:
    """What Stage 3 found.

    Attributes:
        entries: one dict per tested candidate, best first.
        table: the prompts of the run.
        calibration: what the null neurons gave.
        cost: layer-tokens replayed, positions unembedded.
        agreement: of a sample of damaged passes with the CPU.
        sets: the concepts' best vectors damaged together.
        seconds: that it took.
    """

    entries: list[dict[str, Any]]
    table: PromptTable
    calibration: dict[str, Any]
    cost: np.ndarray
    agreement: dict[str, Any]
    sets: list[dict[str, Any]]
    seconds: float


def damage_candidates(
    scored: Scored, model: Model, config: Config, parts: Parts | None = None
) -> Validation:
    """Stage 3 on every concept candidate whose concept has prompts.

    Args:
        scored: Stage 2.
        model: the model; it is never written.
        config: damage kinds, noise, draws, nulls, seed, batch_size.
        parts: keeps finished parts (a `store.RunFolder`).

    Returns:
        the judged candidates and the nulls.

    Raises:
        RunError: a forward pass gives NaN or infinity, or a sample of damaged passes does not agree with the CPU.
    """
    start, parts = time.perf_counter(), parts or Parts()
    prompts, activations = scored.concepts.prompts(), scored.candidates.activations
    everything = [prompt for group in prompts.values() for prompt in group]
    layers = [p.layer for p in scored.candidates.layers]
    checked = damage_agreement(model, config, layers, everything)
    entries = [dict(e) for e in scored.entries if e["concept"] in prompts]
    table = PromptTable.build(model, config, prompts)
    experiment = Experiment(model, config, table, activations.mean)
    at_end = table.engine.at_answers([p.layer for p in scored.candidates.layers]) if entries else {}
    for e in entries:
        e["firing_share"] = firing(e, activations, table, at_end)
    measured = measure(experiment, entries, parts)
    like = Likeness(model, table, at_end)
    nulls = measure_nulls(experiment, entries, like, parts)
    judge(entries, measured, nulls, experiment)
    for e in entries:
        tops = {t.strip().casefold() for t, _ in e["top_tokens"]}
        answers = [p.answer.strip().casefold() for p in prompts[e["concept"]]]
        e["answers_in_top_tokens"] = plain(np.mean([a in tops for a in answers]))
        e["activation"] = activations.of(e["layer"], e["neuron"], model)
    order = list(entries)
    entries.sort(key=lambda e: (VERDICTS.index(e["verdict"]), -(e["selectivity"] or 0.0), e["id"]))
    primary = {e["id"]: m["drop"][0] for e, m in zip(order, measured, strict=True)}
    sets, cost = measure_sets(experiment, order, list(primary.values()), like, parts)
    for e in entries:
        mine = table.concept(e["concept"])
        if e["validated"]:
            e["hardest_prompt"] = table.groups[e["concept"]].index(
                mine[int(primary[e["id"]][mine].argmax())]
            )
    add_continuations(experiment, entries, prompts, parts)
    cost = sum((m["cost"] for m in measured), nulls.cost + cost) + _dose_response(
        experiment, entries, parts
    )
    nulls_gave = calibration(nulls, table, entries, config.seed)
    seconds = round(time.perf_counter() - start, 3)
    return Validation(entries, table, nulls_gave, cost, checked, sets, seconds)


def firing(
    e: Entry, activations: Activations, table: PromptTable, at_end: dict[int, np.ndarray]
) -> float:
    """Share of the concept's known prompts that make the neuron fire, with the pole's sign, at the predicting token."""
    mine = table.concept(e["concept"])
    if not mine:
        return 0.0
    level = activations.firing_level(e["layer"])[e["neuron"]]
    a = at_end[e["layer"]][mine, e["neuron"]] * (1 if e["pole"] == "+" else -1)
    return float((a >= level).mean())


def measure(experiment: Experiment, entries: Sequence[Entry], parts: Parts) -> list[Arrays]:
    """Measure the candidates unit by unit; one dict of arrays per entry."""
    table, tasks = experiment.table, list[Task]()
    where: dict[int, tuple[int, int]] = {}
    for layer in sorted({e["layer"] for e in entries}):
        mine = sorted(
            (i for i, e in enumerate(entries) if e["layer"] == layer),
            key=lambda i: entries[i]["id"],
        )
        neurons = tuple(sorted({entries[i]["neuron"] for i in mine}))
        for start in range(0, len(mine), CANDIDATES_PER_UNIT):
            unit = mine[start : start + CANDIDATES_PER_UNIT]
            where |= {i: (len(tasks), row) for row, i in enumerate(unit)}
            some = [entries[i] for i in unit]
            about = [
                (e["id"], e["concept"], e["firing_share"], table.controls([e["concept"]]))
                for e in some
            ]
            name = part_name(
                f"validation/L{layer:02d}_candidates_{start // CANDIDATES_PER_UNIT:03d}", about
            )
            compute = lambda layer=layer, neurons=neurons, some=some: experiment.candidate_unit(
                layer, neurons, some
            )
            tasks.append((name, compute))
    done = parts.map(tasks, "Stage 3: damaging candidates", "unit") if tasks else []
    return [{k: v[where[i][1]] for k, v in done[where[i][0]].items()} for i in range(len(entries))]


def judge(
    entries: Sequence[Entry], measured: Sequence[Arrays], nulls: Nulls, experiment: Experiment
) -> None:
    """Fill every entry with its statistics and verdict.

    p is the larger of two: against the null neurons, and of a label permutation. q is Benjamini-Hochberg over all
    that are tested; what is `untestable` has neither. A candidate that was stopped early has fewer draws than the
    nulls, so its p is 1, which is always valid.
    """
    table, kinds, seed = experiment.table, experiment.config.damage, experiment.config.seed
    for e, m in zip(entries, measured, strict=True):
        mine, others = table.concept(e["concept"]), table.unrelated(e["concept"])
        e["n_concept_prompts"], e["n_unrelated_prompts"] = len(mine), len(others)
        e["n_concept_prompts_left_out"] = len(table.groups[e["concept"]]) - len(mine)
        e["draws"], e["stopped_early"] = int(m["draws"]), bool(m["stopped"])
        values = selectivity(m["drop"], table, e["concept"])
        e["damage"] = {
            kind: {k: plain(v[i]) for k, v in values.items() if k != "t"}
            | {"neutral_kl": plain(m["kl"][i])}
            for i, kind in enumerate(kinds)
        }
        e |= e["damage"][kinds[0]]
        concept, unrelated = m["drop"][0][mine], m["drop"][0][others]
        e["split_half"] = [
            plain(half.mean()) if len(half) else None for half in (concept[::2], concept[1::2])
        ]
        e |= {"ci95": [None, None], "p_value": None, "p_null": None, "p_labels": None, "n_nulls": 0}
        rng = np.random.default_rng([seed, e["layer"], e["neuron"], int(e["pole"] == "+"), 5])
        if len(concept) and len(unrelated):
            e["ci95"] = [plain(x) for x in stats.bootstrap_selectivity(concept, unrelated, rng)]
        if untestable(e):
            continue
        own = {(x["layer"], x["neuron"]) for x in entries if x["concept"] == e["concept"]}
        null = nulls.statistics(table, e["concept"], own)
        p_null = stats.null_p(float(stats.welch_t(concept, unrelated)), null)
        p_labels = stats.permutation_p(concept, unrelated, rng)
        p = 1.0 if e["stopped_early"] else max(p_null, p_labels)
        e |= {
            "p_value": plain(p),
            "p_null": plain(p_null),
            "p_labels": plain(p_labels),
            "n_nulls": len(null),
        }
    tested = [e for e in entries if e["p_value"] is not None]
    q = stats.benjamini_hochberg(np.array([e["p_value"] for e in tested]))
    for e in entries:
        e["q_value"] = None
    for e, value in zip(tested, q, strict=True):
        e["q_value"] = plain(value)
    for e in entries:
        e["verdict"], e["failed"] = verdict(e)
        e["validated"] = e["verdict"] == "validated"


def _dose_response(experiment: Experiment, entries: Sequence[Entry], parts: Parts) -> np.ndarray:
    """Add the dose-response to the validated entries; returns its cost."""
    some = sorted((e for e in entries if e["validated"]), key=lambda e: e["id"])  # rising layers
    tasks: list[Task] = [
        (part_name(f"validation/dose_{e['id']}", e["concept"], experiment.table.controls([e["concept"]])),
         lambda e=e: experiment.dose_unit(e["layer"], e)) for e in some
    ]  # fmt: skip
    done = parts.map(tasks, "Stage 3: dose-response", "vector") if tasks else []
    for e, arrays in zip(some, done, strict=True):
        values = selectivity(arrays["drop"], experiment.table, e["concept"])
        e["dose_response"] = [
            {"ratio": ratio} | {k: plain(v[i]) for k, v in values.items() if k != "t"}
            for i, ratio in enumerate(RATIOS)
        ]
    return sum((arrays["cost"] for arrays in done), np.zeros(2))
