"""``conceptvec calibrate``: Stage 3 tests itself on the model at hand.

1. **Random neurons**, drawn as if they were candidates (random concept, the pole that fires more), go through the
   same measurements and the same judge. A neuron whose readout speaks of the concept (`_speaks_of`) is not drawn for
   it: it may be a true one. What is validated is false.
   Few of them fire on the prompts they are drawn for, so a second group is drawn among the pairs of neuron and concept
   that do: all of it is tested.
2. **Permuted labels**: the same neurons, and the strongest planted ones, where the prompts of all concepts have
   been dealt out anew. Everything validated is false.
3. **Planted vectors** worth a stated number of nats (`planting`), in the upper half of the layers. Where no norm
   reaches the effect, nothing is planted, and that is counted. What is validated is true.

The planted vectors are judged together with the random neurons, so that the correction for many tests faces both kinds;
the other groups each by themselves.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.concepts import load_concepts
from conceptvec.config import Config, parse_layers
from conceptvec.errors import RequestError
from conceptvec.extraction.stage import measure_activations
from conceptvec.runfolder import Arrays, Parts
from conceptvec.text import plain
from conceptvec.text import table as text_table
from conceptvec.tools.planting import Planted, plant
from conceptvec.validation import statistics as stats
from conceptvec.validation.measure import Experiment, PromptTable
from conceptvec.validation.nulls import Entry, Likeness, measure_nulls
from conceptvec.validation.rule import (
    FIRING_SHARE,
    MAX_Q,
    MIN_CONCEPT_PROMPTS,
    MIN_UNRELATED_PROMPTS,
    verdict,
)
from conceptvec.validation.stage import firing, judge, measure

if TYPE_CHECKING:
    from conceptvec.extraction.activations import Activations
    from conceptvec.model.network import Model

logger = logging.getLogger(__name__)

EFFECTS = (0.05, 0.1, 0.15, 0.2, 0.3)  # nats per answer token that the planted vectors are worth
MISSES = 1000  # draws in a row without a new pair that fires, after which no more are looked for


def calibrate(
    model: Model,
    config: Config,
    vectors: int = 100,
    planted: int = 48,
    effects: Sequence[float] = EFFECTS,
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
    activations = measure_activations(model, config, layers)
    table = PromptTable.build(model, config, load_concepts(config.concepts).prompts())
    names = [
        n for n in table.concepts
        if len(table.concept(n)) >= MIN_CONCEPT_PROMPTS and len(table.unrelated(n)) >= MIN_UNRELATED_PROMPTS
    ]  # fmt: skip
    if not names:
        raise RequestError(
            f"calibrate: the model knows fewer than {MIN_CONCEPT_PROMPTS} prompts of every concept, or fewer than "
            f"{MIN_UNRELATED_PROMPTS} others to compare with; see `conceptvec prompts`"
        )
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
    nulls = measure_nulls(
        experiment, random, Likeness(model, table, at_end), Parts(), everywhere=True
    )
    judge(random, measured, nulls, experiment)

    fires = _that_fire(experiment, activations, at_end, layers, names, vectors)
    judge(fires, measure(experiment, fires, Parts()), nulls, experiment)

    rows, strongest = [], []
    upper = layers[
        len(layers) // 2 :
    ]  # an unembedding direction means what it says near the output
    # Every layer meets every concept; vectors that share both differ in their draw.
    places = sorted(
        (upper[(i + i // len(names)) % len(upper)], concepts[i], i) for i in range(planted)
    )
    planting = [plant(experiment, *place, effects) for place in places]
    for effect, tried in zip(effects, zip(*planting, strict=True), strict=True):
        made = [p for p in tried if p is not None]
        entries = [p.entry() for p in made]
        found = [_one(p, e) for p, e in zip(made, entries, strict=True)]
        among = [dict(e) for e in random]  # copies: their own verdicts stand
        judge(entries + among, found + measured, nulls, experiment)
        rows.append(_rate(entries) | {
            "effect": effect, "out_of_reach": planted - len(made), "norms": [plain(p.norm) for p in made],
            "concept_drop": plain(np.mean([e["concept_drop"] for e in entries])) if entries else None,
            "failed": dict(Counter(text for e in entries for text in e["failed"])),
        })  # fmt: skip
        strongest = made or strongest
        logger.info(
            "planted, worth %g nats: %d of %d validated", effect, rows[-1]["validated"], len(made)
        )

    shuffled = _permuted(table, config.seed)
    dealt = Experiment(model, config, shuffled, activations.mean)
    again = _as_candidates(drawn, concepts, activations, shuffled, at_end)
    for p in strongest:
        p.table = shuffled
    entries = [p.entry() for p in strongest]
    others = measure(dealt, again, Parts())
    found = [_one(p, e) for p, e in zip(strongest, entries, strict=True)]
    judge(again + entries, others + found, nulls, dealt)
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
    readout = model.unembedding.float() @ model.readout_directions(layer, "both", neuron)
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
            e: Entry = {
                "id": f"L{layer:02d}_N{neuron:04d}{pole}",
                "layer": layer,
                "neuron": neuron,
                "pole": pole,
            }
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
        place, concept = (
            (int(rng.choice(layers)), int(rng.integers(model.intermediate_size))),
            str(rng.choice(names)),
        )
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


def _permuted(table: PromptTable, seed: int) -> PromptTable:
    """The same prompts, dealt out anew to concepts of the same sizes."""
    rng = np.random.default_rng([seed, 22])
    every = rng.permutation([i for n in table.concepts for i in table.groups[n]])
    edges = np.cumsum([len(table.groups[n]) for n in table.concepts])[:-1]
    dealt = dict(
        zip(
            table.concepts, (sorted(map(int, part)) for part in np.split(every, edges)), strict=True
        )
    )
    return replace(table, groups=table.groups | dealt)


def _rate(entries: Sequence[Entry]) -> dict[str, Any]:
    """Counts and rates of a group: validated, and validated if no other test had been made (q = p)."""
    hits = sum(e["validated"] for e in entries)
    alone = sum(
        verdict(e | {"q_value": e["p_value"]})[0] == "validated"
        for e in entries
        if e["p_value"] is not None
    )
    tested = [e["p_value"] for e in entries if e["p_value"] is not None]
    low, high = stats.wilson(hits, len(entries))
    return {
        "vectors": len(entries), "tested": len(tested), "validated": hits, "rate": plain(hits / max(len(entries), 1)),
        "ci95": [plain(low), plain(high)], "validated_uncorrected": alone,
        "p_at_most_0.05": plain(np.mean([p <= MAX_Q for p in tested])) if tested else None,
    }  # fmt: skip


def calibration_table(document: Mapping[str, Any]) -> str:
    """The answer of `calibrate` as text."""
    groups = {
        "random neurons": document["random"],
        "random, firing": document["firing"],
        "permuted labels": document["permuted"],
    }
    for row in document["planted"]:
        groups[f"planted, worth {row['effect']:g} nats"] = row
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
    return text_table([_group_row(name, group) for name, group in groups.items()], headers)


def _group_row(name: str, group: Mapping[str, Any]) -> list[Any]:
    low, high = group["ci95"]
    drop = group.get("concept_drop")
    return [
        name,
        group["vectors"],
        group["tested"],
        group["validated"],
        f"{group['rate']:.1%}" if group["vectors"] else "none to find",
        f"{low:.1%} … {high:.1%}",
        group["validated_uncorrected"],
        "" if drop is None else f"{drop:.3f}",
    ]
