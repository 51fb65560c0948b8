"""Which vectors of a run are taken along, and the weights that they are taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conceptvec.config import Config
from conceptvec.errors import RequestError
from conceptvec.model.weights import Weights, load_weights
from conceptvec.records import Pole, pole_of
from conceptvec.text import printable, words_of

WORDS = 8  # that a label shows


@dataclass(frozen=True)
class Choice:
    """What the user asked for; nothing stands for everything that was validated.

    Attributes:
        concept: the validated vectors of this concept.
        ids: these vectors, whatever was found out about them.
    """

    concept: str | None = None
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taken:
    """A vector that is taken along.

    Attributes:
        pole: which.
        concept: what the run takes it for, if it named it.
        words: its strongest tokens as one line of text.
    """

    pole: Pole
    concept: str | None = None
    words: str = ""

    @property
    def label(self) -> str:
        """Concept, id and words, as far as they are known."""
        concept = printable(self.concept or "")
        return " ".join(filter(None, (concept, self.pole.id, self.words)))


def taken_vectors(document: Mapping[str, Any], choice: Choice) -> list[Taken]:
    """The chosen vectors, in the order of the ids, or best first.

    Raises:
        RequestError: nothing fits the choice, or it contradicts itself.
    """
    if choice.ids and choice.concept:
        raise RequestError("--concept, --id: got both, expected one of them")
    if choice.ids:
        named = ("effect_only", "untested_candidates", "validation_results")
        known = {entry["id"]: entry for part in named for entry in document[part]}
        poles = dict.fromkeys(pole_of(name) for name in choice.ids)
        return [_taken(pole, known.get(pole.id)) for pole in poles]
    validated = [entry for entry in document["validation_results"] if entry["validated"]]
    of_concept = [e for e in validated if choice.concept in (None, e["concept"])]
    if not of_concept:
        concepts = sorted({entry["concept"] for entry in validated})
        raise RequestError(
            f"--concept: no vector of {choice.concept or 'any concept'} was validated in this "
            f"run; expected one of: {', '.join(concepts) or 'none'}. --id takes any vector"
        )
    return [_taken(pole_of(entry["id"]), entry) for entry in of_concept]


def _taken(pole: Pole, entry: Mapping[str, Any] | None) -> Taken:
    if entry is None:
        return Taken(pole)
    words = words_of(token for token, _ in entry["top_tokens"][:WORDS])
    return Taken(pole, entry["concept"], words)


def weights_of(document: Mapping[str, Any], model: Weights | str | None) -> Weights:
    """The weights that a run was made from.

    Args:
        document: its results.
        model: the model, or where it is now; None for where the run read it.

    Raises:
        RequestError: there is no such model, or it has other weights.
    """
    facts = document["model"]
    if not isinstance(model, Weights):
        revision = None if model else facts["revision"]
        name = model or document["configuration"]["model"]
        model = load_weights(
            Config(model=name, revision=revision, device="cpu", dtype=facts["dtype"])
        )
    if model.fingerprint != facts["fingerprint"]:
        raise RequestError(
            f"--model: {model.name} in {model.facts()['dtype']} has other weights than the run, "
            f"which was made from {facts['id']} in {facts['dtype']}; give the model of the run"
        )
    return model
