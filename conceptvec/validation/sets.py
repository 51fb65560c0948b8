"""Damage of many vectors at once, and what the model writes without a vector and with more of it.

**Sets.** The ten best vectors of a concept (largest first-order effect on its words) are removed
together, in as many layers as they come from, and compared with random sets: for each vector
another neuron of its layer, near in norm and activation, that is no candidate. They are chosen by
the scan alone, before any of them is damaged, but on the same text: the random sets were not
chosen, so the comparison says that the best together do more than others, not by how much they
would on another text.

**Continuations.** Greedy text after the strongest example: clean, with the vector removed, and with
five times its write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.runfolder import Arrays
from conceptvec.text import plain
from conceptvec.validation.damage import continuation, damaging, removal
from conceptvec.validation.engine import Engine
from conceptvec.validation.measure import Setting, Subject
from conceptvec.validation.positions import Field
from conceptvec.validation.statistics import null_p

if TYPE_CHECKING:
    from conceptvec.validation.evidence import Tested

SET_SIZE = 10
RANDOM_SETS = 19  # the smallest p is then 0.05
ALIKE = 20  # nearest neurons among which a random set's members are drawn
SET_POSITIONS = 16  # of the concept, and as many of the others
NEW_TOKENS, AMPLIFY = 12, 5.0
Place = tuple[int, int]  # layer and neuron


def best_of(concept: int, tested: Sequence[Tested]) -> list[Place]:
    """The neurons of a concept's best candidates by first-order effect, at most `SET_SIZE`."""
    of_concept = [item for item in tested if item.subject.concept == concept and item.use.mean > 0]
    of_concept.sort(key=lambda item: (-item.use.mean, item.subject.id))
    places = dict.fromkeys((item.subject.layer, item.subject.neuron) for item in of_concept)
    return list(places)[:SET_SIZE]


def random_set(
    best: Sequence[Place],
    taken: set[Place],
    likeness: Mapping[int, np.ndarray],
    stream: np.random.Generator,
) -> list[Place]:
    """For each neuron of `best` a random one among the free ones most like it, each once."""
    chosen: list[Place] = []
    for layer, neuron in best:
        features = likeness[layer]
        distance = np.linalg.norm(features - features[neuron], axis=1)
        order = np.argsort(distance, kind="stable").tolist()
        free = [j for j in order if (layer, j) not in taken and (layer, j) not in chosen]
        if free:
            chosen.append((layer, int(stream.choice(free[:ALIKE]))))
    return chosen


def set_positions(
    field: Field, concept: int, stream: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random positions before known words of a concept, and before those of the others."""
    known = np.flatnonzero(field.target >= 0)
    is_own = field.word_concept[field.target[known]] == concept
    of_concept, others = (
        np.sort(stream.permutation(known[mask])[:SET_POSITIONS]) for mask in (is_own, ~is_own)
    )
    return of_concept, others


def measure_sets(
    sets: Sequence[Sequence[Place]], of_concept: np.ndarray, others: np.ndarray, setting: Setting
) -> Arrays:
    """What removing whole sets costs: drops (sets, positions), own ones first."""
    model = setting.model
    texts = [setting.text(int(at)) for at in np.concatenate([of_concept, others])]
    engine = Engine(model, texts, setting.batch_size, setting.replay)
    everything = range(len(texts))
    # Below the lowest damage of any set all of them compute the same.
    lowest = min(layer for members in sets for layer, _ in members)
    below = engine.state(lowest - 1, []) if lowest else None
    clean = engine.clean(everything, below).log_p
    drops = []
    for members in sets:
        by_layer: dict[int, list[Any]] = {}
        for layer, neuron in members:
            by_layer.setdefault(layer, []).append(removal(model, layer, neuron))
        with damaging(model, by_layer):
            drops.append(clean - engine.clean(everything, below).log_p)
    return {"drop": np.stack(drops)}


def set_entry(concept: str, best: Sequence[Place], n_own: int, arrays: Arrays) -> dict[str, Any]:
    """One concept's set in the results document; the first row is the set, the rest are random."""
    of_concept, others = arrays["drop"][:, :n_own].mean(1), arrays["drop"][:, n_own:].mean(1)
    selectivity = of_concept - others
    return {
        "concept": concept,
        "vectors": [list(place) for place in best],
        "concept_drop": plain(of_concept[0]),
        "unrelated_drop": plain(others[0]),
        "selectivity": plain(selectivity[0]),
        "p_value": plain(null_p(selectivity[0], selectivity[1:])),
        "random_sets": len(selectivity) - 1,
        "random_selectivity": [plain(x) for x in np.quantile(selectivity[1:], (0.05, 0.5, 0.95))],
        "n_concept_positions": n_own,
        "n_unrelated_positions": arrays["drop"].shape[1] - n_own,
    }


def continuations(
    subject: Subject, ids: Sequence[int], setting: Setting, decode: Callable[[list[int]], str]
) -> dict[str, str]:
    """What the model writes after some tokens: clean, without the vector, with more of it."""
    layer, neuron = subject.layer, subject.neuron
    states = {
        "clean": [],
        "removed": [removal(setting.model, layer, neuron)],
        "amplified": [removal(setting.model, layer, neuron, AMPLIFY)],
    }
    texts = {
        name: continuation(setting.model, ids, {layer: damages}, NEW_TOKENS)[0]
        for name, damages in states.items()
    }
    return {"prompt": decode(list(ids))} | texts
