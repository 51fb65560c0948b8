"""What a planted vector is worth, and the norm that makes it worth a stated number of nats.

A plant is worth what its removal costs the words at its own positions, by exact damage. The search
begins low, where nats grow with the norm, and follows the slope between its last two measurements
(both in logarithms). All plants of a layer are searched for side by side, but each by itself: the
neurons fire and write nothing, and what one would write is added on its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from conceptvec.tools.planting import Plant, planted
from conceptvec.validation.damage import Damage
from conceptvec.validation.engine import Engine, State
from conceptvec.validation.measure import Setting

if TYPE_CHECKING:
    from conceptvec.model.network import Model

TOLERANCE = 0.05  # of what a vector is worth, relative to what it should be worth
TURNS = 12  # exact measurements, at most
LARGEST_STEP = 8.0  # factor by which a norm changes between two of them
SMALLEST_NORM = 0.02  # times the median norm of the layer's vectors: where the search starts
LARGEST_NORM = 1e3  # likewise; beyond it nothing is planted


def set_norms(
    model: Model,
    plants: Sequence[Plant],
    targets: Sequence[float],
    positions: Sequence[np.ndarray],
    setting: Setting,
) -> list[Plant | None]:
    """The plants of one layer with the norms that make each worth its target.

    Args:
        model: the model.
        plants: with columns of norm 1.
        targets: nats, above 0.
        positions: int64, of each plant's own words in the text.
        setting: the text.

    Returns:
        a plant for each, None where no norm makes it worth its target.
    """
    layer = plants[0].layer
    wanted = np.unique(np.concatenate(positions))
    texts = [setting.text(int(position)) for position in wanted]
    rows = [np.searchsorted(wanted, at) for at in positions]
    usual = _median_norm(model, layer)
    searches = [_Search(target, SMALLEST_NORM * usual, LARGEST_NORM * usual) for target in targets]

    # The neurons fire, but write nothing; what each would write is added to that.
    with planted(model, [plant.scaled(0.0) for plant in plants]):
        engine = Engine(model, texts, setting.batch_size, setting.replay)
        state = engine.state(layer, [plant.neuron for plant in plants])
        without = [
            _log_p(engine, state, [plant.scaled(0.0)], [at])[0]
            for plant, at in zip(plants, rows, strict=True)
        ]
        for _ in range(TURNS):
            going = [i for i, search in enumerate(searches) if search.is_going]
            if not going:
                break
            tried = [plants[i].scaled(searches[i].norm) for i in going]
            log_p = _log_p(engine, state, tried, [rows[i] for i in going])
            for i, values in zip(going, log_p, strict=True):
                searches[i].learn(float((values - without[i]).mean()))
    return [
        plant.scaled(search.norm) if search.is_there else None
        for plant, search in zip(plants, searches, strict=True)
    ]


def _median_norm(model: Model, layer: int) -> float:
    vectors = model.value_vectors(layer).float()
    return float(torch.linalg.vector_norm(vectors, dim=1).median())


def _log_p(
    engine: Engine, state: State, plants: Sequence[Plant], rows: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Log-probabilities at each plant's texts with what it writes, all in shared batches."""
    damages = [Damage(plant.neuron, 1.0, 0.0, plant.column) for plant in plants]
    pairs = [np.stack(np.broadcast_arrays(number, texts), 1) for number, texts in enumerate(rows)]
    log_p = engine.measure(state, damages, np.concatenate(pairs)).log_p
    return np.split(log_p, np.cumsum([len(part) for part in pairs])[:-1])


class _Search:
    """The search for the norm of one plant.

    Args:
        target: nats that it is to be worth.
        norm: where the search starts.
        limit: the largest norm.
    """

    def __init__(self, target: float, norm: float, limit: float) -> None:
        self.target, self.norm, self.limit = target, norm, limit
        self.measured: list[tuple[float, float]] = []  # norm, nats
        self.is_there, self.is_going = False, True

    def learn(self, nats: float) -> None:
        """Take in what the present norm is worth, and choose the next, or end."""
        self.measured.append((self.norm, nats))
        self.is_there = abs(nats / self.target - 1) <= TOLERANCE
        self.is_going = not self.is_there and not self._is_spent
        if self.is_going:
            self.norm *= float(np.clip(self._factor(), 1 / LARGEST_STEP, LARGEST_STEP))

    @property
    def _is_spent(self) -> bool:
        """Whether a larger norm has gained nothing, or would pass the limit."""
        if self.norm >= self.limit:
            return True
        if len(self.measured) < 2:
            return False
        (norm0, nats0), (norm1, nats1) = self.measured[-2:]
        return norm1 > 1.5 * norm0 and max(nats0, 0) < self.target and 0 < nats1 <= nats0

    def _factor(self) -> float:
        """By which the norm should change."""
        norm, nats = self.measured[-1]
        if nats > 0:
            return (self.target / nats) ** (1 / self._slope())
        # The words lose by it: half the way back to where they did not.
        helped = [at for at, value in self.measured if value > 0 and at < norm]
        return (max(helped) / norm) ** 0.5 if helped else LARGEST_STEP

    def _slope(self) -> float:
        """Of log nats against log norm, between the last two measurements; 1 at the beginning."""
        if len(self.measured) < 2:
            return 1.0
        (norm0, nats0), (norm1, nats1) = self.measured[-2:]
        if min(nats0, nats1) <= 0 or norm0 == norm1:
            return 1.0
        slope = np.log(nats1 / nats0) / np.log(norm1 / norm0)
        return float(np.clip(slope, 0.25, 2.0))
