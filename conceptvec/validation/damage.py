"""Damages of value vectors, and forward passes that carry them without ever writing to the model.

Replacing the value vector d_j of layer ℓ by ``d_j + ε`` adds ``a_j·ε`` to that layer's MLP output and changes nothing
below it. So every damage is an addition, ``(α·a_j + β)·v``:

* **noise**: α=1, β=0, v=ε on the sphere of radius r‖d_j‖ (or Gaussian with σ per element: the literature's variant);
* **zero**: α=−1, β=0, v=d_j;
* **mean**: α=−1, β=ā_j (the mean activation over the corpus), v=d_j.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.errors import RequestError

if TYPE_CHECKING:
    from conceptvec.model.network import Model


@dataclass(frozen=True)
class Damage:
    """An addition of ``(scale·a_j + shift)·direction`` to the MLP output of one layer."""

    neuron: int
    scale: float
    shift: float
    direction: torch.Tensor  # (H,) float32


def damages(
    model: Model,
    layer: int,
    neuron: int,
    kind: str,
    mean: float,
    draws: int,
    ratio: float,
    sigma: float | None,
    seed: int,
    vector: torch.Tensor | None = None,
) -> list[Damage]:
    """The damages of one kind for one neuron: `draws` for noise, one for zero and mean.

    Noise is drawn on the CPU from a generator that depends on seed, layer, neuron and draw alone. `vector` stands in
    for the neuron's own value vector (H,).
    """
    vector = model.value_vectors(layer)[neuron].float() if vector is None else vector
    if kind == "zero":
        return [Damage(neuron, -1.0, 0.0, vector)]
    if kind == "mean":
        return [Damage(neuron, -1.0, mean, vector)]
    out = []
    for draw in range(draws):
        key = np.random.SeedSequence([seed, layer, neuron, draw, 2]).generate_state(1, np.uint64)[0]
        noise = torch.randn(
            len(vector), generator=torch.Generator().manual_seed(int(key >> np.uint64(1)))
        )
        length = torch.linalg.vector_norm(noise)
        noise = (
            noise * sigma
            if sigma is not None
            else noise / length * (ratio * torch.linalg.vector_norm(vector).cpu())
        )
        out.append(Damage(neuron, 1.0, 0.0, noise.to(vector.device)))
    return out


@contextmanager
def damaging(model: Model, damaged: Mapping[int, Sequence[Damage]]) -> Iterator[None]:
    """Within the context every forward pass carries the damages (layer → its damages), in any number of layers.

    Upper activations follow from the damaged stream, as after an edit of all the columns at once.
    """
    handles = []
    for layer, some in damaged.items():
        if not some:
            continue
        which = [d.neuron for d in some]
        directions = torch.stack([d.direction for d in some])
        scale, shift = (
            directions.new_tensor([getattr(d, k) for d in some]) for k in ("scale", "shift")
        )

        def add(
            _: Any,
            args: tuple,
            out: torch.Tensor,
            which=which,
            scale=scale,
            shift=shift,
            v=directions,
        ) -> Any:
            return (out.float() + (args[0][..., which].float() * scale + shift) @ v).to(out.dtype)

        handles.append(model.layers[layer].mlp.down_proj.register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def continuation(
    model: Model,
    text: str,
    damaged: Mapping[int, Sequence[Damage]],
    tokens: int,
    chat: bool = False,
) -> tuple[str, torch.Tensor]:
    """What the model writes after a text, greedily, under damages (layer → damages; none: clean).

    Returns:
        the new text of at most `tokens` tokens, and the probabilities of its first (V,).

    Raises:
        RequestError: the text is empty.
    """
    if not text.strip():
        raise RequestError("the text to continue is empty; type its beginning")
    ids, stop = model.encode(text, chat), model.tokenizer.eos_token_id
    new: list[int] = []
    logits: list[torch.Tensor] = []  # of the first token
    with damaging(model, damaged):
        while len(new) < tokens and new[-1:] != [stop]:
            row = torch.tensor([ids + new], device=model.device)
            last = model.hf(input_ids=row, use_cache=False, logits_to_keep=1).logits[0, -1].float()
            logits = logits or [last]
            new.append(int(last.argmax()))
    return model.tokenizer.decode(new, skip_special_tokens=True), logits[0].softmax(0)
