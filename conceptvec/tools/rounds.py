"""One round of a calibration: plant in one layer, scan, damage and judge as in a run.

The planted vectors are handed over as candidates, together with random neurons of the layer, so
that the correction for many tests faces both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from conceptvec.config import Config
from conceptvec.effects.stage import scan_text
from conceptvec.errors import RequestError
from conceptvec.records import Candidate, Pole
from conceptvec.runfolder import Arrays, Parts
from conceptvec.streams import rng
from conceptvec.text import plain
from conceptvec.tools.ground import Ground, quietest
from conceptvec.tools.planting import (
    Plant,
    activations,
    concept_direction,
    firing_places,
    planted,
)
from conceptvec.tools.worth import set_norms
from conceptvec.validation.evidence import Tested
from conceptvec.validation.positions import LARGEST_SET, own_positions
from conceptvec.validation.stage import control_rates, run_on, verdicts_on

EFFECTS = (0.02, 0.05, 0.1, 0.2, 0.4)  # nats on own words; the first lies below the rule's floor
VECTORS = 200  # random neurons
SHARE_OF_RANDOM = 3  # at most one neuron in so many of a layer: controls are drawn from the rest
SHOWN_TOKENS = 10


MOST_VECTORS = 100_000  # planted or random


@dataclass(frozen=True)
class Options:
    """What a calibration is asked for, besides the configuration of a run.

    Attributes:
        planted: vectors for each concept and effect.
        vectors: random neurons, over all rounds.
        effects: what planted vectors are worth, nats on own words.
    """

    planted: int = 1
    vectors: int = VECTORS
    effects: tuple[float, ...] = EFFECTS

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RequestError: one cannot be used.
        """
        for name in ("planted", "vectors"):
            if not 1 <= (got := getattr(self, name)) <= MOST_VECTORS:
                raise RequestError(
                    f"--{name}: got {got}, expected a whole number from 1 to {MOST_VECTORS:,}"
                )
        if not self.effects or min(self.effects) <= 0:
            raise RequestError(f"effects: got {self.effects}, expected numbers of nats above 0")

    @property
    def rounds(self) -> int:
        """How many there are: in each every concept is planted once."""
        return self.planted * len(self.effects)

    def effect_of(self, number: int, index: int) -> float:
        """What the vector of the concept in place `index` is worth in a round."""
        return self.effects[(number + index) % len(self.effects)]

    def document(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return {**asdict(self), "effects": list(self.effects)}


@dataclass(frozen=True)
class Tried:
    """A vector that was to be planted; without a plant where no norm makes it worth the effect."""

    concept: int
    effect: float
    plant: Plant | None


def play(ground: Ground, config: Config, options: Options, number: int, layer: int) -> Arrays:
    """One round.

    Returns:
        ``round_json``, and the planted ``neurons`` (P,) with their ``columns`` (P, H).
    """
    model, names = ground.model, ground.names
    quiet = quietest(model, layer, ground.text)
    tried = plant_all(ground, config, options, number, layer, quiet)
    plants = [one.plant for one in tried if one.plant is not None]
    of_plants = [
        _candidate(Pole(layer, plant.neuron, "+"), names[plant.concept]) for plant in plants
    ]
    count = -(-options.vectors // options.rounds)
    stream = rng(config.seed, "random neurons", number, layer)
    random = random_candidates(ground, config.fold, layer, quiet[len(tried) :], count, stream)

    # The primary damage, and the rotation that the rule asks for, decide; other kinds do not.
    config = replace(config, damage=config.damage[:1])
    candidates = [*of_plants, *random]
    named = [(candidate.pole, names.index(candidate.concept)) for candidate in candidates]
    with planted(model, plants):
        scan = scan_text(ground.text, model, config, [layer], named, Parts())
        tested, controls = verdicts_on(run_on(scan, config, Parts()), candidates)
    of_neuron = {item.subject.neuron: item for item in tested[: len(plants)]}
    columns = [plant.column.cpu().numpy() for plant in plants]
    return {
        "round_json": {
            "layer": layer,
            "planted": [_planted_point(one, of_neuron, names) for one in tried],
            "random": [_random_point(ground, config, item) for item in tested[len(plants) :]],
            "controls": control_rates(controls, names),
        },
        "neurons": np.array([plant.neuron for plant in plants], np.int32),
        "columns": np.array(columns, np.float32).reshape(len(plants), model.hidden_size),
    }


def plant_all(
    ground: Ground,
    config: Config,
    options: Options,
    number: int,
    layer: int,
    places: Sequence[int],
) -> list[Tried]:
    """A vector for each concept, with the norm that makes it worth what the round asks.

    Args:
        ground: text and concepts.
        config: seed and fold.
        options: the effects.
        number: of the round.
        layer: where they are planted.
        places: neurons in whose place they may stand, the first ones first.
    """
    model, later = ground.model, ground.not_first
    plants = []
    for concept, neuron in zip(ground.concepts, places[: len(ground.concepts)], strict=True):
        of_concept = ground.before_words[concept]
        is_other = later.copy()
        is_other[of_concept] = False
        stream = rng(config.seed, "planted", number, concept)
        fires = firing_places(of_concept, np.flatnonzero(is_other), ground.hashes, stream)
        column = _direction(ground, layer, concept, config.fold)
        plants.append(Plant(layer, neuron, concept, column, fires))

    # Where the test will look follows from the vectors' directions and their firing alone.
    with planted(model, plants):
        words = ground.scan.promoted_words(
            [(layer, plant.neuron, 1) for plant in plants], [plant.concept for plant in plants]
        )
    positions = []
    for plant, of_plant in zip(plants, words, strict=True):
        activation = activations(plant.fires, ground.hashes)
        positions.append(own_positions(ground.run.text, activation, of_plant)[0][:LARGEST_SET])
    effects = [options.effect_of(number, index) for index in range(len(plants))]
    still = np.zeros(model.intermediate_size)
    setting = replace(ground.run.setting, means={layer: still})
    with_norms = set_norms(model, plants, effects, positions, setting)
    return [
        Tried(plant.concept, effect, final)
        for plant, effect, final in zip(plants, effects, with_norms, strict=True)
    ]


def _direction(ground: Ground, layer: int, concept: int, fold: str) -> torch.Tensor:
    """What promotes a concept's known words over the others', or over all tokens without others."""
    is_own = ground.is_word_of(concept)
    words, others = ground.known_tokens[is_own], ground.known_tokens[~is_own]
    if not len(others):
        others = np.flatnonzero(~ground.text.masked)
    return concept_direction(ground.model, layer, words, others, fold)


def random_candidates(
    ground: Ground,
    fold: str,
    layer: int,
    free: Sequence[int],
    count: int,
    stream: np.random.Generator,
) -> list[Candidate]:
    """Random neurons of a layer, each with a pole and a concept that is not its own.

    Args:
        ground: text and concepts.
        fold: norms folded into the readout.
        layer: the layer.
        free: neurons among which they are drawn.
        count: how many are wanted; fewer where the layer is small.
        stream: draws neurons, poles and concepts.
    """
    drawn = stream.permutation(np.sort(free))[: min(count, len(free) // SHARE_OF_RANDOM)]
    signs = stream.choice((-1, 1), len(drawn))
    promoted = _promoted(ground, fold, layer, drawn)
    candidates = []
    for neuron, sign, by_concept in zip(drawn, signs, promoted, strict=True):
        strongest = int(np.nanargmax(by_concept * sign))
        allowed = [concept for concept in ground.concepts if concept != strongest]
        if allowed:
            pole = Pole(layer, int(neuron), "+" if sign > 0 else "-")
            candidates.append(_candidate(pole, ground.names[int(stream.choice(allowed))]))
    return candidates


def _promoted(ground: Ground, fold: str, layer: int, neurons: np.ndarray) -> np.ndarray:
    """Mean readout of neurons on each concept's known words, NaN without any: float (n, C)."""
    model = ground.model
    at = torch.as_tensor(neurons, dtype=torch.long, device=model.device)
    tokens = torch.as_tensor(ground.known_tokens, dtype=torch.long, device=model.device)
    directions = model.readout_directions(layer, fold, at)
    readout = (directions @ model.unembedding[tokens].float().T.contiguous()).cpu().numpy()
    promoted = np.full((len(neurons), len(ground.names)), np.nan)
    for concept in range(len(ground.names)):
        is_own = ground.is_word_of(concept)
        if is_own.any():
            promoted[:, concept] = readout[:, is_own].mean(1)
    return promoted


def _candidate(pole: Pole, concept: str) -> Candidate:
    """A candidate that Stage 2 never saw."""
    return Candidate(pole, concept, 1.0, {}, (), ())


# ---- what the round found ----


def _planted_point(
    tried: Tried, of_neuron: Mapping[int, Tested], names: Sequence[str]
) -> dict[str, Any]:
    """One planted vector; without a verdict where it is out of reach."""
    point: dict[str, Any] = {
        "concept": names[tried.concept],
        "effect": tried.effect,
        "out_of_reach": tried.plant is None,
    }
    if tried.plant is None:
        return point
    return point | {"norm": plain(tried.plant.norm)} | _outcome(of_neuron[tried.plant.neuron])


def _random_point(ground: Ground, config: Config, item: Tested) -> dict[str, Any]:
    """One random neuron, with its list where it was validated: it may be a concept neuron."""
    point = {"concept": ground.names[item.subject.concept]} | _outcome(item)
    if item.judgement.validated:
        point["top_tokens"] = _top_tokens(ground, config.fold, item)
    return point


def _outcome(item: Tested) -> dict[str, Any]:
    primary = next(iter(item.drops.values()), None)
    unrelated = primary.unrelated if primary else None
    return {
        "id": item.subject.id,
        "p_value": plain(item.use.p),
        "used": item.used,
        "concept_drop": plain(primary.of_concept) if primary else None,
        "unrelated_drop": None if unrelated is None else plain(unrelated),
        "n_concept_positions": len(item.positions.of_concept),
        "verdict": item.judgement.verdict,
        "failed": list(item.judgement.failed),
    }


def _top_tokens(ground: Ground, fold: str, item: Tested) -> list[str]:
    model, subject = ground.model, item.subject
    neuron = torch.tensor([subject.neuron], device=model.device)
    direction = model.readout_directions(subject.layer, fold, neuron)[0] * subject.sign
    parts = model.unembedding.split(2**14)
    readout = torch.cat([rows.float() @ direction for rows in parts]).cpu()
    readout[torch.from_numpy(ground.text.masked)] = -torch.inf
    best = readout.topk(min(SHOWN_TOKENS, len(readout))).indices.tolist()
    return [ground.text.pieces[token].strip() for token in best]
