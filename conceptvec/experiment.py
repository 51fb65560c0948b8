"""What Stage 3 measures: the prompts of a run, and units of work that damage a few neurons of one layer.

A unit is always the same neurons, measured in batches of its own and kept as one part, so that results depend neither
on where a run was interrupted nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.config import Config
from conceptvec.damage import Damage, Engine, State, damages
from conceptvec.store import Arrays
from conceptvec.verdict import hopeless

if TYPE_CHECKING:
    from conceptvec.models import Model

KNOWN_RANK = 1000  # a prompt is left out where an answer token is not among the model's thousand likeliest
UNRELATED, NEUTRAL = 60, 32  # control prompts per concept (over all other concepts), and for the divergence
RATIOS = (0.5, 1.0, 2.0, 4.0)  # dose-response


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
        others = [g for g in self.concepts if g != name]
        queues = [list(rng.permutation(self.concept(g))) for g in others]
        chosen: list[int] = []
        while any(queues) and len(chosen) < UNRELATED:
            chosen += [int(q.pop()) for q in queues if q][: UNRELATED - len(chosen)]
        if len(others) < 4 or len(chosen) < 48:
            neutral = rng.permutation(self.concept("neutral"))
            chosen += [int(i) for i in neutral[: max(0, UNRELATED - len(chosen))]]
        return sorted(chosen)

    @property
    def concepts(self) -> list[str]:
        """The concepts that have prompts."""
        return [n for n in self.groups if n != "neutral"]

    def controls(self, concepts: Sequence[str]) -> list[int]:
        """All prompts on which the given concepts and their controls are measured."""
        return sorted({i for n in concepts for i in self.concept(n) + self.unrelated(n)})

    def neutral(self) -> list[int]:
        """The neutral prompts on which the divergence is measured."""
        rng = np.random.default_rng([self.seed, 12])
        return sorted(int(i) for i in rng.permutation(self.groups["neutral"])[:NEUTRAL])


class Experiment:
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

    def activations(self, layers: Sequence[int]) -> dict[int, np.ndarray]:
        """All neurons' activations where the answers are predicted: layer → (P, I)."""
        return {layer: self.table.engine.state(layer, [0]).at_end.cpu().numpy() for layer in layers}

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
        out = np.full((len(neurons), len(self.table.engine)), np.nan)
        out[:, prompts] = drops.reshape(len(neurons), -1, len(prompts)).mean(1)
        return {"drop": out, "cost": self.table.engine.cost(layer, prompts, len(rows))}

    def candidate_unit(self, layer: int, entries: list[dict[str, Any]]) -> Arrays:
        """All kinds of damage of some candidates: drops (n, kinds, P), divergence (n, kinds), draws made (n,).

        First look: the other kinds in full and one draw of the primary one. Candidates that `hopeless` then rules out
        stop there; the rest get all draws and the neutral prompts.
        """
        engine, kinds = self.table.engine, self.config.damage
        neurons = tuple(sorted({e["neuron"] for e in entries}))
        drop = np.full((len(entries), len(kinds), len(engine)), np.nan)
        kl, draws = np.full((len(entries), len(kinds)), np.nan), np.zeros(len(entries), np.int32)
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
            stopped[i] = len(kinds) > 1 and hopeless(entry["firing_share"], means[1:])
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
        out = np.full((len(RATIOS), len(self.table.engine)), np.nan)
        out[:, prompts] = self.drops(layer, neurons, rows, prompts).reshape(len(RATIOS), -1, len(prompts)).mean(1)
        return {"drop": out, "cost": self.table.engine.cost(layer, prompts, len(rows))}
