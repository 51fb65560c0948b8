"""Planted concept vectors: a positive control that lives in a loaded model for as long as it is asked.

A planted neuron takes the place of a real one: its column of ``down_proj`` is the planted vector,
and its activation is 1 at chosen places of a text and 0 elsewhere. A place is known by the tokens
up to it, so that the neuron fires there in every forward pass that reads them, whatever the batch.

The vector is what the concept's words miss: the gradient of their mean log-probability with respect
to the normalised final state, unfolded by the norms on the way. Its norm is set by what it is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from conceptvec.effects.passages import Passages
    from conceptvec.model.network import Model

MULTIPLIER = 6364136223846793005  # of the rolling hash (Knuth's MMIX generator); wraps at 64 bits
OFF_CONCEPT = 0.05  # share of the other places at which a planted neuron fires


@dataclass(frozen=True)
class Plant:
    """A planted neuron.

    Attributes:
        layer: zero-based.
        neuron: the real neuron in whose place it stands.
        column: its value vector, float32 (H,).
        fires: sorted hashes of the beginnings of texts after which it fires, int64 (n,).
    """

    layer: int
    neuron: int
    column: torch.Tensor
    fires: np.ndarray


def prefix_hashes(ids: np.ndarray) -> np.ndarray:
    """A hash of every row's tokens up to each position: int64 (B, T) for ids (B, T)."""
    out = np.zeros(ids.shape, np.uint64)
    value = np.full(len(ids), 1, np.uint64)
    with np.errstate(over="ignore"):
        for position in range(ids.shape[1]):
            token = ids[:, position].astype(np.uint64) + np.uint64(1)
            value = value * np.uint64(MULTIPLIER) + token
            out[:, position] = value
    return out.view(np.int64)


def text_hashes(passages: Passages) -> np.ndarray:
    """The hash of the beginning that ends at each token of a text: int64 (tokens,)."""
    parts = [prefix_hashes(passages.passage(i)[None])[0] for i in range(len(passages))]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def firing_places(
    own: np.ndarray, others: np.ndarray, hashes: np.ndarray, stream: np.random.Generator
) -> np.ndarray:
    """Hashes at which a planted neuron fires: all own positions, a few of the others."""
    few = others[stream.random(len(others)) < OFF_CONCEPT]
    return np.unique(hashes[np.concatenate([own, few])])


@contextmanager
def planted(model: Model, plants: Sequence[Plant]) -> Iterator[None]:
    """Within the context the model has the planted neurons, all of one layer.

    Raises:
        ValueError: they are not of one layer. Above a damaged layer texts are replayed without
            their tokens, so a planted neuron there would not know where it is.
    """
    layers = {plant.layer for plant in plants}
    if len(layers) != 1:
        raise ValueError(f"planted neurons of layers {sorted(layers)}, expected one layer")
    mlp = model.layers[layers.pop()].mlp
    weight = mlp.down_proj.weight
    kept = weight.detach().clone()
    hashes: list[np.ndarray] = [np.zeros((0, 0), np.int64)]

    def read(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        hashes[0] = prefix_hashes(ids.cpu().numpy())

    def fire(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        a = args[0].clone()
        for plant in plants:
            pattern = np.isin(hashes[0], plant.fires)
            a[..., plant.neuron] = torch.as_tensor(pattern, dtype=a.dtype, device=a.device)
        return (a, *args[1:])

    handles = [
        model.decoder.register_forward_pre_hook(read, with_kwargs=True),
        mlp.down_proj.register_forward_pre_hook(fire),
    ]
    try:
        with torch.no_grad():
            for plant in plants:
                weight[:, plant.neuron] = plant.column.to(weight)
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            weight.copy_(kept)


@torch.no_grad()
def concept_direction(model: Model, layer: int, words: Sequence[int], fold: str) -> torch.Tensor:
    """A direction of the MLP output of a layer that promotes some tokens, unit norm: float32 (H,).

    Args:
        model: the model.
        layer: where it is to be written.
        words: token ids.
        fold: which norms lie on the way to the readout.
    """
    ids = torch.as_tensor(list(words), dtype=torch.long, device=model.device)
    rows = model.unembedding[ids].float().mean(0)
    mean = torch.zeros_like(rows)
    for part in model.unembedding.split(2**14):
        mean += part.float().sum(0) / len(model.unembedding)
    scale = model.fold_scale(layer, fold)
    safe = torch.where(scale.abs() < 1e-3, torch.ones_like(scale), scale)
    direction = (rows - mean) / safe
    return direction / torch.linalg.vector_norm(direction)
