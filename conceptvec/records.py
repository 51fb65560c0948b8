"""What crosses the border between two stages: frozen records, made once and never written again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
