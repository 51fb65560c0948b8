"""``conceptvec calibrate``: Stage 3 tests itself on the model at hand.

1. **Random neurons**, drawn as if they were candidates (random concept, the pole that fires more), go through the
   same measurements and the same judge. A neuron whose readout speaks of the concept (`_speaks_of`) is not drawn for
   it: it may be a true one. What is validated is false.
   Few of them fire on the prompts they are drawn for, so a second group is drawn among the pairs of neuron and concept
   that do: all of it is tested.
2. **Permuted labels**: the same neurons, and the strongest planted ones, where the prompts of all concepts have
   been dealt out anew. Everything validated is false.
3. **Planted vectors** worth a stated number of nats, in memory alone, in the upper half of the layers: a vector along
   the concept's unembedding direction (three quarters of its answers, drawn, less what the model expects there) is
   written by an activation that fires on the concept's prompts (and at a tenth of that, with random sign, elsewhere).
   Its norm, a multiple of that of the MLP output, is set so that the vector's presence raises the log-probability of
   the concept's answers by the stated effect: without an effect there would be nothing to find. Where no norm of
   `NORMS` reaches the effect, nothing is planted, and that is counted. The planted model is then the clean one, and
   the planted vector is damaged. What is validated is true.

Each group is judged together with the random neurons, so that the correction for many tests has both kinds to face.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from conceptvec import statistics as stats
from conceptvec.activations import corpus_activations
from conceptvec.concepts import load_concepts
from conceptvec.config import Config, parse_layers
from conceptvec.damage import Damage, damages
from conceptvec.engine import State
from conceptvec.errors import RequestError
from conceptvec.experiment import Experiment, PromptTable
from conceptvec.nulls import Entry, Nulls, measure_nulls
from conceptvec.store import Arrays, Parts, plain
from conceptvec.validation import firing, judge, measure
from conceptvec.verdict import FIRING_SHARE, MAX_Q, verdict

if TYPE_CHECKING:
    from pathlib import Path

    from conceptvec.activations import Activations
    from conceptvec.models import Model

logger = logging.getLogger(__name__)

EFFECTS = (0.05, 0.1, 0.15, 0.2, 0.3)  # nats per answer token that the planted vectors are worth
NORMS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # norms of what is planted, relative to the MLP output's, that are tried
MISSES = 1000  # draws in a row without a new pair that fires, after which no more are looked for
BACKGROUND = 0.1  # activation of a planted vector off its concept, relative to that on it


class Neuron(NamedTuple):
    """What is planted, but for its norm."""

    vector: torch.Tensor  # (H,), of the layer's mean norm
    level: np.ndarray  # (P,) activation on each prompt, about 1 on the concept's
    sizes: torch.Tensor  # (P, T) norm of the MLP output relative to the vector's


class Planted(Experiment):
    """An experiment on the model with one more neuron in a layer, which lives in the states alone.

    Args:
        base: the experiment on the model itself.
        layer: where the neuron is.
        concept: what it writes and fires on.
        neuron: the value vector and its activations, from `draw_neuron`.
        norm: of what is planted, relative to the MLP output's.
    """

    def __init__(self, base: Experiment, layer: int, concept: str, neuron: Neuron, norm: float) -> None:
        super().__init__(base.model, base.config, base.table, base.means)
        self.layer, self.concept, self.norm, self.vector = layer, concept, norm, neuron.vector
        self.number = base.model.intermediate_size  # one past the real neurons
        level = torch.as_tensor(norm * neuron.level, dtype=torch.float32, device=neuron.vector.device)
        self.amounts = level[:, None] * neuron.sizes  # (P, T)
        self.amounts[:, 0] = 0.0  # not on the beginning-of-sequence token
        self.neutral, self._reference = [], {}  # divergence plays no part in the verdict

    def _state(self, layer: int, neurons: tuple[int, ...]) -> tuple[State, np.ndarray]:  # noqa: ARG002
        state = self.table.engine.state(layer, [0])
        added = self.amounts[:, :, None] * self.vector
        state.mlp = (state.mlp.float() + added).to(state.mlp.dtype)
        state.neurons, state.activations = {self.number: 0}, self.amounts[None]
        return state, self.baseline(state)

    def damages(self, layer: int, neuron: int, kind: str, ratio: float | None = None) -> list[Damage]:
        """The configured damages of the planted vector."""
        c, mean = self.config, float(self.amounts.mean())
        return damages(
            self.model, layer, neuron, kind, mean, c.draws, ratio or c.noise_ratio, c.noise_sigma, c.seed, self.vector
        )

    def effect(self, base: Experiment) -> float:
        """What the vector's presence is worth on its concept's prompts, in nats per answer token."""
        mine = self.table.concept(self.concept)
        return float((self._state(self.layer, ())[1] - base.state(self.layer, (0,))[1])[mine].mean())

    def entry(self) -> Entry:
        """The planted vector as a candidate; it fires on its concept's prompts by construction."""
        return {
            "id": f"L{self.layer:02d}_N{self.number:04d}+", "layer": self.layer, "neuron": self.number, "pole": "+",
            "concept": self.concept, "firing_share": 1.0,
        }  # fmt: skip


def draw_neuron(base: Experiment, layer: int, concept: str, draw: int) -> Neuron:
    """A random draw of the answers that a planted vector stands for, and of its activations."""
    model, table = base.model, base.table
    rng = np.random.default_rng([base.config.seed, layer, table.concepts.index(concept), draw, 21])
    direction = concept_direction(base, concept, rng)
    scale = model.fold_scale(layer, "both")
    direction = direction / torch.where(scale.abs() < 1e-3, torch.ones_like(scale), scale)
    vector = direction / torch.linalg.vector_norm(direction)
    vector *= torch.linalg.vector_norm(model.value_vectors(layer).float(), dim=1).mean()
    state = table.engine.state(layer, [0])
    sizes = torch.linalg.vector_norm(state.mlp.float(), dim=2) / torch.linalg.vector_norm(vector)
    level = BACKGROUND * rng.standard_normal(len(table.engine))
    level[table.groups[concept]] = rng.uniform(0.7, 1.3, len(table.groups[concept]))
    return Neuron(vector, level, sizes)


def plant(base: Experiment, layer: int, concept: str, draw: int, effects: Sequence[float]) -> list[Planted | None]:
    """Per effect, the weakest planted vector that is worth it, by linear interpolation between `NORMS`."""
    neuron = draw_neuron(base, layer, concept, draw)
    worth = [0.0, *(Planted(base, layer, concept, neuron, norm).effect(base) for norm in NORMS)]
    norms, out = [0.0, *NORMS], []
    for effect in effects:
        i = next((i for i, w in enumerate(worth) if w >= effect), None)
        if i is None:
            out.append(None)
            continue
        share = (effect - worth[i - 1]) / (worth[i] - worth[i - 1])
        out.append(Planted(base, layer, concept, neuron, norms[i - 1] + share * (norms[i] - norms[i - 1])))
    return out


def concept_direction(base: Experiment, concept: str, rng: np.random.Generator) -> torch.Tensor:
    """What is missing for three quarters of the answers (H,): their unembedding rows less what the model expects.

    It is the gradient of their mean log-probability with respect to the normalised final state, so a step along it
    raises these answers, and with them those of the whole concept.
    """
    model, engine, total = base.model, base.table.engine, 0.0
    rows, mine = model.unembedding.float(), base.table.concept(concept)
    some = sorted(int(p) for p in rng.permutation(mine)[: math.ceil(0.75 * len(mine))])
    for p, log_p in engine.clean_distribution(some).items():
        total = total + rows[engine.ids[p, engine.starts[p]]] - log_p.exp() @ rows
    return torch.as_tensor(total)


def calibrate(
    model: Model, config: Config, vectors: int = 100, planted: int = 48, effects: Sequence[float] = EFFECTS
) -> dict[str, Any]:
    """Measure false-validation rate and power of Stage 3.

    Args:
        model: the model; never written.
        config: damage kinds, noise, draws, nulls, seed, batch_size, layers, concepts.
        vectors: random neurons.
        planted: planted vectors per effect, spread over concepts and layers.
        effects: what they are worth, in nats per answer token, above 0.

    Returns:
        a document with ``random``, ``firing``, ``permuted`` (rates with 95 % intervals) and ``planted`` (one
        row per effect).

    Raises:
        RequestError: no concept has enough prompts that the model knows.
    """
    layers = parse_layers(config.layers, model.n_layers)
    activations = corpus_activations(model, config, layers)
    table = PromptTable.build(model, config, load_concepts(config.concepts).prompts())
    names = [n for n in table.concepts if len(table.concept(n)) >= 8]
    if not names:
        raise RequestError("calibrate: the model knows fewer than 8 prompts of every concept; see `conceptvec prompts`")
    experiment = Experiment(model, config, table, activations.mean)
    at_end = table.engine.at_answers(layers)
    rng = np.random.default_rng([config.seed, 20])
    concepts = [names[i % len(names)] for i in range(max(vectors, planted))]
    drawn: list[tuple[int, int]] = []
    for concept in concepts[:vectors]:
        for _ in range(100):
            place = int(rng.choice(layers)), int(rng.integers(model.intermediate_size))
            if not _speaks_of(model, table, *place, concept):
                break
        drawn.append(place)
    random = _as_candidates(drawn, concepts, activations, table, at_end)
    measured = measure(experiment, random, Parts())
    nulls = measure_nulls(model, experiment, random, at_end, Parts(), everywhere=True)
    judge(random, measured, nulls, experiment)

    fires = _that_fire(experiment, activations, at_end, layers, names, vectors)
    judge(fires, measure(experiment, fires, Parts()), nulls, experiment)

    rows, strongest = [], []
    upper = layers[len(layers) // 2 :]  # an unembedding direction means what it says near the output
    # Every layer meets every concept; vectors that share both differ in their draw.
    places = sorted((upper[(i + i // len(names)) % len(upper)], concepts[i], i) for i in range(planted))
    planting = [plant(experiment, *place, effects) for place in places]
    for effect, tried in zip(effects, zip(*planting, strict=True), strict=True):
        made = [p for p in tried if p is not None]
        entries = [p.entry() for p in made]
        found = [_one(p, e) for p, e in zip(made, entries, strict=True)]
        _judge_with(entries, found, random, measured, nulls, experiment)
        rows.append(_rate(entries) | {
            "effect": effect, "out_of_reach": planted - len(made), "norms": [plain(p.norm) for p in made],
            "concept_drop": plain(np.mean([e["concept_drop"] for e in entries])) if entries else None,
            "failed": _reasons(entries),
        })  # fmt: skip
        strongest = made or strongest
        logger.info("planted, worth %g nats: %d of %d validated", effect, rows[-1]["validated"], len(made))

    shuffled = _permuted(table, config.seed)
    dealt = Experiment(model, config, shuffled, activations.mean)
    again = _as_candidates(drawn, concepts, activations, shuffled, at_end)
    for p in strongest:
        p.table = shuffled
    entries = [p.entry() for p in strongest]
    others = measure(dealt, again, Parts())
    found = [_one(p, e) for p, e in zip(strongest, entries, strict=True)]
    _judge_with(again + entries, others + found, [], [], nulls, dealt)
    return {
        "model": model.facts(), "configuration": config.resolved(), "null_neurons": len(nulls.keys),
        "random": _rate(random) | {"p_values": [e["p_value"] for e in random]},
        "firing": _rate(fires) | {"p_values": [e["p_value"] for e in fires]},
        "permuted": _rate(again + entries) | {"p_values": [e["p_value"] for e in again + entries]},
        "planted": rows,
    }  # fmt: skip


def _speaks_of(model: Model, table: PromptTable, layer: int, neuron: int, concept: str) -> bool:
    """Whether the neuron's readout has the concept's answers, as a group, among its 5 % most extreme tokens."""
    ids, starts = table.engine.ids, table.engine.starts
    answers = sorted({int(ids[p, starts[p]]) for p in table.groups[concept]})
    readout = model.unembedding.float() @ (model.value_vectors(layer)[neuron].float() * model.fold_scale(layer, "both"))
    share = float((readout < readout[answers].mean()).float().mean())
    return not 0.05 <= share <= 0.95


def _as_candidates(
    drawn: Sequence[tuple[int, int]], concepts: Sequence[str], activations: Activations, table: PromptTable,
    at_end: dict[int, np.ndarray],
) -> list[Entry]:  # fmt: skip
    """Neurons as Stage 2 would hand them over, each with the pole that fires on more of the concept's prompts."""
    out = []
    for (layer, neuron), concept in zip(drawn, concepts, strict=False):
        both = []
        for pole in "+-":
            e: Entry = {"id": f"L{layer:02d}_N{neuron:04d}{pole}", "layer": layer, "neuron": neuron, "pole": pole}
            e |= {"concept": concept}
            both.append(e | {"firing_share": firing(e, activations, table, at_end)})
        out.append(max(both, key=lambda e: e["firing_share"]))
    return out


def _that_fire(
    experiment: Experiment, activations: Activations, at_end: dict[int, np.ndarray], layers: Sequence[int],
    names: Sequence[str], vectors: int,
) -> list[Entry]:  # fmt: skip
    """Random pairs of neuron and concept that fire, each once; fewer where `MISSES` draws in a row find no other."""
    model, table = experiment.model, experiment.table
    rng, found, misses = np.random.default_rng([experiment.config.seed, 23]), {}, 0
    while len(found) < vectors and misses < MISSES:
        place, concept = (int(rng.choice(layers)), int(rng.integers(model.intermediate_size))), str(rng.choice(names))
        entry = _as_candidates([place], [concept], activations, table, at_end)[0]
        misses += 1
        if entry["firing_share"] < FIRING_SHARE or (place, concept) in found:
            continue
        if not _speaks_of(model, table, *place, concept):
            found[place, concept], misses = entry, 0
    return list(found.values())


def _one(planted: Planted, entry: Entry) -> Arrays:
    arrays = planted.candidate_unit(planted.layer, (planted.number,), [entry])
    planted.state.cache_clear()  # one state of all prompts at a time
    return {k: v[0] for k, v in arrays.items()}


def _judge_with(
    entries: list[Entry], found: list[Arrays], random: list[Entry], measured: list[Arrays], nulls: Nulls,
    experiment: Experiment,
) -> None:  # fmt: skip
    """Judge the entries among the random neurons (copies: their own verdicts stand)."""
    judge(entries + [dict(e) for e in random], found + list(measured), nulls, experiment)


def _permuted(table: PromptTable, seed: int) -> PromptTable:
    """The same prompts, dealt out anew to concepts of the same sizes."""
    rng = np.random.default_rng([seed, 22])
    every = rng.permutation([i for n in table.concepts for i in table.groups[n]])
    edges = np.cumsum([len(table.groups[n]) for n in table.concepts])[:-1]
    dealt = dict(zip(table.concepts, (sorted(map(int, part)) for part in np.split(every, edges)), strict=True))
    return replace(table, groups=table.groups | dealt)


def _rate(entries: Sequence[Entry]) -> dict[str, Any]:
    """Counts and rates of a group: validated, and validated if no other test had been made (q = p)."""
    hits = sum(e["validated"] for e in entries)
    alone = sum(verdict(e | {"q_value": e["p_value"]})[0] == "validated" for e in entries if e["p_value"] is not None)
    tested = [e["p_value"] for e in entries if e["p_value"] is not None]
    low, high = stats.wilson(hits, len(entries))
    return {
        "vectors": len(entries), "tested": len(tested), "validated": hits, "rate": plain(hits / max(len(entries), 1)),
        "ci95": [plain(low), plain(high)], "validated_uncorrected": alone,
        "p_at_most_0.05": plain(np.mean([p <= MAX_Q for p in tested])) if tested else None,
    }  # fmt: skip


def _reasons(entries: Sequence[Entry]) -> dict[str, int]:
    out: dict[str, int] = {}
    for e in entries:
        for text in e["failed"]:
            out[text] = out.get(text, 0) + 1
    return out


def table(document: dict[str, Any]) -> str:
    """The calibration as text."""
    from tabulate import tabulate

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
    headers = ("group", "vectors", "tested", "validated", "rate", "95 % interval", "without correction", "concept drop")
    return tabulate(body, headers, disable_numparse=True)


def figure(document: dict[str, Any], path: Path) -> Path:
    """Power against strength, and the p-values of false candidates, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    rows = [row for row in document["planted"] if row["vectors"]]
    x, y = [r["effect"] for r in rows], [r["rate"] for r in rows]
    errors = [[r["rate"] - r["ci95"][0] for r in rows], [r["ci95"][1] - r["rate"] for r in rows]]
    left.errorbar(x, y, np.maximum(errors, 0), marker="o", capsize=3, label="planted vectors")
    for name in ("random", "firing", "permuted"):
        left.axhline(document[name]["rate"], linestyle=":", color="grey")
    left.axhline(0.95, linestyle="--", color="grey", linewidth=0.8)
    left.set(
        xticks=x,
        xlabel="worth of the planted vector (nats per answer token)",
        ylabel="validated",
        ylim=(-0.03, 1.03),
    )
    left.set_title(
        f"Power; dotted: {document['random']['validated']} of {document['random']['vectors']} random neurons"
    )
    for name in ("random", "firing", "permuted"):
        p = np.sort([v for v in document[name]["p_values"] if v is not None])
        right.step(
            np.append(p, 1), np.append(np.arange(1, len(p) + 1), len(p)) / max(len(p), 1), where="post", label=name
        )
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    right.set(xlabel="p", ylabel="share of the tested at most p", title="p-values where nothing is there")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    plt.close(fig)
    return path
