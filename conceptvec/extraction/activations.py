"""Access to the activations of MLP neurons during a forward pass.

The activation of neuron j is ``a_j = act(gate_j) · up_j``, the input of ``down_proj``. What is kept
of it over a text is the scan's business (`effects.activity`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from conceptvec.errors import RunError

if TYPE_CHECKING:
    from conceptvec.model.network import Model

ROUNDING = 64  # units in the last place that a sum may be off, relative to the sum of the sizes


@contextmanager
def capturing(
    model: Model, layers: Sequence[int], use: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Within the context every forward pass hands over its MLP activations.

    Args:
        model: the model.
        layers: whose activations.
        use: called with a layer's number and its activations (B, T, I).
    """

    def hook_of(layer: int) -> Callable[..., None]:
        return lambda _, args: use(layer, args[0])

    handles = [
        model.layers[layer].mlp.down_proj.register_forward_pre_hook(hook_of(layer))
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capturing_gates(
    model: Model, layers: Sequence[int], use: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Within the context every forward pass hands over its gates, before the activation function.

    Args:
        model: the model.
        layers: whose gates.
        use: called with a layer's number and its gates (B, T, I).
    """

    def hook_of(layer: int) -> Callable[..., None]:
        return lambda _, __, output: use(layer, output)

    handles = [
        model.layers[layer].mlp.gate_proj.register_forward_hook(hook_of(layer)) for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def check_mlp_sums(model: Model, layers: Sequence[int], ids: torch.Tensor) -> None:
    """Check on one text (1, T) that the MLP output is the sum of its value vectors: Σ_j a_j d_j.

    Raises:
        RunError: it is not.
    """
    last: dict[int, torch.Tensor] = {}

    def check(layer: int, output: torch.Tensor) -> None:
        vectors = model.value_vectors(layer)
        expected = last[layer] @ vectors
        # Relative to Σ_j |a_j| |d_j|, which rounding is proportional to, whatever cancels.
        size = (last[layer].abs() @ vectors.abs()).float().norm().clamp(min=1e-30)
        error = (output[:, -1] - expected).float().norm() / size
        if not error <= ROUNDING * torch.finfo(model.dtype).eps:
            raise RunError(
                f"the MLP output of layer {layer} is not the sum of its value vectors (relative "
                f"error {error:.1e}): this model writes it in another way, or the device computes "
                "wrongly; try --device cpu"
            )

    def check_of(layer: int) -> Callable[..., None]:
        return lambda _, __, output: check(layer, output)

    handles = [model.layers[layer].mlp.register_forward_hook(check_of(layer)) for layer in layers]
    try:
        with capturing(model, layers, lambda layer, a: last.__setitem__(layer, a[:, -1])):
            model.decoder(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
