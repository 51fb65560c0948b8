"""Damage of many vectors at once, and what the model says under damage.

**Sets.** The ten best vectors of a concept (largest selectivity) are damaged together, in as many layers as they come
from, and compared with random sets: for each vector another neuron of its layer, drawn among the `ALIKE` nearest in
norm and activation that are no candidates. The vectors are chosen on every other prompt and tested on the prompts
between, so the choice cannot flatter the test.

**Continuations.** Greedy text of the model after a concept prompt and a neutral one: clean, with the vector ablated,
and with its write amplified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.runfolder import Arrays, Parts, Task, part_name
from conceptvec.text import plain
from conceptvec.validation import statistics as stats
from conceptvec.validation.damage import Damage, continuation, damaging
from conceptvec.validation.measure import Experiment
from conceptvec.validation.nulls import Likeness

if TYPE_CHECKING:
    from conceptvec.concepts import Prompt

SET_SIZE, RANDOM_SETS, ALIKE = (
    10,
    39,
    20,
)  # vectors in a set; with 39 random sets the smallest p is 0.025
SHOWN, NEW_TOKENS, AMPLIFY = (
    12,
    10,
    4.0,
)  # vectors continued, tokens written, extra writes of an amplified vector
Entry = dict[str, Any]


def measure_sets(
    experiment: Experiment,
    entries: Sequence[Entry],
    drops: Sequence[np.ndarray],
    like: Likeness,
    parts: Parts,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Damage each concept's best vectors together (primary damage, its first draw), and random sets like them.

    Args:
        experiment: prompts and damages.
        entries: the tested candidates.
        drops: per entry, what the primary damage cost on every prompt (P,), NaN where it was not measured.
        like: how alike neurons are.
        parts: keeps finished parts.

    Returns:
        one dict per concept with at least two vectors that have an effect on the selection half, and the cost.
    """
    table, seed = experiment.table, experiment.config.seed
    tasks: list[Task] = []
    about: list[dict[str, Any]] = []
    for c, name in enumerate(table.concepts):
        mine, others = table.concept(name), table.unrelated(name)
        own = [(e, d) for e, d in zip(entries, drops, strict=True) if e["concept"] == name]
        if len(mine) < 4 or len(others) < 4:
            continue
        ranked: dict[tuple[int, int], float] = {}
        for e, d in own:
            value = float(d[mine[::2]].mean() - d[others[::2]].mean())
            if value > 0:
                ranked.setdefault((e["layer"], e["neuron"]), value)
        best = sorted(ranked, key=lambda key: (-ranked[key], key))[:SET_SIZE]
        if len(best) < 2:
            continue
        rng = np.random.default_rng([seed, c, 13])
        taken = {(e["layer"], e["neuron"]) for e, _ in own}
        sets = [best, *(_random_set(best, taken, like, name, rng) for _ in range(RANDOM_SETS))]
        prompts = mine[1::2] + others[1::2]
        about.append(
            {
                "concept": name,
                "vectors": [[layer, neuron] for layer, neuron in best],
                "n": len(mine[1::2]),
            }
        )
        tasks.append((
            part_name(f"validation/set_{c:02d}", sets, prompts),
            lambda sets=sets, prompts=prompts: _set_unit(experiment, sets, prompts),
        ))  # fmt: skip
    done = parts.map(tasks, "Stage 3: damaging sets", "concept") if tasks else []
    found = []
    for entry, arrays in zip(about, done, strict=True):
        n, drop = entry.pop("n"), arrays["drop"]
        concept, elsewhere = drop[:, :n], drop[:, n:]
        t, values = stats.welch_t(concept, elsewhere), concept.mean(1) - elsewhere.mean(1)
        found.append(entry | {
            "concept_drop": plain(concept[0].mean()), "unrelated_drop": plain(elsewhere[0].mean()),
            "selectivity": plain(values[0]), "p_value": plain(stats.null_p(t[0], t[1:])),
            "random_sets": len(t) - 1,
            "random_selectivity": [plain(x) for x in np.quantile(values[1:], (0.05, 0.5, 0.95))],
            "n_concept_prompts": n, "n_unrelated_prompts": drop.shape[1] - n,
        })  # fmt: skip
    return found, sum((arrays["cost"] for arrays in done), np.zeros(2))


def _random_set(
    best: Sequence[tuple[int, int]],
    taken: set[tuple[int, int]],
    like: Likeness,
    concept: str,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """For each neuron of `best` a random one among the free ones of its layer that are most like it; each once."""
    out: list[tuple[int, int]] = []
    for layer, neuron in best:
        order = np.argsort(like.distance(concept, layer, neuron, layer), kind="stable")
        free = [j for j in order.tolist() if (layer, j) not in taken and (layer, j) not in out][
            :ALIKE
        ]
        out += [(layer, int(rng.choice(free)))] if free else []
    return out


def _set_unit(
    experiment: Experiment, sets: Sequence[Sequence[tuple[int, int]]], prompts: list[int]
) -> Arrays:
    """What the damage of whole sets costs on the prompts: (sets, prompts)."""
    engine, kind = experiment.table.engine, experiment.config.damage[0]
    clean = engine.clean(prompts)[0]
    drops = []
    for members in sets:
        by_layer: dict[int, list[Damage]] = {}
        for layer, neuron in members:
            by_layer.setdefault(layer, []).append(experiment.damages(layer, neuron, kind)[0])
        with damaging(experiment.model, by_layer):
            drops.append(clean - engine.clean(prompts)[0])
    return {"drop": np.stack(drops), "cost": engine.cost(-1, prompts, len(sets) + 1)}


def add_continuations(
    experiment: Experiment,
    entries: Sequence[Entry],
    prompts: Mapping[str, Sequence[Prompt]],
    parts: Parts,
) -> None:
    """Give the best validated entries of every concept, in turn, the model's own continuations.

    The concept prompt is the one that the damage costs most; the neutral one is the first.
    """
    by_concept: dict[str, list[Entry]] = {}
    for e in entries:
        if e["validated"]:
            by_concept.setdefault(e["concept"], []).append(e)
    turns = [some[i] for i in range(SHOWN) for some in by_concept.values() if i < len(some)]
    chosen = sorted(turns[:SHOWN], key=lambda e: e["id"])

    chat = experiment.config.chat_template

    def unit(e: Entry) -> Arrays:
        pick = {e["concept"]: e["hardest_prompt"], "neutral": 0}
        texts = [prompts[name][at].prompt for name, at in pick.items() if prompts[name]]
        vector = experiment.model.value_vectors(e["layer"])[e["neuron"]].float()
        states = {
            "clean": [], "damaged": [Damage(e["neuron"], -1.0, 0.0, vector)],
            "amplified": [Damage(e["neuron"], AMPLIFY, 0.0, vector)],
        }  # fmt: skip
        found = [
            {"prompt": text} | {
                name: continuation(experiment.model, text, {e["layer"]: d}, NEW_TOKENS, chat)[0]
                for name, d in states.items()
            }
            for text in texts
        ]  # fmt: skip
        return {"continuations_json": found}

    tasks: list[Task] = [
        (
            part_name(f"validation/text_{e['id']}", e["concept"], e["hardest_prompt"]),
            lambda e=e: unit(e),
        )
        for e in chosen
    ]
    done = parts.map(tasks, "Stage 3: continuations", "vector") if tasks else []
    for e, arrays in zip(chosen, done, strict=True):
        e["continuations"] = arrays["continuations_json"]
