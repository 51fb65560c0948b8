"""Every scored pole of a run as a table that is kept with the run and read without the model.

One part, ``poles.safetensors``: arrays of length n with the pole (`layer`, `neuron`, `sign`), the
answer (`label`), the best concept (`concept`, -1 where no token is a concept's), its `score`, and
the first `WORDS` distinct words of the list as rows of ``texts_json``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conceptvec.errors import RequestError
from conceptvec.records import Pole, PoleScores
from conceptvec.scoring.answers import ANSWERS, LABELS, Lists
from conceptvec.text import plain

PART = "poles.safetensors"
WORDS = 10  # of a list that are kept


@dataclass(frozen=True)
class ScoredPole:
    """What Stage 2 said of one pole.

    Attributes:
        pole: which.
        label: one of `ANSWERS`.
        nearest: the best concept, whatever the label; None where no token is a concept's.
        score: of that concept, in [0, 1].
        words: the first distinct words of the list, strongest first.
    """

    pole: Pole
    label: str
    nearest: str | None
    score: float
    words: tuple[str, ...]

    @property
    def concept(self) -> str | None:
        """The concept that the pole stands for, None where the label is another."""
        return self.nearest if self.label == "concept" else None

    def entry(self) -> dict[str, Any]:
        """The pole as ``conceptvec poles --json`` holds it."""
        return {
            "id": self.pole.id,
            "label": self.label,
            "concept": self.concept,
            "nearest": self.nearest,
            "score": plain(self.score),
            "words": list(self.words),
        }


@dataclass(frozen=True)
class PoleTable:
    """Every scored pole, by layer and neuron; arrays of length n.

    Attributes:
        concepts: names that `concept` counts.
        texts: of the tokens that `words` counts.
        sign: 1 or -1.
        label: index into `ANSWERS`.
        words: (n, `WORDS`), -1 where a list has fewer.
    """

    concepts: tuple[str, ...]
    texts: tuple[str, ...] = field(repr=False)
    layer: np.ndarray = field(repr=False)
    neuron: np.ndarray = field(repr=False)
    sign: np.ndarray = field(repr=False)
    label: np.ndarray = field(repr=False)
    concept: np.ndarray = field(repr=False)
    score: np.ndarray = field(repr=False)
    words: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.label)

    def __iter__(self) -> Iterator[ScoredPole]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> ScoredPole:
        nearest = int(self.concept[row])
        return ScoredPole(
            Pole(int(self.layer[row]), int(self.neuron[row]), "+" if self.sign[row] > 0 else "-"),
            ANSWERS[self.label[row]],
            self.concepts[nearest] if nearest >= 0 else None,
            float(self.score[row]),
            tuple(self.texts[i] for i in self.words[row] if i >= 0),
        )

    def select(
        self,
        concept: str | None = None,
        label: str | None = None,
        layers: Collection[int] | None = None,
    ) -> list[ScoredPole]:
        """The poles that fit, best score first.

        Args:
            concept: only poles that stand for this concept.
            label: only poles with this answer.
            layers: only these layers.

        Raises:
            RequestError: there is no such concept or label.
        """
        keep = np.ones(len(self), bool)
        if concept is not None:
            _known("--concept", concept, self.concepts)
            keep &= (self.label == 0) & (self.concept == self.concepts.index(concept))
        if label is not None:
            _known("--label", label, ANSWERS)
            keep &= self.label == ANSWERS.index(label)
        if layers is not None:
            keep &= np.isin(self.layer, sorted(layers))
        order = np.lexsort((self.sign < 0, self.neuron, self.layer, -self.score))
        return [self[row] for row in order[keep[order]]]

    def scores(self) -> PoleScores:
        """The scores of the poles that have a word of some concept."""
        rows = self.concept >= 0
        return PoleScores(
            self.layer[rows].astype(int),
            self.neuron[rows],
            (self.sign[rows] < 0).astype(int),
            np.array(self.concepts, str)[self.concept[rows]],
            self.score[rows].astype(float),
        )

    def arrays(self) -> dict[str, Any]:
        """The table as a part of the run folder."""
        return {
            "concepts_json": list(self.concepts),
            "texts_json": list(self.texts),
            "layer": self.layer,
            "neuron": self.neuron,
            "sign": self.sign,
            "label": self.label,
            "concept": self.concept,
            "score": self.score,
            "words": self.words,
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, Any]) -> PoleTable:
        """The table from a part of the run folder."""
        plain_arrays = {name: a for name, a in arrays.items() if not name.endswith("_json")}
        return cls(tuple(arrays["concepts_json"]), tuple(arrays["texts_json"]), **plain_arrays)


class Collector:
    """Gathers the poles of a run, layer by layer, into a table.

    Args:
        concepts: the concepts' names.
        tokens: text of every token.
    """

    def __init__(self, concepts: Sequence[str], tokens: Sequence[str]) -> None:
        self.concepts, self.tokens = tuple(concepts), tokens
        self.blocks: list[dict[str, np.ndarray]] = []

    def add(
        self, layer: int, neurons: np.ndarray, sign: int, ids: np.ndarray, lists: Lists
    ) -> None:
        """Take in the scored lists (n, k) of one pole of neurons of a layer."""
        answers = {number: ANSWERS.index(name) for number, name in LABELS.items()}
        label = np.zeros(len(neurons), np.int8)
        for number, answer in answers.items():
            label[lists.label == number] = answer
        self.blocks.append(
            {
                "layer": np.full(len(neurons), layer, np.int16),
                "neuron": neurons.astype(np.int32),
                "sign": np.full(len(neurons), sign, np.int8),
                "label": label,
                "concept": lists.concept.astype(np.int16),
                "score": lists.score.astype(np.float32),
                "words": distinct_words(ids, lists.first),
            }
        )

    def table(self) -> PoleTable:
        """The table of all poles that were taken in, by layer, neuron and sign."""
        names = ("layer", "neuron", "sign", "label", "concept", "score", "words")
        whole = {name: np.concatenate([block[name] for block in self.blocks]) for name in names}
        order = np.lexsort((-whole["sign"], whole["neuron"], whole["layer"]))
        whole = {name: array[order] for name, array in whole.items()}
        # Only the texts that are in use are kept; -1, where a list has no more words, stays -1.
        used = np.unique(whole["words"])
        used = used[used >= 0]
        whole["words"] = np.where(
            whole["words"] >= 0, np.searchsorted(used, whole["words"]), -1
        ).astype(np.int32)
        texts = tuple(self.tokens[int(i)].strip() for i in used)
        return PoleTable(self.concepts, texts, **whole)


def distinct_words(ids: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Token ids of the first distinct words of each list, -1 for no more; tokens if no words."""
    ids = ids[:, : first.shape[1]]
    use = np.where(first.any(1, keepdims=True), first, True)
    at = np.argsort(~use, axis=1, kind="stable")[:, :WORDS]
    chosen = np.take_along_axis(ids, at, axis=1)
    words = np.full((len(ids), WORDS), -1, np.int64)
    words[:, : at.shape[1]] = np.where(np.take_along_axis(use, at, axis=1), chosen, -1)
    return words


def _known(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RequestError(f"{option}: got {value!r}, expected one of {', '.join(known)}")
