"""Damages of value vectors, and forward passes that carry them without ever writing to the model.

Replacing the value vector d_j of a layer by ``d_j + ε`` adds ``a_j·ε`` to that layer's MLP output
and changes nothing below it. So every damage is an addition ``(α·a_j + β)·v``, at all positions of
a text, as if the weight itself had been edited:

* **zero**: α = −1, β = 0, v = d_j. The vector is gone.
* **rotate**: α = 1, β = 0, v = r − d_j, with r a random direction of the same norm. What the vector
  says is gone, how much it writes stays.
* **mean**: α = −1, β = ā_j, v = d_j. The neuron always fires at its mean over the text.
* **noise**: α = 1, β = 0, v = ε on a sphere of a multiple of ‖d_j‖, or Gaussian with σ per element
  (the literature's variant).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.errors import RequestError
from conceptvec.model.ambient import exact, set_aside

if TYPE_CHECKING:
    from conceptvec.model.network import Model

KINDS = ("zero", "rotate", "mean", "noise")
NOISE_RATIO = 2.0  # norm of the noise relative to the vector's
DRAWS = 3  # of the kinds that are random


@dataclass(frozen=True)
class Damage:
    """An addition of ``(scale·a_j + shift)·direction`` to the MLP output of one layer.

    Attributes:
        neuron: j, whose activation a_j it follows.
        scale: α.
        shift: β.
        direction: v, float32 (H,).
    """

    neuron: int
    scale: float
    shift: float
    direction: torch.Tensor


@dataclass(frozen=True)
class Damager:
    """Makes the damages of a run.

    Attributes:
        seed: random directions depend on it, the layer, the neuron and the draw alone.
        sigma: absolute noise per element; None for noise relative to the vector's norm.
    """

    seed: int
    sigma: float | None = None

    def __call__(
        self, kind: str, vector: torch.Tensor, place: tuple[int, int], mean: float = 0.0
    ) -> list[Damage]:
        """The damages of one kind: `DRAWS` of the random kinds, one of the others.

        Args:
            kind: of `KINDS`.
            vector: d_j, float32 (H,).
            place: layer and neuron.
            mean: ā_j, the neuron's mean activation.
        """
        neuron = place[1]
        if kind == "zero":
            return [Damage(neuron, -1.0, 0.0, vector)]
        if kind == "mean":
            return [Damage(neuron, -1.0, mean, vector)]
        directions = [self._random(kind, len(vector), place, draw) for draw in range(DRAWS)]
        norm = torch.linalg.vector_norm(vector).cpu()
        if kind == "rotate":
            turned = [(unit * norm).to(vector.device) - vector for unit in map(_unit, directions)]
            return [Damage(neuron, 1.0, 0.0, direction) for direction in turned]
        if self.sigma is None:
            noise = [_unit(direction) * (NOISE_RATIO * norm) for direction in directions]
        else:
            noise = [direction * self.sigma for direction in directions]
        return [Damage(neuron, 1.0, 0.0, direction.to(vector.device)) for direction in noise]

    def _random(self, kind: str, size: int, place: tuple[int, int], draw: int) -> torch.Tensor:
        """A standard normal vector (size,), drawn on the CPU."""
        stream = np.random.SeedSequence([self.seed, *place, draw, KINDS.index(kind)])
        key = int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.randn(size, generator=torch.Generator().manual_seed(key))


def _unit(direction: torch.Tensor) -> torch.Tensor:
    return direction / torch.linalg.vector_norm(direction)


def removal(model: Model, layer: int, neuron: int, times: float = 0.0) -> Damage:
    """What makes a neuron write `times` as much as it does; 0 removes its value vector."""
    return Damage(neuron, times - 1.0, 0.0, model.value_vectors(layer)[neuron].float())


@contextmanager
def damaging(model: Model, damages: Mapping[int, Sequence[Damage]]) -> Iterator[None]:
    """Within the context every forward pass carries the damages (layer → its damages).

    Upper activations follow from the damaged stream, as after an edit of all the columns at once.
    """
    handles = []
    for layer, of_layer in damages.items():
        if of_layer:
            hook = _adding(of_layer)
            handles.append(model.layers[layer].mlp.down_proj.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@set_aside
def _adding(damages: Sequence[Damage]) -> Any:
    """A forward hook of ``down_proj`` that adds the damages to what it gives.

    Its product is exact under any setting: a vector that is removed is removed, to the last digit
    of float32, also in a pass under autocast.
    """
    neurons = [damage.neuron for damage in damages]
    directions = torch.stack([damage.direction for damage in damages])  # (D, H)
    scale = directions.new_tensor([damage.scale for damage in damages])
    shift = directions.new_tensor([damage.shift for damage in damages])

    def add(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        with exact():
            amounts = args[0][..., neurons].float() * scale + shift  # (B, T, D)
            return (output.float() + amounts @ directions).to(output.dtype)

    return add


@set_aside
@torch.inference_mode()
def continuation(
    model: Model, ids: Sequence[int], damages: Mapping[int, Sequence[Damage]], tokens: int
) -> tuple[str, torch.Tensor]:
    """What the model writes after some tokens, greedily, under damages (layer → its damages).

    Returns:
        the new text of at most `tokens` tokens, and the probabilities of its first (V,).

    Raises:
        RequestError: there is nothing to continue.
    """
    if not len(ids):
        raise RequestError("the text to continue is empty; type its beginning")
    stop = model.tokenizer.eos_token_id
    new: list[int] = []
    first: torch.Tensor | None = None
    with damaging(model, damages):
        while len(new) < tokens and new[-1:] != [stop]:
            row = torch.tensor([[*ids, *new]], device=model.device)
            logits = model.hf(input_ids=row, use_cache=False, logits_to_keep=1).logits[0, -1]
            first = logits.float() if first is None else first
            new.append(int(logits.argmax()))
    assert first is not None
    return model.tokenizer.decode(new, skip_special_tokens=True), first.softmax(0)
