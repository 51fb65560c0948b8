"""The scan: what every neuron does, to first order, for the words of every concept.

1. Running text: the model writes it, or it is read (`running_text`).
2. One forward pass and about two backward passes of every passage (`gradients`), in parts.
3. Statistics over distinct words, against permuted words and moved vectors (`scan_record`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from conceptvec.concepts import ConceptSet, load_concepts
from conceptvec.effects import activity, rows, sums
from conceptvec.effects.activity import Activity
from conceptvec.effects.contrast import with_contrast
from conceptvec.effects.corpora import TextFile, parse_corpus, read_passages
from conceptvec.effects.coverage import Coverage, tokens_of_run
from conceptvec.effects.gradients import Gradients
from conceptvec.effects.moved import draw_moved, draw_poles, draws_for, side_by_side
from conceptvec.effects.openings import Opener, first_round, second_round, tokens_to_ask
from conceptvec.effects.passages import Passages
from conceptvec.effects.passages import joined as joined_passages
from conceptvec.effects.rows import Targets
from conceptvec.effects.running_text import RunningText
from conceptvec.effects.scan_record import Scan
from conceptvec.effects.sums import Effects
from conceptvec.effects.target_words import TargetWords, occurrences, token_pieces
from conceptvec.effects.writing import WrittenPart, part_seed, write
from conceptvec.records import Pole
from conceptvec.runfolder import Arrays, Parts, Task, part_name
from conceptvec.scoring.lexicon import Lexicon

if TYPE_CHECKING:
    from conceptvec.config import Config
    from conceptvec.model.network import Model

logger = logging.getLogger(__name__)

PASSAGES_A_PART = 768  # of the scan; a part holds sums of some hundred MB
DIGEST = 64  # characters of a SHA-256; the column of a corpus stands behind
HELD_OUT = 1  # moved draws of every pole that are controls, not part of the null
SAMPLE = 500  # random poles whose vectors are moved too: the null of all poles and concepts
SAMPLE_DRAWS = 8


def running_text(
    model: Model, config: Config, concepts: ConceptSet, masked: np.ndarray, parts: Parts
) -> RunningText:
    """The text of a run, written by the model or read; kept in the run folder.

    Args:
        model: the model.
        config: corpus, corpus_tokens, chat_template, seed.
        concepts: the run's own.
        masked: bool (V,), tokens that do not count when a word is ranked.
        parts: keeps finished parts.

    Raises:
        RequestError: the corpus cannot be read.
    """
    start = time.perf_counter()
    wanted = with_contrast(concepts, load_concepts(None, with_prompts=False))
    lexicon = Lexicon.build(wanted)
    pieces = token_pieces(model.tokenizer, model.vocab_size)
    words = TargetWords.build(lexicon, pieces)
    mentions = np.array([_mention(lexicon, piece) for piece in pieces], np.int16)
    run_concepts = tuple(words.concepts.index(name) for name in concepts.names)

    tokens = config.corpus_tokens or _default_tokens(model)
    source = parse_corpus(config.corpus)
    if source is None:
        opener = Opener(model, config.seed, config.chat_template)
        passages = _written(opener, wanted, concepts.names, words, tokens, parts)
    else:
        content = parts.identity.get("files", {}).get("corpus", config.corpus)
        if isinstance(source, TextFile) and content != config.corpus:
            source = replace(source, digest=content[:DIGEST])
        name = part_name("text/read", content, tokens)
        task: Task = (name, lambda: read_passages(model, source, words, tokens).arrays())
        passages = Passages.of_arrays(parts.map([task], "Text: reading", "corpus")[0])
    Coverage.of(passages, words).say()
    seconds = round(time.perf_counter() - start, 3)
    return RunningText(passages, words, mentions, masked, run_concepts, tuple(pieces), seconds)


def _default_tokens(model: Model) -> int:
    parameters = sum(weight.numel() for weight in model.layers.parameters())
    return tokens_of_run(parameters, model.unembedding.numel(), model.device.type)


def _mention(lexicon: Lexicon, piece: str) -> int:
    concept = lexicon.find(piece)[1]
    return max(concept, -1)


def _written(
    opener: Opener,
    concepts: ConceptSet,
    own_names: Sequence[str],
    words: TargetWords,
    tokens: int,
    parts: Parts,
) -> Passages:
    """The model's own text, with more for concepts that are short of words or documents."""

    def write_all(written: Sequence[WrittenPart], name: str) -> list[Passages]:
        tasks: list[Task] = [
            (part_name(f"text/{name}_{i:03d}", part), _writing(opener.model, part, words))
            for i, part in enumerate(written)
        ]
        done = parts.map(tasks, "Text: the model writes", "part") if tasks else []
        return [Passages.of_arrays(arrays) for arrays in done]

    # The run's own concepts come first; those that they are compared with get half as much.
    of_run = [concept for concept in concepts.concepts if concept.name in own_names]
    others = [concept for concept in concepts.concepts if concept.name not in own_names]
    first = write_all(first_round(opener, of_run, tokens, others), "written")

    # Texts that the model ends early leave fewer tokens than were asked for.
    if missing := tokens_to_ask(tokens, joined_passages(first)):
        again = replace(opener, seed=part_seed(opener.seed, "written again", 0))
        first += write_all(first_round(again, of_run, missing, others), "again")

    # Concepts that are still short of words or documents get texts of their own.
    so_far = joined_passages(first)
    coverage = Coverage.of(so_far, words)
    further = second_round(opener, concepts.concepts, coverage, words, len(so_far))
    return joined_passages([*first, *write_all(further, "more")])


def _writing(model: Model, part: WrittenPart, words: TargetWords) -> Callable[[], Arrays]:
    return lambda: dict(write(model, part, words.continues).arrays())


def scan_text(
    text: RunningText,
    model: Model,
    config: Config,
    layers: Sequence[int],
    candidates: Sequence[tuple[Pole, int]],
    parts: Parts,
) -> Scan:
    """One pass over a text for all neurons of some layers.

    Args:
        text: what to read.
        model: the model.
        config: seed, fold.
        layers: their numbers, ascending.
        candidates: poles that Stage 2 named, with the numbers of their concepts.
        parts: keeps finished parts.
    """
    start = time.perf_counter()
    poles = [pole for pole, _ in candidates]
    taken = {(pole.layer, pole.neuron) for pole in poles}
    draws = draws_for(len(poles)) + HELD_OUT
    sample = draw_poles(SAMPLE, layers, model.intermediate_size, config.seed)
    moved = side_by_side(
        draw_moved(poles, draws, model.intermediate_size, taken, config.seed),
        draw_moved(sample, SAMPLE_DRAWS + HELD_OUT, model.intermediate_size, taken, config.seed),
        len(poles),
    )
    gradients = Gradients(model, layers, torch.as_tensor(text.masked), moved)

    # Which words become targets is settled for the whole text, before it is cut into parts.
    places = occurrences(text.passages, text.words)
    targets = rows.targets_of(places.passage, places.position, places.word, config.seed)
    about = (text.passages.digest, tuple(layers), [pole.id for pole in poles])
    tasks: list[Task] = [
        (
            part_name(f"scan/part_{i:03d}", about, int(numbers[0]), len(numbers)),
            _part(text, gradients, targets, numbers),
        )
        for i, numbers in enumerate(rows.parts_of(len(text.passages), PASSAGES_A_PART))
    ]
    done = parts.map(tasks, "Scan: effects of every neuron", "part")
    effects = sums.add(Effects.of_arrays(arrays) for arrays in done)
    statistics = activity.add(Activity.of_arrays(arrays) for arrays in done)
    seconds = {"text": text.seconds, "scan": round(time.perf_counter() - start, 3)}
    return Scan(
        model,
        config.fold,
        text,
        effects,
        statistics,
        moved,
        tuple(candidates),
        config.seed,
        seconds,
    )


def _part(
    text: RunningText, gradients: Gradients, targets: Targets, numbers: np.ndarray
) -> Callable[[], Arrays]:
    def compute() -> Arrays:
        inside = (targets.passage >= numbers[0]) & (targets.passage <= numbers[-1])
        passages = [text.passages.passage(int(i)) for i in numbers]
        effects, statistics = gradients.part(passages, numbers, targets.at(inside))
        return effects.arrays() | statistics.arrays()

    return compute
