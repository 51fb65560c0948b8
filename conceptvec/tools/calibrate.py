"""``conceptvec calibrate``: Stage 3 tests itself on the model at hand.

1. The text of a run, written or read once, and the words in it that the model knows.
2. **Rounds.** Each plants one vector a concept in one layer of the upper half (`planting`), in the
   place of the neurons that write least, and hands them over as candidates, together with random
   neurons of the layer under random concepts. What a vector is worth goes round the concepts, so
   after as many rounds as there are effects every concept has had each of them.
3. Scan, positions, damage and rule are those of a run (`effects.stage`, `validation.stage`); so are
   the controls that pass with the candidates: null neurons, wrong concepts, moved vectors.

What is validated among the planted is true, what is validated among the others is false, unless
the neuron is a concept neuron itself; so its list is shown. A random neuron is never tested for the
concept that its own readout promotes most. Where no norm makes a vector worth its nats, nothing
is planted, and that is counted. The same controls may come back in several rounds of one layer.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.concepts import load_concepts
from conceptvec.config import Config, parse_layers
from conceptvec.effects.stage import RunningText, Scan, running_text, scan_text
from conceptvec.errors import RequestError
from conceptvec.extraction.activations import capturing
from conceptvec.model.vocabulary import masked_tokens, token_texts
from conceptvec.records import Candidate, Pole
from conceptvec.runfolder import Arrays, Parts, Task, part_name
from conceptvec.streams import rng
from conceptvec.text import DASH, number, plain, printable
from conceptvec.text import table as text_table
from conceptvec.tools.planting import (
    Plant,
    activations,
    concept_direction,
    firing_places,
    planted,
    set_norms,
    text_hashes,
)
from conceptvec.validation.evidence import Tested
from conceptvec.validation.further import Run
from conceptvec.validation.positions import LARGEST_SET, own_positions
from conceptvec.validation.rule import RULE
from conceptvec.validation.stage import control_rates, run_on, verdicts_on
from conceptvec.validation.statistics import wilson

if TYPE_CHECKING:
    from conceptvec.model.network import Model

logger = logging.getLogger(__name__)

EFFECTS = (0.02, 0.05, 0.1, 0.2, 0.4)  # nats on own words; the first lies below the rule's floor
VECTORS = 200  # random neurons
LOOKED_AT = 64  # passages from which it is told which neurons write least
SHARE_OF_RANDOM = 3  # at most one neuron in so many of a layer: controls are drawn from the rest
SHOWN_TOKENS = 10


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
            if getattr(self, name) < 1:
                got = getattr(self, name)
                raise RequestError(f"--{name}: got {got}, expected a whole number of at least 1")
        if not self.effects or min(self.effects) <= 0:
            raise RequestError(f"effects: got {self.effects}, expected numbers of nats above 0")

    @property
    def rounds(self) -> int:
        """How many there are."""
        return self.planted * len(self.effects)

    def document(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return {**asdict(self), "effects": list(self.effects)}


@dataclass(frozen=True)
class Ground:
    """What all rounds share: the text, and the undamaged model on it.

    Attributes:
        text: the running text.
        run: Stage 3 on a scan of the model as it is.
        masked: bool (V,), tokens that are never shown.
        hashes: of the beginning that ends at each token: int64 (tokens,).
        before_words: concept → positions before its known words, int64; the plantable concepts.
        not_planted: name of a concept → why nothing can be planted for it.
    """

    text: RunningText
    run: Run
    masked: np.ndarray
    hashes: np.ndarray
    before_words: dict[int, np.ndarray]
    not_planted: dict[str, str]

    @property
    def scan(self) -> Scan:
        """The scan of the model as it is, over its last layer alone."""
        return self.run.scan

    @property
    def concepts(self) -> list[int]:
        """The numbers of the concepts for which something is planted."""
        return list(self.before_words)


def calibrate(
    model: Model, config: Config, options: Options | None = None, parts: Parts | None = None
) -> dict[str, Any]:
    """Measure false-validation rate and power of Stage 3.

    Args:
        model: the model; each round writes to one layer and restores it.
        config: corpus, corpus_tokens, concepts, layers, fold, damage, seed, batch_size.
        options: what is planted.
        parts: keeps the text and finished rounds (a `runfolder.RunFolder`).

    Returns:
        a document with ``planted`` (one row an effect), ``not_planted``, ``random`` and
        ``null_calibration``, rates with 95 % intervals.

    Raises:
        RequestError: nothing can be planted: no concept has the known words, or no layer is left.
        RunError: a forward pass gives NaN or infinity.
    """
    options, parts = options or Options(), parts or Parts()
    start = time.perf_counter()
    layers = planting_layers(config, model.n_layers)
    ground = survey(model, config, parts)
    tasks: list[Task] = [
        _round(ground, config, options, number, layers[number * len(layers) // options.rounds])
        for number in range(options.rounds)
    ]
    rounds = [
        arrays["round_json"] for arrays in parts.map(tasks, "Calibration: planted rounds", "round")
    ]
    return {
        "model": model.facts(),
        "configuration": config.resolved(),
        "options": options.document(),
        "text": _text_facts(ground, config),
        "layers": [one["layer"] for one in rounds],
        "planted": [_effect_row(effect, rounds) for effect in options.effects],
        "not_planted": ground.not_planted,
        "random": _random_row(rounds),
        "null_calibration": _pooled_controls(rounds),
        "timings": {"calibrate": round(time.perf_counter() - start, 3)},
    }


def planting_layers(config: Config, n_layers: int) -> list[int]:
    """The upper half of the chosen layers, without the model's last.

    Raises:
        RequestError: none is left.
    """
    chosen = parse_layers(config.layers, n_layers)
    below_last = [layer for layer in chosen if layer < n_layers - 1]
    if not below_last:
        raise RequestError(
            f"--layers: got {config.layers!r}, expected one below the last of the model's "
            f"{n_layers} layers: calibrate plants its vectors there"
        )
    upper = [layer for layer in below_last if layer >= chosen[len(chosen) // 2]]
    return upper or below_last[-1:]


# ---- the ground ----


def survey(model: Model, config: Config, parts: Parts) -> Ground:
    """Text, known words, and the concepts for which something can be planted.

    Raises:
        RequestError: there is none.
    """
    concepts = load_concepts(config.concepts, with_prompts=False)
    text = running_text(model, config, concepts, parts)
    masked = masked_tokens(model, token_texts(model)).numpy()
    # The last layer alone: what is wanted is which words the model knows where.
    scan = scan_text(text, model, config, [model.n_layers - 1], [], masked, parts)
    run = run_on(scan, config, Parts())

    before_words: dict[int, np.ndarray] = {}
    not_planted: dict[str, str] = {}
    known = np.flatnonzero(run.text.target >= 0)
    concept_of = run.text.word_concept[run.text.target[known]]
    for concept in text.own:
        at = known[concept_of == concept]
        if reason := _why_not(run, concept, at):
            not_planted[scan.concepts[concept]] = reason
        else:
            before_words[concept] = at
    if not before_words:
        name, reason = next(iter(not_planted.items()))
        raise RequestError(
            f"calibrate: nothing can be planted for any of {len(not_planted)} concepts ({name}: "
            f"{reason}); give more --corpus-tokens, another --corpus or other --concepts"
        )
    return Ground(text, run, masked, text_hashes(text.passages), before_words, not_planted)


def _why_not(run: Run, concept: int, before_words: np.ndarray) -> str | None:
    """Why a vector planted for a concept could not be judged on this text; None where it could."""
    words = run.text.known_words(concept)
    if words < RULE.known_words:
        return f"{words} known words in the text, {RULE.known_words - words} too few"
    everywhere = np.zeros(len(run.text.target), np.float32)
    everywhere[before_words] = 1.0
    own = len(own_positions(run.text, everywhere, concept))
    if own < RULE.positions:
        return f"{own} own positions in the text, {RULE.positions - own} too few"
    if not run.scan.contrast.against[concept].any():
        return "no other concept has known words in the text to compare it with"
    return None


def _text_facts(ground: Ground, config: Config) -> dict[str, Any]:
    passages, run = ground.text.passages, ground.run
    names = ground.scan.concepts
    return {
        "corpus": config.corpus,
        "digest": passages.digest,
        "passages": len(passages),
        "tokens": int(len(passages.ids)),
        "known_words": {names[c]: run.text.known_words(c) for c in ground.text.own},
    }


# ---- a round ----


@dataclass(frozen=True)
class _Tried:
    """A vector that was to be planted."""

    concept: int
    effect: float
    plant: Plant | None


def _round(ground: Ground, config: Config, options: Options, number: int, layer: int) -> Task:
    """The task of one round, named after all that it depends on."""
    about = (
        ground.text.passages.digest,
        layer,
        options.document(),
        config.seed,
        config.fold,
        config.damage,
    )
    name = part_name(f"calibration/round_{number:03d}", about)

    def compute() -> Arrays:
        logger.info("calibration: round %d of %d, layer %d", number + 1, options.rounds, layer)
        return play(ground, config, options, number, layer)

    return name, compute


def play(ground: Ground, config: Config, options: Options, number: int, layer: int) -> Arrays:
    """One round: plant, scan, damage, judge.

    Returns:
        ``round_json``, and the planted ``neurons`` (P,) with their ``columns`` (P, H).
    """
    model = ground.run.setting.model
    quiet = quietest(model, layer, ground.text)
    tried = _plant(ground, config, options, number, layer, quiet)
    plants = [one.plant for one in tried if one.plant is not None]
    taken = quiet[: len(tried)]
    count = -(-options.vectors // options.rounds)
    random = _random_candidates(ground, config, number, layer, taken, count)
    names = ground.scan.concepts
    candidates = [
        *(_candidate(Pole(layer, plant.neuron, "+"), names[plant.concept]) for plant in plants),
        *random,
    ]

    # What the rest of Stage 3 would measure besides, the verdicts do not need.
    config = replace(config, damage=config.damage[:1])
    named = [(c.pole, names.index(c.concept)) for c in candidates]
    with planted(model, plants):
        scan = scan_text(ground.text, model, config, [layer], named, ground.masked, Parts())
        tested, tested_controls = verdicts_on(run_on(scan, config, Parts()), candidates)
    of_plant = {plant.neuron: item for plant, item in zip(plants, tested, strict=False)}
    found = {
        "layer": layer,
        "planted": [_planted_point(one, of_plant, names) for one in tried],
        "random": [_random_point(ground, item) for item in tested[len(plants) :]],
        "controls": control_rates(tested_controls, names),
    }
    columns = [plant.column.cpu().numpy() for plant in plants]
    return {
        "round_json": found,
        "neurons": np.array([plant.neuron for plant in plants], np.int32),
        "columns": np.array(columns, np.float32).reshape(len(plants), model.hidden_size),
    }


@torch.inference_mode()
def quietest(model: Model, layer: int, text: RunningText) -> list[int]:
    """The neurons of a layer by what they write on the beginning of a text, least first."""
    total = torch.zeros(model.intermediate_size, device=model.device)

    def add(_: int, a: torch.Tensor) -> None:
        total.add_(a[0, 1:].abs().float().sum(0))

    with capturing(model, [layer], add):
        for number in range(min(len(text.passages), LOOKED_AT)):
            ids = torch.from_numpy(text.passages.passage(number).astype(np.int64))
            model.decoder(input_ids=ids[None].to(model.device), use_cache=False)
    norms = torch.linalg.vector_norm(model.value_vectors(layer).float(), dim=1)
    return (total * norms).argsort(stable=True).tolist()


def _plant(
    ground: Ground,
    config: Config,
    options: Options,
    number: int,
    layer: int,
    quiet: Sequence[int],
) -> list[_Tried]:
    """A vector for each concept, with the norm that makes it worth what this round asks."""
    model, passages = ground.run.setting.model, ground.text.passages
    is_first = np.zeros(len(passages.ids), bool)
    is_first[passages.starts] = True
    plants, positions, targets = [], [], []
    for index, concept in enumerate(ground.concepts):
        own = ground.before_words[concept]
        is_other = ~is_first
        is_other[own] = False
        stream = rng(config.seed, "planted", number, concept)
        fires = firing_places(own, np.flatnonzero(is_other), ground.hashes, stream)
        column = concept_direction(model, layer, *_word_tokens(ground, concept), config.fold)
        plants.append(Plant(layer, quiet[index], concept, column, fires))
        targets.append(options.effects[(number + index) % len(options.effects)])

        # Where the test will look follows from the activation alone, so it is known beforehand.
        activation = activations(fires, ground.hashes)
        positions.append(own_positions(ground.run.text, activation, concept)[:LARGEST_SET])
    setting = replace(ground.run.setting, means={layer: np.zeros(model.intermediate_size)})
    found = set_norms(model, plants, targets, positions, setting)
    return [
        _Tried(concept, target, plant)
        for concept, target, plant in zip(ground.concepts, targets, found, strict=True)
    ]


def _word_tokens(ground: Ground, concept: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a concept's known words, and of the other concepts' (any shown, without others)."""
    seen, passages = ground.scan.seen, ground.text.passages
    tokens = np.unique(passages.ids[passages.starts[seen.passage] + seen.position][seen.known])
    words = ground.text.words
    is_own = words.word_concept[words.token_word[tokens]] == concept
    others = tokens[~is_own]
    return tokens[is_own], others if len(others) else np.flatnonzero(~ground.masked)


def _random_candidates(
    ground: Ground, config: Config, number: int, layer: int, taken: Sequence[int], count: int
) -> list[Candidate]:
    """Random neurons of a layer, each with a pole and a concept that is not its own."""
    model, scan = ground.run.setting.model, ground.scan
    stream = rng(config.seed, "random neurons", number, layer)
    free = np.setdiff1d(np.arange(model.intermediate_size), taken)
    drawn = stream.permutation(free)[: min(count, len(free) // SHARE_OF_RANDOM)]
    signs = stream.choice((-1, 1), len(drawn))

    # How much each pole promotes the words of every concept.
    by_concept = np.stack(
        [_promoted(ground, layer, drawn, concept) for concept in range(len(scan.concepts))]
    )
    names = scan.concepts
    candidates = []
    for neuron, sign, promoted in zip(drawn, signs, by_concept.T, strict=True):
        strongest = int(np.nanargmax(promoted * sign))
        allowed = [concept for concept in ground.concepts if concept != strongest]
        if allowed:
            pole = Pole(layer, int(neuron), "+" if sign > 0 else "-")
            candidates.append(_candidate(pole, names[int(stream.choice(allowed))]))
    return candidates


def _promoted(ground: Ground, layer: int, neurons: np.ndarray, concept: int) -> np.ndarray:
    """Mean readout of some neurons on a concept's known words, NaN without any: float (n,)."""
    model = ground.run.setting.model
    words = ground.text.words
    seen, passages = ground.scan.seen, ground.text.passages
    tokens = np.unique(passages.ids[passages.starts[seen.passage] + seen.position][seen.known])
    tokens = tokens[words.word_concept[words.token_word[tokens]] == concept]
    if not len(tokens):
        return np.full(len(neurons), np.nan)
    rows = torch.as_tensor(tokens, dtype=torch.long, device=model.device)
    at = torch.as_tensor(neurons, dtype=torch.long, device=model.device)
    directions = model.readout_directions(layer, ground.run.config.fold, at)
    return (directions @ model.unembedding[rows].float().mean(0)).cpu().numpy()


def _candidate(pole: Pole, concept: str) -> Candidate:
    """A candidate that Stage 2 never saw."""
    return Candidate(pole, concept, 1.0, {}, (), ())


# ---- what a round found ----


def _planted_point(
    tried: _Tried, of_plant: Mapping[int, Tested], names: Sequence[str]
) -> dict[str, Any]:
    """One planted vector; without a verdict where it is out of reach."""
    point: dict[str, Any] = {
        "concept": names[tried.concept],
        "effect": tried.effect,
        "out_of_reach": tried.plant is None,
    }
    if tried.plant is None:
        return point
    return point | {"norm": plain(tried.plant.norm)} | _outcome(of_plant[tried.plant.neuron])


def _random_point(ground: Ground, item: Tested) -> dict[str, Any]:
    """One random neuron, with its list where it was validated: it may be a concept neuron."""
    point = {"concept": ground.scan.concepts[item.subject.concept]} | _outcome(item)
    if item.judgement.validated:
        point["top_tokens"] = _top_tokens(ground, item)
    return point


def _outcome(item: Tested) -> dict[str, Any]:
    primary = next(iter(item.drops.values()), None)
    unrelated = primary.unrelated if primary else None
    return {
        "id": item.subject.id,
        "p_value": plain(item.use.p),
        "used": item.used,
        "concept_drop": plain(primary.own) if primary else None,
        "unrelated_drop": None if unrelated is None else plain(unrelated),
        "n_concept_positions": len(item.positions.own),
        "verdict": item.judgement.verdict,
        "failed": list(item.judgement.failed),
    }


def _top_tokens(ground: Ground, item: Tested) -> list[str]:
    model, subject = ground.run.setting.model, item.subject
    direction = model.readout_directions(subject.layer, ground.run.config.fold, [subject.neuron])
    readout = (model.unembedding.float() @ direction[0] * subject.sign).cpu()
    readout[torch.from_numpy(ground.masked)] = -torch.inf
    best = readout.topk(SHOWN_TOKENS).indices.tolist()
    return [ground.text.pieces[token].strip() for token in best]


# ---- the document ----


def _rate(hits: int, n: int) -> dict[str, Any]:
    """A rate with its Wilson interval; null where there was nothing to count."""
    low, high = wilson(hits, n)
    return {
        "rate": plain(hits / n) if n else None,
        "ci95": [plain(low), plain(high)] if n else None,
    }


def _effect_row(effect: float, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was found of the vectors that are worth so much."""
    points = [
        {"layer": one["layer"], **point}
        for one in rounds
        for point in one["planted"]
        if point["effect"] == effect
    ]
    standing = [point for point in points if not point["out_of_reach"]]
    validated = sum(point["verdict"] == "validated" for point in standing)
    drops = [p["concept_drop"] for p in standing if p["concept_drop"] is not None]
    failed = Counter(phrase for point in standing for phrase in point["failed"])
    return {
        "effect": effect,
        "planted": len(standing),
        "out_of_reach": len(points) - len(standing),
        "used": sum(point["used"] for point in standing),
        "validated": validated,
        **_rate(validated, len(standing)),
        "concept_drop": plain(np.mean(drops)) if drops else None,
        "failed": dict(failed.most_common()),
        "points": points,
    }


def _random_row(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was falsely found of the random neurons."""
    points = [point for one in rounds for point in one["random"]]
    validated = [point for point in points if point["verdict"] == "validated"]
    return {
        "n": len(points),
        "used": sum(point["used"] for point in points),
        "false_validations": len(validated),
        **_rate(len(validated), len(points)),
        "verdicts": dict(Counter(point["verdict"] for point in points)),
        "points": validated,
    }


def _pooled_controls(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The controls of all rounds together: null neurons at the top, the other kinds beside them."""

    def pooled(of_kind: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        kinds = [of_kind(one["controls"]) for one in rounds]
        n, used, hits = (
            sum(kind[name] for kind in kinds) for name in ("n", "used", "false_validations")
        )
        rate = _rate(hits, n)
        return {
            "n": n,
            "used": used,
            "false_validations": hits,
            "false_validation_rate": rate["rate"],
            "ci95": rate["ci95"],
            "points": [point for kind in kinds for point in kind["points"]],
        }

    return {
        **pooled(lambda found: found),
        "wrong_concept": pooled(lambda found: found["wrong_concept"]),
        "moved": pooled(lambda found: found["moved"]),
    }


# ---- as text ----


def calibration_table(document: Mapping[str, Any]) -> str:
    """The answer of `calibrate` as text."""
    rows = []
    for row in document["planted"]:
        name = f"planted, worth {row['effect']:g} nats"
        if row["out_of_reach"]:
            name += f" ({row['out_of_reach']} out of reach)"
        rows.append([name, row["planted"], row["used"], row["validated"], *_shown_rate(row)])
        rows[-1].append(number(row["concept_drop"]))
    for name, group in false_groups(document).items():
        hits = group["false_validations"]
        rows.append([name, group["n"], group["used"], hits, *_shown_rate(group), ""])
    headers = ("group", "n", "used", "validated", "rate", "95 % interval", "own drop")
    lines = [text_table(rows, headers)]
    for effect in document["planted"]:
        for phrase, n in effect["failed"].items():
            lines.append(f"worth {effect['effect']:g}: {n} × {phrase}")
    for name, reason in document["not_planted"].items():
        lines.append(f"not planted: {printable(name)} ({reason})")
    for point in document["random"]["points"]:
        tokens = printable(" ".join(point["top_tokens"]))
        lines.append(f"random, validated for {printable(point['concept'])}: {point['id']} {tokens}")
    return "\n".join(lines)


def false_groups(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups in which nothing is to be found, by name."""
    nulls = document["null_calibration"]
    return {
        "random neurons": document["random"],
        "null neurons": nulls,
        "wrong concept": nulls["wrong_concept"],
        "moved vectors": nulls["moved"],
    }


def _shown_rate(group: Mapping[str, Any]) -> tuple[str, str]:
    rate = group.get("rate", group.get("false_validation_rate"))
    if rate is None:
        return DASH, DASH
    low, high = group["ci95"]
    return f"{rate:.1%}", f"{low:.1%} … {high:.1%}"
