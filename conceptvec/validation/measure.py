"""What Stage 3 measures: the prompts of a run, and units of work that damage a few neurons of one layer.

A unit is always the same neurons, measured in batches of its own and kept as one part, so that results depend neither
on where a run was interrupted nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.config import Config
from conceptvec.runfolder import Arrays
from conceptvec.text import number, plain, printable, table
from conceptvec.validation.damage import Damage, damages
from conceptvec.validation.engine import Engine, State
from conceptvec.validation.rule import hopeless

if TYPE_CHECKING:
    from conceptvec.model.network import Model

KNOWN_RANK = (
    1000  # a prompt is left out where an answer token is not among the model's thousand likeliest
)
UNRELATED, NEUTRAL = (
    60,
    32,
)  # control prompts per concept (over all other concepts), and for the divergence
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
    def build(
        cls, model: Model, config: Config, prompts: Mapping[str, Sequence[Any]]
    ) -> PromptTable:
        """Run every prompt clean and apply the rule: a hopeless answer is left out."""
        everything = [p for group in prompts.values() for p in group]
        groups, start = {}, 0
        for name, group in prompts.items():
            groups[name] = list(range(start, start + len(group)))
            start += len(group)
        engine = Engine(model, everything, config.batch_size, config.chat_template)
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

    def knowledge(self, prompts: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """How well the model knows every answer, and which prompts the rule leaves out."""
        return {
            name: {
                "prompts": len(at), "known": int(self.known[at].sum()),
                "median_log_p": plain(np.median(self.clean[at])),
                "median_rank": plain(np.median(self.rank[at])),
                "answers": [
                    {"prompt": p.prompt, "answer": p.answer, "log_p": plain(self.clean[i]), "rank": int(self.rank[i]),
                     "known": bool(self.known[i])}
                    for p, i in zip(prompts[name], at, strict=True)
                ],
            }
            for name, at in self.groups.items()
        }  # fmt: skip

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


def knowledge_table(document: Mapping[str, Any]) -> str:
    """How well the model knows the prompts' answers, and the prompts that are left out, as text."""
    groups = document["concepts"]
    rows = [
        [
            printable(name),
            group["prompts"],
            group["known"],
            number(group["median_log_p"], 2),
            f"{group['median_rank']:,.0f}",
        ]
        for name, group in groups.items()
    ]
    left_out = [
        f"  {printable(answer['prompt'] + answer['answer'])}  (rank {answer['rank']:,})"
        for group in groups.values()
        for answer in group["answers"]
        if not answer["known"]
    ]
    rule = (
        "log p in nats per answer token. Left out, because an answer token is not among the "
        f"{KNOWN_RANK:,} likeliest: {len(left_out)}"
    )
    headers = ("concept", "prompts", "known", "median log p", "median rank")
    return "\n".join([table(rows, headers), "", rule, *left_out])


class Experiment:
    """Measures units of work: caches one layer's state and the clean reference."""

    def __init__(
        self, model: Model, config: Config, table: PromptTable, means: dict[int, np.ndarray]
    ) -> None:
        self.model, self.config, self.table, self.means = model, config, table, means
        self.neutral = table.neutral()
        self.state = lru_cache(maxsize=1)(self._state)

    def _state(self, layer: int, neurons: tuple[int, ...]) -> tuple[State, np.ndarray]:
        """The layer's clean state, and every prompt's baseline: the same replay with nothing added."""
        engine = self.table.engine
        state = engine.state(layer, neurons)
        return state, self.baseline(state)

    def baseline(self, state: State) -> np.ndarray:
        """Every prompt's log-probability by a replay from the state with nothing added: (P,)."""
        zeros = torch.zeros(self.model.hidden_size, device=self.model.device)
        nothing = Damage(next(iter(state.neurons)), 0.0, 0.0, zeros)
        return self.table.engine.measure(state, [nothing], range(len(self.table.engine)))[0]

    @cached_property
    def reference(self) -> dict[int, torch.Tensor]:
        """Clean distributions on the neutral prompts."""
        return self.table.engine.clean_distribution(self.neutral)

    def damages(
        self, layer: int, neuron: int, kind: str, ratio: float | None = None
    ) -> list[Damage]:
        """The configured damages of one kind; `ratio` overrides the strength of the noise."""
        c = self.config
        return damages(
            self.model, layer, neuron, kind, float(self.means[layer][neuron]), c.draws, ratio or c.noise_ratio,
            None if ratio else c.noise_sigma, c.seed,
        )  # fmt: skip

    def drops(
        self,
        layer: int,
        neurons: tuple[int, ...],
        rows: Sequence[tuple[Damage, np.ndarray]],
        divergence: bool = False,
    ) -> list[np.ndarray]:
        """What each damage costs on its own prompts, all rows in shared batches.

        Args:
            layer: the damaged layer.
            neurons: all neurons of the layer that this sweep needs (their activations are kept between units).
            rows: damages, each with the indices of its prompts.
            divergence: return the divergence from the clean distribution (neutral prompts) instead.

        Returns:
            per row, log-probability lost (nats per answer token) or divergence (nats): float64 (prompts of the row,).
        """
        state, baseline = self.state(layer, neurons)
        pairs = [np.stack(np.broadcast_arrays(i, p), 1) for i, (_, p) in enumerate(rows)]
        flat = np.concatenate([*pairs, np.zeros((0, 2), int)])
        reference = self.reference if divergence else None
        logp, kl = self.table.engine.measure_pairs(state, [d for d, _ in rows], flat, reference)
        return np.split(
            kl if divergence else baseline[flat[:, 1]] - logp,
            np.cumsum([len(p) for p in pairs])[:-1],
        )

    def null_unit(
        self, layer: int, neurons: tuple[int, ...], some: Sequence[int], prompts: list[int]
    ) -> Arrays:
        """Primary damage of `some` null neurons on all concept prompts: mean drop over the draws, (n, P)."""
        made = [self.damages(layer, n, self.config.damage[0]) for n in some]
        drops = self.drops(layer, neurons, [(d, np.array(prompts)) for m in made for d in m])
        out = np.full((len(some), len(self.table.engine)), np.nan)
        out[:, prompts] = np.stack(drops).reshape(len(some), -1, len(prompts)).mean(1)
        return {"drop": out, "cost": self.table.engine.cost(layer, prompts, len(drops))}

    def candidate_unit(
        self,
        layer: int,
        neurons: tuple[int, ...],
        entries: Sequence[dict[str, Any]],
        stop: bool = True,
    ) -> Arrays:
        """All kinds of damage of some candidates: drops (n, kinds, P), divergence (n, kinds), draws made (n,).

        First look: the other kinds in full and one draw of the primary one. Candidates that `hopeless` then rules out
        stop there (unless `stop` is off); the rest get all draws and the neutral prompts.
        """
        engine, kinds, n = self.table.engine, self.config.damage, len(entries)
        drop, kl = np.full((n, len(kinds), len(engine)), np.nan), np.full((n, len(kinds)), np.nan)
        draws, stopped, cost = np.zeros(n, np.int32), np.zeros(n, bool), np.zeros((n, 2))
        made = [[self.damages(layer, e["neuron"], kind) for kind in kinds] for e in entries]
        mine = [np.array(self.table.concept(e["concept"]), int) for e in entries]
        prompts = [
            np.append(m, self.table.unrelated(e["concept"]))
            for m, e in zip(mine, entries, strict=True)
        ]
        some = [i for i in range(n) if 0 < len(mine[i]) < len(prompts[i])]
        look = [(i, k) for i in some for k in range(len(kinds))]
        found = self.drops(layer, neurons, [(made[i][k][0], prompts[i]) for i, k in look])
        for (i, k), values in zip(look, found, strict=False):
            drop[i, k, prompts[i]] = values
            cost[i] += engine.cost(layer, prompts[i])
        for i in some:
            others = [
                (row[mine[i]].mean(), row[prompts[i][len(mine[i]) :]].mean()) for row in drop[i, 1:]
            ]
            stopped[i] = (
                stop
                and len(kinds) > 1
                and hopeless(entries[i]["firing_share"], [(c, c - u) for c, u in others])
            )
            draws[i] = 1 if stopped[i] else len(made[i][0])
        on = [i for i in some if not stopped[i]]
        more = [(i, d) for i in on for d in made[i][0][1:]]
        found = self.drops(layer, neurons, [(d, prompts[i]) for i, d in more])
        for (i, _), values in zip(more, found, strict=False):
            drop[i, 0, prompts[i]] += values
            cost[i] += engine.cost(layer, prompts[i])
        drop[:, 0] /= np.maximum(draws, 1)[:, None]
        every = [(i, k, d) for i in on for k, m in enumerate(made[i]) for d in m]
        found = self.drops(
            layer, neurons, [(d, np.array(self.neutral, int)) for *_, d in every], divergence=True
        )
        for i, k in {(i, k) for i, k, _ in every} if self.neutral else ():
            kl[i, k] = np.mean(
                [x.mean() for (a, b, _), x in zip(every, found, strict=True) if (a, b) == (i, k)]
            )
        for i, *_ in every:
            cost[i] += engine.cost(layer, self.neutral)
        return {"drop": drop, "kl": kl, "draws": draws, "stopped": stopped, "cost": cost}

    def dose_unit(self, layer: int, entry: dict[str, Any]) -> Arrays:
        """Noise of growing strength on one neuron: drops (ratios, P) averaged over the draws."""
        prompts = np.array(
            self.table.concept(entry["concept"]) + self.table.unrelated(entry["concept"])
        )
        rows = [d for r in RATIOS for d in self.damages(layer, entry["neuron"], "noise", r)]
        out = np.full((len(RATIOS), len(self.table.engine)), np.nan)
        found = self.drops(layer, (entry["neuron"],), [(d, prompts) for d in rows])
        out[:, prompts] = np.stack(found).reshape(len(RATIOS), -1, len(prompts)).mean(1)
        return {"drop": out, "cost": self.table.engine.cost(layer, prompts, len(rows))}
