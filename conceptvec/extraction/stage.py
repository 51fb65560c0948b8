"""Stage 1: project every value vector onto the vocabulary, exactly, and keep the two poles.

No forward pass is needed for it, so the model may be a loaded `Model` or `Weights`, which streams
the layers from disk. This module alone knows the configuration and the run folder: `poles`
projects, `agreement` checks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from conceptvec.config import Config, parse_layers
from conceptvec.extraction.agreement import projection_agreement
from conceptvec.extraction.poles import Projections, make_projector, project_neurons, sample_neurons
from conceptvec.extraction.poles import null_directions as null_directions
from conceptvec.extraction.projection import Projector
from conceptvec.identity import EXTRACTION, Record
from conceptvec.model.ambient import set_aside
from conceptvec.model.weights import Weights
from conceptvec.records import SIGNS, Pole, Sign
from conceptvec.runfolder import Parts, Task
from conceptvec.text import html_table, notebook_html, words_of

logger = logging.getLogger(__name__)

SHOWN_ROWS, SHOWN_TOKENS = 10, 12  # in a notebook cell


@dataclass(frozen=True)
class Candidates:
    """What Stage 1 gives.

    Attributes:
        layers: per layer the projections.
        tokens: the vocabulary's texts.
        masked: bool (V,), the tokens that are never shown.
        agreement: of a sample of rows with the CPU.
        seconds: that the stage took.
        origin: the record of what it was made with.
    """

    layers: list[Projections]
    tokens: list[str]
    masked: np.ndarray
    agreement: dict[str, Any]
    seconds: float
    origin: Record = field(default_factory=dict, repr=False)

    @property
    def total(self) -> int:
        """Neurons examined."""
        return sum(len(layer.neurons) for layer in self.layers)

    def passing(self, projections: Projections, min_kurtosis: float | None) -> np.ndarray:
        """The stated filter, bool (n,).

        The vector is not zero, and its readout is no flatter than asked.
        """
        passing = projections.norms > 0
        if min_kurtosis is None:
            return passing
        return passing & (projections.kurtosis >= min_kurtosis)

    def __repr__(self) -> str:
        return (
            f"Candidates({self.total} neurons in {len(self.layers)} layers, "
            f"{len(self.tokens)} tokens)"
        )

    def _repr_html_(self) -> str:
        """The poles whose lists are easiest to read."""
        body = []
        for projections, sign, row in self._readable():
            pole = Pole(projections.layer, int(projections.neurons[row]), sign)
            ids = projections.pole(sign)[0][row][:SHOWN_TOKENS]
            body.append([pole.id, words_of(self.tokens[token] for token in ids)])
        table = html_table(body, ("vector", "tokens, strongest first"))
        about = f"{self!r}. The lists with the most whole words, and of these the sharpest:"
        return notebook_html(f"<p>{escape(about)}</p>{table}")

    def _readable(self) -> list[tuple[Projections, Sign, int]]:
        """The poles with the most whole words among their first tokens, then the sharpest."""
        whole = np.array([is_whole_word(token) for token in self.tokens])  # (V,)
        places = list[tuple[Projections, Sign, int]]()
        keys = list[tuple[float, float]]()
        for projections in self.layers:
            for sign in SIGNS:
                words = whole[projections.pole(sign)[0][:, :SHOWN_TOKENS]].sum(1)  # (n,)
                sharpness = projections.sharpness(sign, SHOWN_TOKENS)
                for row in np.lexsort((-sharpness, -words))[:SHOWN_ROWS]:
                    places.append((projections, sign, int(row)))
                    keys.append((-float(words[row]), -float(sharpness[row])))
        best = sorted(range(len(places)), key=keys.__getitem__)[:SHOWN_ROWS]
        return [places[number] for number in best]


def is_whole_word(token: str) -> bool:
    """Whether a token is a word by itself: a space, then three letters or more."""
    return token[:1] == " " and len(token) > 3 and token[1:].isalpha()


@set_aside
def extract(
    model: Weights,
    config: Config,
    parts: Parts | None = None,
) -> Candidates:
    """Stage 1 over the layers of the configuration.

    Args:
        model: a loaded model, or `Weights` alone.
        config: layers, sample size, batch size, top_k, fold.
        parts: keeps finished parts (a `runfolder.RunFolder`); without it nothing is kept.

    Returns:
        the projections of every layer.

    Raises:
        RequestError: the run folder belongs to another configuration or model.
        RunError: a sample of the rows does not agree with the CPU.
    """
    start = time.perf_counter()
    parts = parts or Parts()
    numbers = parse_layers(config.layers, model.n_layers)
    origin = parts.bind(config, model.facts(), EXTRACTION)
    projector, texts, masked = make_projector(model, config.top_k)
    layers = _project_layers(model, projector, numbers, config, parts)
    hidden = masked.numpy()
    agreement = projection_agreement(model, layers, hidden, config.fold, config.seed)
    seconds = round(time.perf_counter() - start, 3)
    return Candidates(layers, texts, hidden, {"projection": agreement}, seconds, origin)


def _project_layers(
    model: Weights, projector: Projector, numbers: Sequence[int], config: Config, parts: Parts
) -> list[Projections]:
    """The layers' projections: loaded where they are finished, computed where they are not."""
    tasks: list[Task] = [
        (
            f"projections/layer_{number:02d}.safetensors",
            lambda number=number: project_layer(model, projector, number, config).arrays(),
        )
        for number in numbers
    ]
    arrays = parts.map(tasks, "Stage 1: projecting", "layer")
    layers = [Projections(number, **part) for number, part in zip(numbers, arrays, strict=True)]
    total = sum(len(layer.neurons) for layer in layers)
    repeated, full = np.sum([layer.fallbacks for layer in layers], axis=0)
    logger.info("%d readouts: %d repeated, %d ranked in full", total, repeated, full)
    return layers


def project_layer(model: Weights, projector: Projector, layer: int, config: Config) -> Projections:
    """Project the value vectors of one layer that the configuration chooses."""
    size = model.intermediate_size
    neurons = sample_neurons(layer, size, config.max_vectors, config.seed)
    fold, batch_size = config.fold, config.batch_size
    return project_neurons(model, projector, layer, neurons, fold=fold, batch_size=batch_size)
