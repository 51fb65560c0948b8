"""Planted vectors: neurons with a known effect on a concept, which live in the engine's states alone.

A vector along the concept's unembedding direction (three quarters of its answers, drawn, less what the model expects
there) is written by an activation that fires on the concept's prompts (and at a tenth of that, with random sign,
elsewhere). Its norm, a multiple of that of the MLP output, is set so that the vector's presence raises the
log-probability of the concept's answers by a stated number of nats: without an effect there would be nothing to find.
The planted model is then the clean one, and the planted vector is damaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from conceptvec.extraction.projection import REDUCED
from conceptvec.validation.damage import Damage, damages
from conceptvec.validation.engine import State
from conceptvec.validation.measure import Experiment
from conceptvec.validation.nulls import Entry

NORMS = (
    0.025,
    0.05,
    0.1,
    0.2,
    0.4,
    0.8,
)  # norms of what is planted, relative to the MLP output's, that are tried
BACKGROUND = 0.1  # activation of a planted vector off its concept, relative to that on it


class Neuron(NamedTuple):
    """What is planted, but for its norm."""

    vector: torch.Tensor  # (H,), of the layer's mean norm
    level: np.ndarray  # (P,) activation on each prompt, about 1 on the concept's
    sizes: torch.Tensor  # (P, T) norm of the MLP output relative to the vector's


class Planted(Experiment):
    """An experiment on the model with one more neuron in a layer, which lives in the states alone.

    Args:
        base: the experiment on the model itself.
        layer: where the neuron is.
        concept: what it writes and fires on.
        neuron: the value vector and its activations, from `draw_neuron`.
        norm: of what is planted, relative to the MLP output's.
    """

    def __init__(
        self, base: Experiment, layer: int, concept: str, neuron: Neuron, norm: float
    ) -> None:
        super().__init__(base.model, base.config, base.table, base.means)
        self.layer, self.concept, self.norm, self.vector = layer, concept, norm, neuron.vector
        self.number = base.model.intermediate_size  # one past the real neurons
        level = torch.as_tensor(
            norm * neuron.level, dtype=torch.float32, device=neuron.vector.device
        )
        self.amounts = level[:, None] * neuron.sizes  # (P, T)
        self.amounts[:, 0] = 0.0  # not on the beginning-of-sequence token
        self.neutral, self.reference = [], {}  # divergence plays no part in the verdict

    def _state(self, layer: int, neurons: tuple[int, ...]) -> tuple[State, np.ndarray]:  # noqa: ARG002
        state = self.table.engine.state(layer, [0])
        added = self.amounts[:, :, None] * self.vector
        state.mlp = (state.mlp.float() + added).to(state.mlp.dtype)
        state.neurons, state.activations = {self.number: 0}, self.amounts[None]
        return state, self.baseline(state)

    def damages(
        self, layer: int, neuron: int, kind: str, ratio: float | None = None
    ) -> list[Damage]:
        """The configured damages of the planted vector."""
        c, mean = self.config, float(self.amounts.mean())
        return damages(
            self.model,
            layer,
            neuron,
            kind,
            mean,
            c.draws,
            ratio or c.noise_ratio,
            c.noise_sigma,
            c.seed,
            self.vector,
        )

    def effect(self, base: Experiment) -> float:
        """What the vector's presence is worth on its concept's prompts, in nats per answer token."""
        mine = self.table.concept(self.concept)
        return float(
            (self._state(self.layer, ())[1] - base.state(self.layer, (0,))[1])[mine].mean()
        )

    def entry(self) -> Entry:
        """The planted vector as a candidate; it fires on its concept's prompts by construction."""
        return {
            "id": f"L{self.layer:02d}_N{self.number:04d}+", "layer": self.layer, "neuron": self.number, "pole": "+",
            "concept": self.concept, "firing_share": 1.0,
        }  # fmt: skip


def draw_neuron(base: Experiment, layer: int, concept: str, draw: int) -> Neuron:
    """A random draw of the answers that a planted vector stands for, and of its activations."""
    model, table = base.model, base.table
    rng = np.random.default_rng([base.config.seed, layer, table.concepts.index(concept), draw, 21])
    direction = concept_direction(base, concept, rng)
    scale = model.fold_scale(layer, "both")
    direction = direction / torch.where(scale.abs() < 1e-3, torch.ones_like(scale), scale)
    vector = direction / torch.linalg.vector_norm(direction)
    vector *= torch.linalg.vector_norm(model.value_vectors(layer).float(), dim=1).mean()
    state = table.engine.state(layer, [0])
    sizes = torch.linalg.vector_norm(state.mlp.float(), dim=2) / torch.linalg.vector_norm(vector)
    level = BACKGROUND * rng.standard_normal(len(table.engine))
    level[table.groups[concept]] = rng.uniform(0.7, 1.3, len(table.groups[concept]))
    return Neuron(vector, level, sizes)


def plant(
    base: Experiment, layer: int, concept: str, draw: int, effects: Sequence[float]
) -> list[Planted | None]:
    """Per effect, the weakest planted vector that is worth it, by linear interpolation between `NORMS`."""
    neuron = draw_neuron(base, layer, concept, draw)
    worth = [0.0, *(Planted(base, layer, concept, neuron, norm).effect(base) for norm in NORMS)]
    norms, out = [0.0, *NORMS], []
    for effect in effects:
        i = next((i for i, w in enumerate(worth) if w >= effect), None)
        if i is None:
            out.append(None)
            continue
        share = (effect - worth[i - 1]) / (worth[i] - worth[i - 1])
        out.append(
            Planted(base, layer, concept, neuron, norms[i - 1] + share * (norms[i] - norms[i - 1]))
        )
    return out


def concept_direction(base: Experiment, concept: str, rng: np.random.Generator) -> torch.Tensor:
    """What is missing for three quarters of the answers (H,): their unembedding rows less what the model expects.

    It is the gradient of their mean log-probability with respect to the normalised final state, so a step along it
    raises these answers, and with them those of the whole concept.
    """
    model, engine, total = base.model, base.table.engine, 0.0
    rows, mine = model.unembedding, base.table.concept(concept)
    some = sorted(int(p) for p in rng.permutation(mine)[: math.ceil(0.75 * len(mine))])
    for p, log_p in engine.clean_distribution(some).items():
        parts = zip(log_p.exp().split(REDUCED), rows.split(REDUCED), strict=True)
        total = (
            total
            + rows[engine.ids[p, engine.starts[p]]].float()
            - sum(p @ some.float() for p, some in parts)
        )
    return torch.as_tensor(total)
