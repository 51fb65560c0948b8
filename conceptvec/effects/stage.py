"""The scan: what every neuron does, to first order, for the words of every concept.

1. Running text: the model writes it, or it is read (`running_text`).
2. One forward pass and about two backward passes of every passage (`gradients`), in parts.
3. Statistics over distinct words, against permuted words and moved vectors (`significance`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from conceptvec.concepts import ConceptSet, load_concepts
from conceptvec.effects import activity, rows, sums
from conceptvec.effects.activity import Activity
from conceptvec.effects.contrast import contrast_of, with_contrast
from conceptvec.effects.corpora import parse_corpus, read_passages
from conceptvec.effects.coverage import Coverage, tokens_of_run
from conceptvec.effects.gradients import Gradients
from conceptvec.effects.moved import Moved, draw_moved, draw_poles, draws_for, side_by_side
from conceptvec.effects.openings import first_round, second_round
from conceptvec.effects.passages import Passages
from conceptvec.effects.passages import joined as joined_passages
from conceptvec.effects.rows import KNOWN_BELOW, Targets
from conceptvec.effects.significance import (
    Columns,
    Nulls,
    benjamini_hochberg,
    cut_off,
    joined,
    permuted_nulls,
    timed_statistic,
    uses_of,
)
from conceptvec.effects.statistics import Contrast
from conceptvec.effects.sums import Effects
from conceptvec.effects.target_words import TargetWords, occurrences, token_pieces
from conceptvec.effects.use import Use
from conceptvec.effects.writing import WrittenPart, write
from conceptvec.records import Pole
from conceptvec.runfolder import Arrays, Parts, Task, part_name
from conceptvec.scoring.lexicon import Lexicon
from conceptvec.streams import rng

if TYPE_CHECKING:
    from conceptvec.config import Config
    from conceptvec.model.network import Model

logger = logging.getLogger(__name__)

PASSAGES_A_PART = 768  # of the scan; a part holds sums of some hundred MB
HELD_OUT = 1  # moved draws of every pole that are controls, not part of the null
SAMPLE = 500  # random poles whose vectors are moved too: the null of all poles and concepts
SAMPLE_DRAWS = 8


@dataclass(frozen=True)
class RunningText:
    """A text, and the words of the concepts in it.

    Attributes:
        passages: the text.
        words: which tokens are words of which concept.
        mentions: int16 (V,), the concept that a token speaks of in any way, or −1.
        own: numbers of the run's own concepts, the others serve for contrast.
        pieces: the text of every token (V,).
    """

    passages: Passages
    words: TargetWords
    mentions: np.ndarray
    own: tuple[int, ...]
    pieces: tuple[str, ...]


def running_text(model: Model, config: Config, concepts: ConceptSet, parts: Parts) -> RunningText:
    """The text of a run, written by the model or read; kept in the run folder.

    Raises:
        RequestError: the corpus cannot be read.
    """
    wanted = with_contrast(concepts, load_concepts(None, with_prompts=False))
    lexicon = Lexicon.build(wanted)
    pieces = token_pieces(model.tokenizer, model.vocab_size)
    words = TargetWords.build(lexicon, pieces)
    mentions = np.array([_mention(lexicon, piece) for piece in pieces], np.int16)
    own = tuple(words.concepts.index(name) for name in concepts.names)

    tokens = config.corpus_tokens or _default_tokens(model)
    source = parse_corpus(config.corpus)
    if source is None:
        passages = _written(model, config, wanted, concepts.names, words, tokens, parts)
    else:
        name = part_name("text/read", config.corpus, tokens)
        task: Task = (name, lambda: read_passages(model, source, words, tokens).arrays())
        passages = Passages.of_arrays(parts.map([task], "Text: reading", "corpus")[0])
    Coverage.of(passages, words).say()
    return RunningText(passages, words, mentions, own, tuple(pieces))


def _default_tokens(model: Model) -> int:
    parameters = sum(weight.numel() for weight in model.layers.parameters())
    return tokens_of_run(parameters, model.unembedding.numel(), model.device.type)


def _mention(lexicon: Lexicon, piece: str) -> int:
    concept = lexicon.find(piece)[1]
    return max(concept, -1)


def _written(
    model: Model,
    config: Config,
    concepts: ConceptSet,
    own_names: Sequence[str],
    words: TargetWords,
    tokens: int,
    parts: Parts,
) -> Passages:
    """The model's own text, with more for concepts that are short of words or documents."""

    def write_all(written: Sequence[WrittenPart], name: str) -> list[Passages]:
        tasks: list[Task] = [
            (part_name(f"text/{name}_{i:03d}", part), _writing(model, part, words))
            for i, part in enumerate(written)
        ]
        done = parts.map(tasks, "Text: the model writes", "part") if tasks else []
        return [Passages.of_arrays(arrays) for arrays in done]

    # The run's own concepts come first; those that they are compared with get half as much.
    seed, chat = config.seed, config.chat_template
    own = [concept for concept in concepts.concepts if concept.name in own_names]
    others = [concept for concept in concepts.concepts if concept.name not in own_names]
    first = write_all(first_round(model, own, tokens, seed, others, chat), "written")
    so_far = joined_passages(first)
    coverage = Coverage.of(so_far, words)
    further = second_round(model, concepts.concepts, coverage, words, len(so_far), seed, chat)
    return joined_passages([*first, *write_all(further, "more")])


def _writing(model: Model, part: WrittenPart, words: TargetWords) -> Callable[[], Arrays]:
    return lambda: dict(write(model, part, words.continues).arrays())


@dataclass(frozen=True)
class Seen:
    """Occurrences of words that the pass looked at; all (m,).

    Attributes:
        passage: number of the passage.
        position: of the word's token in it.
        word: number of the distinct word.
        known: whether the model knows it there.
        log_p: its log-probability, nats.
    """

    passage: np.ndarray
    position: np.ndarray
    word: np.ndarray
    known: np.ndarray
    log_p: np.ndarray


@dataclass(frozen=True)
class Scan:
    """First-order effects over a text, and what they say of the candidates.

    Attributes:
        model: the model, for value vectors and the unembedding.
        fold: norms folded into the readout.
        text: what was read.
        effects: sums per distinct word.
        activity: statistics of the activations.
        moved: vectors under other neurons' firing: the candidates', then those of random poles.
        candidates: the poles that Stage 2 named, each with the number of its concept.
        seed: of the run.
        seconds: that text and pass took.
    """

    model: Model
    fold: str
    text: RunningText
    effects: Effects
    activity: Activity
    moved: Moved
    candidates: tuple[tuple[Pole, int], ...]
    seed: int
    seconds: dict[str, float]

    # ---- the text ----

    @property
    def passages(self) -> Passages:
        """The running text."""
        return self.text.passages

    @property
    def concepts(self) -> tuple[str, ...]:
        """All concepts that were looked for, the run's own and those for contrast."""
        return self.text.words.concepts

    @cached_property
    def passage_of(self) -> np.ndarray:
        """The passage of every token: int32 (tokens,)."""
        return np.repeat(np.arange(len(self.passages), dtype=np.int32), self.passages.lengths)

    @cached_property
    def seen(self) -> Seen:
        """The occurrences of words, with what the model knows of them."""
        passage, position = self.effects.occurrences.T
        tokens = self.passages.ids[self.passages.starts[passage] + position]
        known = self.effects.better < KNOWN_BELOW
        word = self.text.words.token_word[tokens]
        return Seen(passage, position, word, known, self.effects.log_p)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text."""
        return "".join(self.text.pieces[token] for token in ids)

    # ---- neurons ----

    @property
    def means(self) -> dict[int, np.ndarray]:
        """Mean activation of every neuron over the text: layer → (I,)."""
        total = self.activity.pole_means().sum(1)
        return {layer: total[i] for i, layer in enumerate(self.effects.layers)}

    @cached_property
    def likeness(self) -> dict[int, np.ndarray]:
        """Log norm and log mean |activation| of every neuron: layer → (I, 2)."""
        poles = self.activity.pole_means()
        strength = np.log(np.maximum(poles[:, 0] - poles[:, 1], 1e-12))
        features = {}
        for i, layer in enumerate(self.effects.layers):
            vectors = self.model.value_vectors(layer).float()
            norm = torch.linalg.vector_norm(vectors, dim=1).cpu().numpy()
            features[layer] = np.stack([np.log(np.maximum(norm, 1e-12)), strength[i]], 1)
        return features

    # ---- statistics ----

    @cached_property
    def contrast(self) -> Contrast:
        """The known words of the text with their concepts."""
        word_concept = self.text.words.word_concept[self.effects.words]
        return contrast_of(word_concept, len(self.concepts), list(self.text.own))

    @cached_property
    def _word_rows(self) -> torch.Tensor:
        """The mean unembedding row of the tokens that stood for each word: float32 (n, H)."""
        chosen = self.effects.chosen
        passage, position = self.effects.occurrences[chosen].T
        tokens = torch.from_numpy(
            self.passages.ids[self.passages.starts[passage] + position].astype(np.int64)
        )
        at = torch.from_numpy(self.effects.index(self.seen.word[chosen]))
        device = self.model.device
        unembedding = self.model.unembedding[tokens.to(device)].float()
        total = torch.zeros(len(self.effects.words), unembedding.shape[1], device=device)
        total.index_add_(0, at.to(device), unembedding)
        count = torch.from_numpy(self.effects.rows.astype(np.float32)).to(device)
        return total / count[:, None]

    def columns(self, layer: int, neurons: np.ndarray, signs: np.ndarray) -> Columns:
        """Mean effects per word of some poles of a layer.

        Args:
            layer: the model's number of it.
            neurons: (P,).
            signs: (P,), 1 or −1.
        """
        i = self.effects.layers.index(layer)
        pole = (signs < 0).astype(int)
        count = self.effects.rows[:, None].astype(np.float32)
        zero = self.effects.zero[i][pole, :, neurons].T / count  # (n, P)
        gradient = self.effects.gradient[i][:, neurons] / count
        mean_part = self.activity.pole_means()[i][pole, neurons].astype(np.float32)
        firing = self.effects.firing[i][pole, :, neurons].T / count
        readout = self._readout(layer, neurons) * signs
        return Columns(zero, zero - mean_part * gradient, firing, readout.astype(np.float32))

    def _readout(self, layer: int, neurons: np.ndarray) -> np.ndarray:
        """How much the value vectors promote each word: float32 (n, P)."""
        chosen = torch.from_numpy(np.asarray(neurons, np.int64)).to(self.model.device)
        directions = self.model.readout_directions(layer, self.fold, chosen)
        return (self._word_rows @ directions.T.contiguous()).cpu().numpy()

    def columns_of(self, poles: Sequence[tuple[int, int, int]]) -> Columns:
        """The same for poles of any layers, each as layer, neuron and sign, in their order."""
        layers = np.array([layer for layer, _, _ in poles], int)
        neurons = np.array([neuron for _, neuron, _ in poles], int)
        signs = np.array([sign for _, _, sign in poles], int)
        order = np.argsort(layers, kind="stable")
        pieces = []
        for layer in np.unique(layers):
            at = order[layers[order] == layer]
            pieces.append(self.columns(int(layer), neurons[at], signs[at]))
        inverse = np.empty(len(order), int)
        inverse[order] = np.arange(len(order))
        return joined(pieces, len(self.effects.words)).take(inverse)

    @cached_property
    def moved_columns(self) -> Columns:
        """Mean effects per word of the moved vectors: what they write when the receiver fires."""
        moved, count = self.moved, self.effects.rows[:, None].astype(np.float32)
        index = np.array([self.effects.layers.index(layer) for layer in moved.layer], int)
        pole = (moved.receiver_sign < 0).astype(int)
        gradient = self.effects.gradient[index, :, moved.source].T / count * moved.source_sign
        mean_part = np.abs(self.activity.pole_means()[index, pole, moved.receiver])
        zero = self.effects.moved / count
        firing = self.effects.firing[index, pole, :, moved.receiver].T / count
        sources = list(zip(moved.layer, moved.source, moved.source_sign, strict=True))
        readout = self.columns_of(sources).readout
        return Columns(zero, (zero - mean_part * gradient).astype(np.float32), firing, readout)

    @property
    def candidate_concepts(self) -> np.ndarray:
        """The candidates' concepts by number: (P,)."""
        return np.array([concept for _, concept in self.candidates], int)

    @cached_property
    def is_held_out(self) -> np.ndarray:
        """Which moved vectors are controls: the first of every pole, bool (M,)."""
        first = np.r_[True, self.moved.pole[1:] != self.moved.pole[:-1]]
        return first[: len(self.moved)]

    @property
    def is_sampled(self) -> np.ndarray:
        """Which moved vectors are those of random poles, bool (M,)."""
        return self.moved.pole >= len(self.candidates)

    @cached_property
    def nulls(self) -> Nulls:
        """The pooled nulls of the run."""
        stream = rng(self.seed, "permuted words")
        words, firing = permuted_nulls(
            self.candidate_columns, self.candidate_concepts, self.contrast, stream
        )
        in_null = np.flatnonzero(~self.is_held_out & ~self.is_sampled)
        concepts = self.candidate_concepts[self.moved.pole[in_null]]
        t = timed_statistic(self.moved_columns.take(in_null), self.contrast)
        return Nulls(words, np.sort(t[concepts, np.arange(len(in_null))]), firing)

    @cached_property
    def candidate_columns(self) -> Columns:
        """Mean effects per word of the candidates."""
        return self.columns_of([(p.layer, p.neuron, p.direction) for p, _ in self.candidates])

    @cached_property
    def candidate_uses(self) -> list[Use]:
        """What the scan says of every candidate and its concept."""
        if not self.candidates:
            return []
        return uses_of(
            self.candidate_columns,
            self.candidate_concepts,
            self.contrast,
            self.nulls,
            self.concepts,
        )

    @cached_property
    def q_values(self) -> np.ndarray:
        """False discovery rates over the candidates: (P,)."""
        return benjamini_hochberg(np.array([use.p for use in self.candidate_uses]))

    @cached_property
    def cut_off(self) -> float:
        """The largest p of a candidate that is used; controls are held against it."""
        return cut_off(np.array([use.p for use in self.candidate_uses]), self.q_values)

    def uses(self, poles: Sequence[tuple[int, int, int]], concepts: Sequence[int]) -> list[Use]:
        """What the scan says of poles (layer, neuron, sign), each under one concept."""
        if not len(poles):
            return []
        columns = self.columns_of(poles)
        return uses_of(columns, np.array(concepts), self.contrast, self.nulls, self.concepts)

    def held_out_moved(self) -> tuple[Moved, np.ndarray, list[Use]]:
        """The moved vectors that are controls, their concepts, and what the scan says of them."""
        at = np.flatnonzero(self.is_held_out & ~self.is_sampled)
        concepts = self.candidate_concepts[self.moved.pole[at]]
        if not len(at):
            return self.moved.take(at), concepts, []
        columns = self.moved_columns.take(at)
        uses = uses_of(columns, concepts, self.contrast, self.nulls, self.concepts)
        return self.moved.take(at), concepts, uses


def scan_text(
    text: RunningText,
    model: Model,
    config: Config,
    layers: Sequence[int],
    candidates: Sequence[tuple[Pole, int]],
    masked: np.ndarray,
    parts: Parts,
) -> Scan:
    """One pass over a text for all neurons of some layers.

    Args:
        text: what to read.
        model: the model.
        config: seed, fold.
        layers: their numbers, ascending.
        candidates: poles that Stage 2 named, with the numbers of their concepts.
        masked: bool (V,), tokens that do not count when a word is ranked.
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
    gradients = Gradients(model, layers, torch.as_tensor(masked), moved)

    # Which words become targets is settled for the whole text, before it is cut into parts.
    places = occurrences(text.passages, text.words)
    targets = rows.targets_of(places.passage, places.position, places.word, config.seed)
    about = (text.passages.digest, tuple(layers), [pole.id for pole in poles])
    tasks: list[Task] = [
        (
            part_name(f"scan/part_{i:03d}", about, len(numbers)),
            _part(text, gradients, targets, numbers),
        )
        for i, numbers in enumerate(rows.parts_of(len(text.passages), PASSAGES_A_PART))
    ]
    done = parts.map(tasks, "Scan: effects of every neuron", "part")
    effects = sums.add(Effects.of_arrays(arrays) for arrays in done)
    statistics = activity.add(Activity.of_arrays(arrays) for arrays in done)
    seconds = {"scan": round(time.perf_counter() - start, 3)}
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
