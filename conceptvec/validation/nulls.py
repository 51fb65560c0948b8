"""Null neurons: what the same damage does to comparable neurons that are no candidates of the concept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.runfolder import Parts, Task, part_name
from conceptvec.text import plain
from conceptvec.validation import statistics as stats
from conceptvec.validation.measure import Experiment, PromptTable
from conceptvec.validation.rule import EFFECT_FLOOR, FIRING_SHARE, MAX_Q, SPECIFICITY

if TYPE_CHECKING:
    from conceptvec.model.network import Model

NULLS_PER_UNIT = 16
Entry = dict[str, Any]


@dataclass
class Nulls:
    """The null neurons of a run and their mean drops under the primary damage."""

    keys: list[tuple[int, int]]  # (layer, neuron), each once
    drops: np.ndarray  # (K, P), nats per answer token
    cost: np.ndarray

    def statistics(self, table: PromptTable, concept: str, own: set[tuple[int, int]]) -> np.ndarray:
        """The null distribution for one concept, without that concept's own candidates."""
        usable = np.array([key not in own for key in self.keys], bool)
        t = selectivity(self.drops, table, concept)["t"]
        return t[usable & np.isfinite(t)]


def selectivity(drops: np.ndarray, table: PromptTable, concept: str) -> dict[str, np.ndarray]:
    """Concept drop, unrelated drop, their difference and its `welch_t` for rows of drops (n, P).

    NaN where nothing was measured.
    """
    mine, others = table.concept(concept), table.unrelated(concept)
    nothing = np.full(len(drops), np.nan)
    on_concept = drops[:, mine].mean(1) if mine else nothing
    elsewhere = drops[:, others].mean(1) if others else nothing
    t = stats.welch_t(drops[:, mine], drops[:, others]) if mine and others else nothing
    return {
        "concept_drop": on_concept,
        "unrelated_drop": elsewhere,
        "selectivity": on_concept - elsewhere,
        "t": t,
    }


class Likeness:
    """How alike neurons are: near in log norm and in log mean |a| over a concept's prompts.

    Args:
        model: the model.
        table: the concepts' prompts.
        at_end: layer → activations where the answers are predicted (P, I).
    """

    def __init__(self, model: Model, table: PromptTable, at_end: dict[int, np.ndarray]) -> None:
        self.names = table.concepts
        self.norms, self.strength = {}, {}
        for layer, a in at_end.items():
            norms = torch.linalg.vector_norm(model.value_vectors(layer).float(), dim=1)
            self.norms[layer] = _log(norms.cpu().numpy())  # (I,)
            groups = [
                np.abs(a[mine]).mean(0) if (mine := table.concept(n)) else 0 * a[0]
                for n in self.names
            ]
            self.strength[layer] = _log(np.stack(groups))  # (C, I)

    def distance(self, concept: str, layer: int, neuron: int, other: int) -> np.ndarray:
        """How far all neurons of the layer `other` are from a neuron, as the concept's prompts see them: (I,)."""
        c = self.names.index(concept)
        mean = self.strength[layer][c, neuron]
        return np.hypot(
            self.norms[other] - self.norms[layer][neuron], self.strength[other][c] - mean
        )


def _log(x: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(x, 1e-12))


def choose_nulls(
    entries: Sequence[Entry], matched: Sequence[Entry], like: Likeness, n: int
) -> list[tuple[int, int]]:  # fmt: skip
    """Null neurons (layer, neuron): each candidate's nearest in its layer, in turn, until there are `n`.

    A concept's own candidates are not its nulls. Where a layer has too few neurons, the nearest of the other layers
    follow: the layers are pooled.

    Args:
        entries: the candidates.
        matched: those of them that the nulls are matched to.
        like: over all layers.
        n: how many nulls are wanted.
    """
    own = {(e["concept"], e["layer"], e["neuron"]) for e in entries}
    queues = []
    for e in matched:
        ranked = []
        for layer in sorted(like.norms):
            distance = like.distance(e["concept"], e["layer"], e["neuron"], layer)
            best = np.argsort(distance, kind="stable")[: n + 1]
            ranked += [(layer != e["layer"], distance[j], layer, int(j)) for j in best]
        queues.append(
            [(x[2], x[3]) for x in sorted(ranked) if (e["concept"], x[2], x[3]) not in own]
        )
    chosen: dict[tuple[int, int], None] = {}
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(chosen) < n:
                chosen.setdefault(queue[turn])
    return sorted(chosen)


def measure_nulls(
    experiment: Experiment,
    entries: Sequence[Entry],
    like: Likeness,
    parts: Parts,
    everywhere: bool = False,
) -> Nulls:
    """Choose the null neurons and damage them.

    Args:
        experiment: prompts and damages.
        entries: the candidates that the nulls are matched to.
        like: over all layers.
        parts: keeps finished parts.
        everywhere: measure them on the prompts of all concepts, not only of those that are tested.
    """
    table = experiment.table
    # What does not fire is not tested, so it needs no nulls of its own.
    matched = [e for e in entries if e["firing_share"] >= FIRING_SHARE]
    keys = choose_nulls(entries, matched, like, experiment.config.nulls)
    prompts = table.controls(
        table.concepts if everywhere else sorted({e["concept"] for e in matched})
    )
    tasks: list[Task] = []
    for layer in sorted({layer for layer, _ in keys}):
        mine = tuple(j for at, j in keys if at == layer)
        for u, start in enumerate(range(0, len(mine), NULLS_PER_UNIT)):
            some = mine[start : start + NULLS_PER_UNIT]
            compute = lambda layer=layer, mine=mine, some=some: experiment.null_unit(
                layer, mine, some, prompts
            )
            tasks.append(
                (part_name(f"validation/L{layer:02d}_nulls_{u:03d}", some, prompts), compute)
            )
    done = parts.map(tasks, "Stage 3: damaging null neurons", "unit") if tasks else []
    drops = np.concatenate([d["drop"] for d in done]) if done else np.zeros((0, len(table.engine)))
    return Nulls(keys, drops, sum((d["cost"] for d in done), np.zeros(2)))


def calibration(
    nulls: Nulls, table: PromptTable, entries: Sequence[Entry], seed: int
) -> dict[str, Any]:
    """How many null neurons pass the rule's tests on the primary damage, each counted once.

    Each null is given one concept, in turn (none that it is a candidate of), and compared with the other nulls.
    """
    own = {(e["concept"], e["layer"], e["neuron"]) for e in entries}
    tested = sorted({e["concept"] for e in entries if e["p_value"] is not None})
    values = {name: selectivity(nulls.drops, table, name) for name in tested}
    points, p = [], []
    for i, (layer, neuron) in enumerate(nulls.keys):
        free = [n for n in tested if (n, layer, neuron) not in own]
        if not free:
            continue
        name = free[i % len(free)]
        point = {k: float(v[i]) for k, v in values[name].items()}
        rng = np.random.default_rng([seed, layer, neuron, 7])
        concept, unrelated = (
            nulls.drops[i][table.concept(name)],
            nulls.drops[i][table.unrelated(name)],
        )
        p_null = stats.null_p(point["t"], np.delete(values[name]["t"], i))
        p.append(max(p_null, stats.permutation_p(concept, unrelated, rng)))
        low, _ = stats.bootstrap_selectivity(concept, unrelated, rng)
        points.append(point | {"layer": layer, "neuron": neuron, "tested_as": name, "low": low})
    passed = [
        x["concept_drop"] >= EFFECT_FLOOR
        and x["low"] > 0
        and x["unrelated_drop"] <= SPECIFICITY * x["concept_drop"]
        and q <= MAX_Q
        for x, q in zip(points, stats.benjamini_hochberg(np.array(p)), strict=True)
    ]
    # The smallest p is 1 / (K + 1), so Benjamini-Hochberg needs company at this level.
    smallest = [1 / (e["n_nulls"] + 1) for e in entries if e["p_value"] is not None]
    return {
        "null_neurons": len(nulls.keys), "fewest_hits": math.ceil(len(smallest) * max(smallest, default=0) / MAX_Q),
        "tested": len(points), "false_validations": int(sum(passed)),
        "false_validation_rate": plain(sum(passed) / len(points)) if points else None,
        "points": [
            [x["layer"], x["neuron"], x["tested_as"], plain(x["concept_drop"]), plain(x["unrelated_drop"])]
            for x in points
        ],
    }  # fmt: skip
