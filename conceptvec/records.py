"""What crosses the border between two stages: frozen records, each made by one function."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from conceptvec.errors import RequestError

Sign = Literal["+", "-"]
SIGNS: tuple[Sign, Sign] = ("+", "-")


@dataclass(frozen=True, order=True)
class Pole:
    """One end of one value vector: what the neuron promotes (+) or suppresses (-) when it fires.

    Attributes:
        layer: zero-based.
        neuron: the column of ``down_proj``, zero-based.
        sign: ``+`` for positive activations, ``-`` for negative ones.
    """

    layer: int
    neuron: int
    sign: Sign

    @property
    def id(self) -> str:
        """The pole's name, as in ``L12_N0345+``."""
        return f"L{self.layer:02d}_N{self.neuron:04d}{self.sign}"

    @property
    def direction(self) -> int:
        """1 or -1: what the value vector is multiplied by."""
        return 1 if self.sign == "+" else -1


def pole_of(name: str) -> Pole:
    """The pole of that name.

    Raises:
        RequestError: it is no pole's name.
    """
    match = re.fullmatch(r"L(\d{2,})_N(\d{4,})([+-])", name)
    if match is None:
        raise RequestError(
            f"got {name!r}, expected a vector's id such as L12_N0345+: layer, neuron and pole"
        )
    layer, neuron, sign = match.groups()
    return Pole(int(layer), int(neuron), "+" if sign == "+" else "-")


@dataclass(frozen=True)
class Candidate:
    """A pole that Stage 2 takes for a concept vector.

    Attributes:
        pole: which.
        concept: the concept's name.
        score: in [0, 1].
        components: what the score was made of.
        top_tokens: (text, readout value) of this pole, strongest first.
        opposite_tokens: the same of the neuron's other pole.
    """

    pole: Pole
    concept: str
    score: float
    components: Mapping[str, float | None]
    top_tokens: tuple[tuple[str, float], ...]
    opposite_tokens: tuple[tuple[str, float], ...]

    @property
    def id(self) -> str:
        """The pole's name."""
        return self.pole.id

    def entry(self) -> dict[str, Any]:
        """The candidate as the results document holds it."""
        return {
            "id": self.id,
            "layer": self.pole.layer,
            "neuron": self.pole.neuron,
            "pole": self.pole.sign,
            "concept": self.concept,
            "score": self.score,
            "score_components": dict(self.components),
            "top_tokens": [list(token) for token in self.top_tokens],
            "opposite_tokens": [list(token) for token in self.opposite_tokens],
        }


def candidate_of(entry: Mapping[str, Any]) -> Candidate:
    """The candidate that an entry of the results document holds."""
    return Candidate(
        Pole(entry["layer"], entry["neuron"], entry["pole"]),
        entry["concept"],
        entry["score"],
        entry["score_components"],
        tuple((text, value) for text, value in entry["top_tokens"]),
        tuple((text, value) for text, value in entry["opposite_tokens"]),
    )


@dataclass(frozen=True)
class PoleScores:
    """Stage 2's scores of the poles that have a word of some concept; all (P,).

    Attributes:
        layer: the model's number of it.
        neuron: zero-based.
        sign: 0 for the pole +, 1 for the pole −.
        concept: the best concept's name.
        score: in [0, 1].
    """

    layer: np.ndarray
    neuron: np.ndarray
    sign: np.ndarray
    concept: np.ndarray
    score: np.ndarray

    @classmethod
    def of(
        cls, layer: int, neurons: np.ndarray, sign: Sign, concept: np.ndarray, score: np.ndarray
    ) -> PoleScores:
        """One pole of some neurons of a layer; an empty name stands for no concept."""
        has_one = concept != ""
        n = int(has_one.sum())
        return cls(
            np.full(n, layer),
            neurons[has_one],
            np.full(n, SIGNS.index(sign)),
            concept[has_one],
            score[has_one],
        )

    @classmethod
    def joined(cls, parts: Sequence[PoleScores]) -> PoleScores:
        """Parts one after the other."""
        names = [column.name for column in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def nothing(cls) -> PoleScores:
        """No pole."""
        nowhere = np.zeros(0, int)
        return cls(nowhere, nowhere, nowhere, np.zeros(0, str), np.zeros(0))
