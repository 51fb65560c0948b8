"""The record of a scan: first-order effects over a text, and what they say of poles.

Sums per word become mean effects per word (`significance.Columns`), and these are held against the
two pooled nulls of the run. All of it is computed once, when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from conceptvec.effects.activity import Activity
from conceptvec.effects.contrast import contrast_of
from conceptvec.effects.moved import Moved
from conceptvec.effects.passages import Passages
from conceptvec.effects.rows import KNOWN_BELOW
from conceptvec.effects.running_text import RunningText
from conceptvec.effects.significance import (
    Columns,
    Nulls,
    benjamini_hochberg,
    by_promotion,
    cut_off,
    joined,
    permuted_nulls,
    timed_statistic,
    uses_of,
)
from conceptvec.effects.statistics import Contrast
from conceptvec.effects.sums import Effects
from conceptvec.effects.use import Use
from conceptvec.model.powers import lengths
from conceptvec.records import Pole
from conceptvec.streams import rng

if TYPE_CHECKING:
    from conceptvec.model.network import Model


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
            norm = lengths(vectors).cpu().numpy()
            features[layer] = np.stack([np.log(np.maximum(norm, 1e-12)), strength[i]], 1)
        return features

    # ---- statistics ----

    @cached_property
    def contrast(self) -> Contrast:
        """The known words of the text with their concepts."""
        word_concept = self.text.words.word_concept[self.effects.words]
        return contrast_of(word_concept, len(self.concepts), list(self.text.run_concepts))

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

    def promoted_words(
        self, poles: Sequence[tuple[int, int, int]], concepts: Sequence[int]
    ) -> list[np.ndarray]:
        """Each pole's distinct words of its concept, those first that its vector promotes most.

        Args:
            poles: layer, neuron and sign of each, of any of the model's layers.
            concepts: the number of each one's concept.

        Returns:
            words of the text's lexicon, int64 (n,) each.
        """
        promoted: list[np.ndarray] = [np.zeros(0, np.int64)] * len(poles)
        for layer in sorted({layer for layer, _, _ in poles}):
            at = [index for index, pole in enumerate(poles) if pole[0] == layer]
            readout = self._readout(layer, np.array([poles[index][1] for index in at]))
            for column, index in enumerate(at):
                promotes = readout[:, column] * poles[index][2]
                order = by_promotion(promotes, self.contrast, concepts[index])
                promoted[index] = self.effects.words[order]
        return promoted

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
