"""Stage 3: damage each candidate, measure what the model loses on its concept and elsewhere, compare with nulls.

Work is cut into **units** (a few neurons of one layer, always the same ones), each measured in batches of its own and
kept as one part: results depend neither on where a run was interrupted nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec import statistics as stats
from conceptvec.config import Config
from conceptvec.damage import Damage, Engine, State, damages
from conceptvec.results import Results
from conceptvec.scoring import Scored
from conceptvec.store import Arrays, Parts, Task, plain
from conceptvec.verdict import VERDICTS, hopeless, verdict

if TYPE_CHECKING:
    from conceptvec.models import Model

KNOWN_RANK = 1000  # a prompt is left out where an answer token is not among the model's thousand likeliest
UNRELATED, NEUTRAL = 60, 32  # control prompts per concept (over all other concepts), and for the divergence
CANDIDATES_PER_UNIT, NULLS_PER_UNIT = 8, 16
RATIOS = (0.5, 1.0, 2.0, 4.0)  # dose-response
NAN = float("nan")


@dataclass
class PromptTable:
    """All prompts of a run in one list, and which of them serve which purpose."""

    engine: Engine
    groups: dict[str, list[int]]  # concept or neutral → indices of its prompts
    known: np.ndarray  # bool (P,)
    clean: np.ndarray  # log-probability, nats per answer token (P,)
    rank: np.ndarray  # worst rank of an answer token (P,)
    seed: int

    @classmethod
    def build(cls, model: Model, config: Config, prompts: Mapping[str, Sequence[Any]]) -> PromptTable:
        """Run every prompt clean and apply the rule: a hopeless answer is left out."""
        everything = [p for group in prompts.values() for p in group]
        groups, start = {}, 0
        for name, group in prompts.items():
            groups[name] = list(range(start, start + len(group)))
            start += len(group)
        engine = Engine(model, everything, config.batch_size)
        logp, rank = engine.clean(range(len(everything)))
        return cls(engine, groups, rank <= KNOWN_RANK, logp, rank, config.seed)

    def concept(self, name: str) -> list[int]:
        """The concept's known prompts."""
        return [i for i in self.groups[name] if self.known[i]]

    def unrelated(self, name: str) -> list[int]:
        """Control prompts: a seeded sample, evenly over the other concepts; neutral ones where those are few."""
        rng = np.random.default_rng([self.seed, 11])
        others = [g for g in self.groups if g not in (name, "neutral")]
        queues = [list(rng.permutation(self.concept(g))) for g in others]
        chosen: list[int] = []
        while any(queues) and len(chosen) < UNRELATED:
            chosen += [int(q.pop()) for q in queues if q][: UNRELATED - len(chosen)]
        if len(others) < 4 or len(chosen) < 48:
            neutral = rng.permutation(self.concept("neutral"))
            chosen += [int(i) for i in neutral[: max(0, UNRELATED - len(chosen))]]
        return sorted(chosen)

    def neutral(self) -> list[int]:
        """The neutral prompts on which the divergence is measured."""
        rng = np.random.default_rng([self.seed, 12])
        return sorted(int(i) for i in rng.permutation(self.groups["neutral"])[:NEUTRAL])


class Bench:
    """Measures units of work: caches one layer's state and the clean reference."""

    def __init__(self, model: Model, config: Config, table: PromptTable, means: dict[int, np.ndarray]) -> None:
        self.model, self.config, self.table, self.means = model, config, table, means
        self.neutral = table.neutral()
        self._reference: torch.Tensor | None = None
        self.state = lru_cache(maxsize=2)(self._state)

    def _state(self, layer: int, neurons: tuple[int, ...]) -> tuple[State, np.ndarray]:
        """The layer's clean state, and every prompt's baseline: the same replay with nothing added."""
        engine = self.table.engine
        state = engine.state(layer, neurons)
        nothing = Damage(neurons[0], 0.0, 0.0, torch.zeros(self.model.hidden_size, device=self.model.device))
        return state, engine.measure(state, [nothing], range(len(engine)))[0][0]

    def reference(self) -> torch.Tensor:
        """Clean distributions on the neutral prompts."""
        if self._reference is None:
            self._reference = self.table.engine.clean_distribution(self.neutral)
        return self._reference

    def damages(self, layer: int, neuron: int, kind: str, ratio: float | None = None) -> list[Damage]:
        """The configured damages of one kind; `ratio` overrides the strength of the noise."""
        c = self.config
        return damages(
            self.model, layer, neuron, kind, float(self.means[layer][neuron]), c.draws, ratio or c.noise_ratio,
            None if ratio else c.noise_sigma, c.seed,
        )  # fmt: skip

    def drops(
        self, layer: int, neurons: tuple[int, ...], damaged: Sequence[Damage], prompts: Sequence[int]
    ) -> np.ndarray:
        """Log-probability lost, nats per answer token: (D, len(prompts))."""
        state, baseline = self.state(layer, neurons)
        return baseline[list(prompts)] - self.table.engine.measure(state, damaged, prompts)[0]

    def null_unit(self, layer: int, neurons: tuple[int, ...], prompts: list[int]) -> Arrays:
        """Primary damage of null neurons on all concept prompts: mean drop over the draws, (n, P)."""
        kind = self.config.damage[0]
        rows = [d for n in neurons for d in self.damages(layer, n, kind)]
        drops = self.drops(layer, neurons, rows, prompts)
        out = np.full((len(neurons), len(self.table.engine)), NAN)
        out[:, prompts] = drops.reshape(len(neurons), -1, len(prompts)).mean(1)
        return {"drop": out, "cost": self.table.engine.cost(layer, prompts, len(rows))}

    def candidate_unit(self, layer: int, entries: list[dict[str, Any]], fires: list[float]) -> Arrays:
        """All kinds of damage of some candidates: drops (n, kinds, P), divergence (n, kinds), draws made (n,).

        First look: the other kinds in full and one draw of the primary one. Candidates that `hopeless` then rules out
        stop there; the rest get all draws and the neutral prompts.
        """
        engine, kinds = self.table.engine, self.config.damage
        neurons = tuple(sorted({e["neuron"] for e in entries}))
        drop = np.full((len(entries), len(kinds), len(engine)), NAN)
        kl, draws = np.full((len(entries), len(kinds)), NAN), np.zeros(len(entries), np.int32)
        stopped, cost = np.zeros(len(entries), bool), np.zeros((len(entries), 2))
        for i, entry in enumerate(entries):
            mine, others = self.table.concept(entry["concept"]), self.table.unrelated(entry["concept"])
            if not mine or not others:
                continue
            prompts = mine + others
            made = [self.damages(layer, entry["neuron"], kind) for kind in kinds]
            first = [made[0][0], *(m[0] for m in made[1:])]
            look = self.drops(layer, neurons, first, prompts)
            means = [(row[: len(mine)].mean(), row[: len(mine)].mean() - row[len(mine) :].mean()) for row in look]
            rows, draws[i], cost[i] = look, 1, engine.cost(layer, prompts, len(kinds))
            stopped[i] = len(kinds) > 1 and hopeless(fires[i], means[1:])
            if not stopped[i]:
                more = self.drops(layer, neurons, made[0][1:], prompts)
                rows[0] = np.concatenate([look[:1], more]).mean(0)
                draws[i] = len(made[0])
                cost[i] += engine.cost(layer, prompts, len(more))
                state, _ = self.state(layer, neurons)
                flat = [d for m in made for d in m]
                _, measured = engine.measure(state, flat, self.neutral, self.reference())
                edges = np.cumsum([0, *(len(m) for m in made)])
                kl[i] = [measured[a:b].mean() for a, b in zip(edges[:-1], edges[1:], strict=True)]
                cost[i] += engine.cost(layer, self.neutral, len(flat))
            drop[i][:, prompts] = rows
        return {"drop": drop, "kl": kl, "draws": draws, "stopped": stopped, "cost": cost}

    def dose_unit(self, layer: int, entry: dict[str, Any]) -> Arrays:
        """Noise of growing strength on one neuron: drops (ratios, P) averaged over the draws."""
        prompts = self.table.concept(entry["concept"]) + self.table.unrelated(entry["concept"])
        neurons = (entry["neuron"],)
        rows = [d for r in RATIOS for d in self.damages(layer, entry["neuron"], "noise", r)]
        out = np.full((len(RATIOS), len(self.table.engine)), NAN)
        out[:, prompts] = self.drops(layer, neurons, rows, prompts).reshape(len(RATIOS), -1, len(prompts)).mean(1)
        return {"drop": out, "cost": self.table.engine.cost(layer, prompts, len(rows))}


def firing(scored: Scored, bench: Bench, entry: dict[str, Any], at_end: np.ndarray) -> float:
    """Share of the concept's known prompts that make the neuron fire, with the pole's sign, at the predicting token."""
    mine = bench.table.concept(entry["concept"])
    if not mine:
        return 0.0
    level = scored.candidates.activations.firing_level(entry["layer"])[entry["neuron"]]
    a = at_end[mine, entry["neuron"]] * (1 if entry["pole"] == "+" else -1)
    return float((a >= level).mean())


def choose_nulls(
    entries: list[dict[str, Any]],
    norms: dict[int, np.ndarray],
    strength: dict[int, np.ndarray],
    names: list[str],
    n: int,
) -> list[tuple[int, int]]:
    """Null neurons (layer, neuron): each candidate's nearest in its layer, in turn, until there are `n`.

    Near means near in log norm and in log mean |a| over the concept's prompts. A concept's own candidates are not its
    nulls. Where the layers have too few neurons, the nearest of the other layers follow: the layers are pooled.

    Args:
        entries: the candidates.
        n: how many nulls are wanted.
        names: the concepts, in the order of `strength`.
        norms: layer → ‖d_j‖ (I,).
        strength: layer → mean |a_j| over each concept's prompts (C, I).
    """
    own = {(e["concept"], e["layer"], e["neuron"]) for e in entries}
    log = lambda x: np.log(np.maximum(x, 1e-12))  # noqa: E731
    queues = []
    for e in entries:
        c, ranked = names.index(e["concept"]), []
        norm, mean = log(norms[e["layer"]][e["neuron"]]), log(strength[e["layer"]][c, e["neuron"]])
        for layer in sorted(norms):
            distance = np.hypot(log(norms[layer]) - norm, log(strength[layer][c]) - mean)
            best = np.argsort(distance, kind="stable")[: n + 1]
            ranked += [(layer != e["layer"], distance[j], layer, int(j)) for j in best]
        queues.append([(x[2], x[3]) for x in sorted(ranked) if (e["concept"], x[2], x[3]) not in own])
    chosen: dict[tuple[int, int], None] = {}
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(chosen) < n:
                chosen.setdefault(queue[turn])
    return sorted(chosen)


def validate(scored: Scored, model: Model, config: Config, parts: Parts | None = None) -> Results:
    """Stage 3 on every concept candidate whose concept has prompts.

    Args:
        scored: Stage 2.
        model: the model; it is never written.
        config: damage kinds, noise, draws, nulls, seed, batch_size.
        parts: keeps finished parts.

    Returns:
        the results of the whole run.

    Raises:
        RunError: a forward pass gives NaN or infinity.
    """
    parts = parts or Parts()
    prompts = scored.concepts.prompts()
    entries = [dict(e) for e in scored.entries if e["concept"] in prompts]
    table = PromptTable.build(model, config, prompts)
    bench = Bench(model, config, table, scored.candidates.activations.mean)
    names = [n for n in table.groups if n != "neutral"]
    layers = sorted({e["layer"] for e in entries})
    at_end = _ends(bench, [p.layer for p in scored.candidates.layers] if entries else [])
    for e in entries:
        e["firing_share"] = firing(scored, bench, e, at_end[e["layer"]])
    measured = _candidates(bench, entries, layers, parts)
    nulls, null_drops, cost = _nulls(model, bench, entries, at_end, names, parts)
    cost = cost + sum((m["cost"] for m in measured), np.zeros(2))
    for e, m in zip(entries, measured, strict=True):
        _fill(e, m, bench, scored)
    statistics = {name: _selectivity(null_drops, table, name) for name in names}
    for e in entries:
        _test(e, [key for key in nulls], statistics, entries, config.seed)
    q = stats.benjamini_hochberg(np.array([1.0 if e["p_value"] is None else e["p_value"] for e in entries]))
    for e, value in zip(entries, q, strict=True):
        e["q_value"] = None if e["p_value"] is None else plain(value)
        e["verdict"], e["failed"] = verdict(e)
        e["validated"] = e["verdict"] == "validated"
        e.pop("_drops")
    entries.sort(key=lambda e: (VERDICTS.index(e["verdict"]), -(e["selectivity"] or 0.0), e["id"]))
    cost = cost + _dose(bench, entries, parts)
    calibration = _calibrate_nulls(nulls, null_drops, table, names, entries, config)
    return Results.build(model, config, scored, table, entries, calibration, cost)


def _ends(bench: Bench, layers: list[int]) -> dict[int, np.ndarray]:
    """All neurons' activations where the answers are predicted: layer → (P, I)."""
    return {layer: bench.table.engine.state(layer, [0]).at_end.cpu().numpy() for layer in layers}


def _candidates(bench: Bench, entries: list[dict[str, Any]], layers: list[int], parts: Parts) -> list[Arrays]:
    """Measure the candidates unit by unit; one dict of arrays per entry."""
    tasks: list[Task] = []
    members: list[tuple[int, int]] = []
    for layer in layers:
        mine = sorted((i for i, e in enumerate(entries) if e["layer"] == layer), key=lambda i: entries[i]["id"])
        for u, start in enumerate(range(0, len(mine), CANDIDATES_PER_UNIT)):
            unit = mine[start : start + CANDIDATES_PER_UNIT]
            some = [entries[i] for i in unit]
            members += [(i, row) for row, i in enumerate(unit)]
            tasks.append((
                f"validation/L{layer:02d}_candidates_{u:03d}.safetensors",
                lambda layer=layer, some=some: bench.candidate_unit(layer, some, [e["firing_share"] for e in some]),
            ))  # fmt: skip
    done = parts.map(tasks, "Stage 3: damaging candidates", "unit")
    flat: dict[int, Arrays] = {}
    unit = -1
    for i, row in members:
        unit += row == 0
        flat[i] = {k: v[row] for k, v in done[unit].items()}
    return [flat[i] for i in range(len(entries))]


def _nulls(
    model: Model,
    bench: Bench,
    entries: list[dict[str, Any]],
    at_end: dict[int, np.ndarray],
    names: list[str],
    parts: Parts,
) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
    """Choose and measure the null neurons: their keys, drops (K, P) and cost."""
    table = bench.table
    strength = {
        layer: np.stack(
            [np.abs(a[table.concept(n)]).mean(0) if table.concept(n) else np.zeros(a.shape[1]) for n in names]
        )
        for layer, a in at_end.items()
    }
    norms = {n: torch.linalg.vector_norm(model.value_vectors(n).float(), dim=1).cpu().numpy() for n in at_end}
    nulls = choose_nulls(entries, norms, strength, names, bench.config.nulls)
    prompts = sorted(i for n in names for i in table.concept(n)) + table.concept("neutral")
    tasks: list[Task] = []
    for layer in sorted({key[0] for key in nulls}):
        mine = [j for at, j in nulls if at == layer]
        for u, start in enumerate(range(0, len(mine), NULLS_PER_UNIT)):
            some = tuple(mine[start : start + NULLS_PER_UNIT])
            tasks.append((
                f"validation/L{layer:02d}_nulls_{u:03d}.safetensors",
                lambda layer=layer, some=some: bench.null_unit(layer, some, prompts),
            ))  # fmt: skip
    done = parts.map(tasks, "Stage 3: damaging null neurons", "unit")
    drops = np.concatenate([d["drop"] for d in done]) if done else np.zeros((0, len(table.engine)))
    return nulls, drops, sum((d["cost"] for d in done), np.zeros(2))


def _selectivity(drops: np.ndarray, table: PromptTable, name: str) -> dict[str, np.ndarray]:
    """Concept drop, unrelated drop and selectivity of rows of drops (n, P) for one concept."""
    mine, others = table.concept(name), table.unrelated(name)
    empty = np.full(len(drops), NAN)
    concept = drops[:, mine].mean(1) if mine else empty
    unrelated = drops[:, others].mean(1) if others else empty
    return {"concept": concept, "unrelated": unrelated, "selectivity": concept - unrelated}


def _fill(e: dict[str, Any], m: Arrays, bench: Bench, scored: Scored) -> None:
    """Put what was measured into the entry; what was not measured is null."""
    table, kinds = bench.table, bench.config.damage
    mine, others = table.concept(e["concept"]), table.unrelated(e["concept"])
    e["n_concept_prompts"], e["n_unrelated_prompts"] = len(mine), len(others)
    e["n_concept_prompts_left_out"] = len(table.groups[e["concept"]]) - len(mine)
    e["draws"] = int(m["draws"])
    e["stopped_early"] = bool(m["stopped"])
    parts = _selectivity(m["drop"], table, e["concept"])
    e["damage"] = {
        kind: {
            "concept_drop": plain(parts["concept"][i]), "unrelated_drop": plain(parts["unrelated"][i]),
            "selectivity": plain(parts["selectivity"][i]), "neutral_kl": plain(m["kl"][i]),
        }
        for i, kind in enumerate(kinds)
    }  # fmt: skip
    primary = e["damage"][kinds[0]]
    for key in ("concept_drop", "unrelated_drop", "selectivity"):
        e[key] = primary[key]
    e["neutral_kl"] = primary["neutral_kl"]
    e["_drops"] = (m["drop"][0][mine], m["drop"][0][others])
    halves = [m["drop"][0][mine[half::2]].mean() if len(mine) > 1 else NAN for half in (0, 1)]
    e["split_half"] = [plain(h) for h in halves]
    tops = {t.strip().casefold() for t, _ in e["top_tokens"]}
    answers = [p.answer.strip().casefold() for p in scored.concepts.prompts()[e["concept"]]]
    e["answers_in_top_tokens"] = plain(np.mean([a in tops for a in answers]))
    e["activation"] = scored.candidates.activations.of(e["layer"], e["neuron"], bench.model.tokenizer)


def _test(
    e: dict[str, Any], keys: list[tuple[int, int]], statistics: dict[str, dict[str, np.ndarray]],
    entries: list[dict[str, Any]], seed: int,
) -> None:  # fmt: skip
    """p-value (the larger of null neurons and label permutation) and bootstrap interval."""
    concept, unrelated = e["_drops"]
    if not len(concept) or not len(unrelated):
        e |= {"ci95": [None, None], "p_value": None, "p_null": None, "p_labels": None, "n_nulls": 0}
        return
    rng = np.random.default_rng([seed, e["layer"], e["neuron"], int(e["pole"] == "+"), 5])
    e["ci95"] = [plain(x) for x in stats.bootstrap_selectivity(concept, unrelated, rng)]
    own = {(x["layer"], x["neuron"]) for x in entries if x["concept"] == e["concept"]}
    usable = np.array([key not in own for key in keys], bool)
    values = statistics[e["concept"]]["selectivity"][usable] if len(keys) else np.zeros(0)
    e["n_nulls"] = len(values)
    p_null = stats.null_p(float(concept.mean() - unrelated.mean()), values)
    p_labels = stats.permutation_p(concept, unrelated, rng)
    e["p_null"], e["p_labels"] = plain(p_null), plain(p_labels)
    # A candidate that was stopped has fewer draws than the nulls: 1 is the p-value that is valid for it.
    e["p_value"] = 1.0 if e["stopped_early"] else plain(max(p_null, p_labels))


def _dose(bench: Bench, entries: list[dict[str, Any]], parts: Parts) -> np.ndarray:
    """Dose-response of the validated vectors; returns its cost."""
    some = [e for e in entries if e["validated"]]
    tasks: list[Task] = [
        (f"validation/dose_{e['id']}.safetensors", lambda e=e: bench.dose_unit(e["layer"], e)) for e in some
    ]
    cost = np.zeros(2)
    for e, done in zip(some, parts.map(tasks, "Stage 3: dose-response", "vector") if tasks else [], strict=True):
        cost += done["cost"]
        s = _selectivity(done["drop"], bench.table, e["concept"])
        e["dose_response"] = [
            {"ratio": r, "concept_drop": plain(s["concept"][i]), "unrelated_drop": plain(s["unrelated"][i])}
            for i, r in enumerate(RATIOS)
        ]
    return cost


def _calibrate_nulls(
    nulls: list[tuple[int, int]], drops: np.ndarray, table: PromptTable, names: list[str],
    entries: list[dict[str, Any]], config: Config,
) -> dict[str, Any]:  # fmt: skip
    """How many null neurons would pass the rule's tests on the primary damage, each counted once.

    Each null is given one concept (in turn, none that it is a candidate of) and compared with the other nulls.
    """
    own = {(e["concept"], e["layer"], e["neuron"]) for e in entries}
    statistics = {name: _selectivity(drops, table, name) for name in names}
    points, p = [], []
    for i, (layer, neuron) in enumerate(nulls):
        free = [n for n in names if (n, layer, neuron) not in own and table.concept(n) and table.unrelated(n)]
        if not free:
            continue
        name = free[i % len(free)]
        s = statistics[name]
        point = {k: float(v[i]) for k, v in s.items()}
        rest = np.delete(s["selectivity"], i)
        rng = np.random.default_rng([config.seed, layer, neuron, 7])
        concept, unrelated = drops[i][table.concept(name)], drops[i][table.unrelated(name)]
        p.append(max(stats.null_p(point["selectivity"], rest), stats.permutation_p(concept, unrelated, rng)))
        low, _ = stats.bootstrap_selectivity(concept, unrelated, rng)
        points.append(point | {"layer": layer, "neuron": neuron, "tested_as": name, "low": low})
    q = stats.benjamini_hochberg(np.array(p))
    from conceptvec.verdict import EFFECT_FLOOR, MAX_Q, SPECIFICITY

    passed = [
        x["concept"] >= EFFECT_FLOOR and x["low"] > 0 and x["unrelated"] <= SPECIFICITY * x["concept"] and v <= MAX_Q
        for x, v in zip(points, q, strict=True)
    ]
    return {
        "null_neurons": len(nulls), "tested": len(points), "false_validations": int(sum(passed)),
        "false_validation_rate": plain(sum(passed) / len(points)) if points else None,
        "points": [
            [x["layer"], x["neuron"], x["tested_as"], plain(x["concept"]), plain(x["unrelated"])] for x in points
        ],
    }  # fmt: skip
