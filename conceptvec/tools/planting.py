"""Planted concept vectors: a positive control that lives in a loaded model while it is asked.

A planted neuron takes the place of a real one: its column of ``down_proj`` is the planted vector,
and its activation is about 1 at chosen places of a text and 0 elsewhere. A place is known by the
tokens up to it, so that the neuron fires there in every forward pass that reads them: the scan, the
clean pass and the damage engine, whatever the batch. No two places fire quite alike, as with a real
neuron, since positions are matched by activation, and equal ones leave nothing to choose by.

The vector promotes a concept's words on the direct path, against the words of the other concepts.
Its norm is set by what it is worth: the nats that its exact removal costs on own words (`worth`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from conceptvec.effects.passages import Passages
    from conceptvec.model.network import Model

MULTIPLIER = 6364136223846793005  # of the rolling hash (Knuth's MMIX generator); wraps at 64 bits
SPREAD = 0.1  # by which the activation differs from 1, at most
OFF_CONCEPT = 0.05  # share of the other places at which a planted neuron fires

NO_WAY = 1e-3  # of the mean power: a dimension under it lets next to nothing through


@dataclass(frozen=True)
class Plant:
    """A planted neuron.

    Attributes:
        layer: zero-based.
        neuron: the real neuron in whose place it stands.
        concept: the number of the concept whose words it promotes.
        column: its value vector, float32 (H,).
        fires: sorted hashes of the beginnings of texts after which it fires, int64 (n,).
    """

    layer: int
    neuron: int
    concept: int
    column: torch.Tensor
    fires: np.ndarray

    @property
    def norm(self) -> float:
        """Of its value vector."""
        return float(torch.linalg.vector_norm(self.column))

    def scaled(self, factor: float) -> Plant:
        """The same with another norm."""
        return replace(self, column=self.column * factor)


# ---- where it fires ----


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


def activations(fires: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """A planted neuron's activations: float32, of the hashes' shape.

    Args:
        fires: sorted hashes of the places where it fires.
        hashes: of the places that are read.
    """
    if not len(fires):
        return np.zeros(hashes.shape, np.float32)
    at = np.searchsorted(fires, hashes).clip(max=len(fires) - 1)
    with np.errstate(over="ignore"):
        mixed = hashes.view(np.uint64) * np.uint64(MULTIPLIER)
    share = (mixed >> np.uint64(40)).astype(np.float64) / 2**24  # [0, 1), by the place alone
    strength = 1 + SPREAD * (2 * share - 1)
    return np.where(fires[at] == hashes, strength, 0).astype(np.float32)


class _Beginnings:
    """Remembers the beginnings of the texts that the decoder is reading."""

    def __init__(self) -> None:
        self.hashes = np.zeros((0, 0), np.int64)
        self._outer = self.hashes

    def read(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass of the decoder."""
        ids = args[0] if args else kwargs.get("input_ids")
        cache = kwargs.get("past_key_values")
        if ids is None or (cache is not None and cache.get_seq_length()):
            raise RuntimeError("a planted neuron needs whole texts: run it without a cache")
        self._outer, self.hashes = self.hashes, prefix_hashes(ids.cpu().numpy())

    def leave(self, *_: Any) -> None:
        """After a whole one; replays of what an unfinished one began may still follow."""
        self.hashes = self._outer


@contextmanager
def planted(model: Model, plants: Sequence[Plant]) -> Iterator[None]:
    """Within the context the model has the planted neurons, all of one layer but the last.

    Raises:
        ValueError: they are of several layers, or of the last. Above a damaged layer texts are
            replayed without their tokens, and the last MLP sees no more than the positions that
            are asked for, so a planted neuron there would not know where it is.
    """
    layers = {plant.layer for plant in plants}
    if len(layers) > 1 or model.n_layers - 1 in layers:
        raise ValueError(f"planted neurons of layers {sorted(layers)}, expected one below the last")
    if not plants:
        yield
        return
    mlp = model.layers[layers.pop()].mlp
    weight = mlp.down_proj.weight
    kept = weight.detach().clone()
    beginnings = _Beginnings()

    def fire(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        a = args[0].clone()
        hashes = beginnings.hashes
        if a.shape[:-1] != hashes.shape:
            raise RuntimeError(f"planted neurons saw texts of {hashes.shape}, not {a.shape[:-1]}")
        for plant in plants:
            pattern = torch.from_numpy(activations(plant.fires, hashes))
            a[..., plant.neuron] = pattern.to(a)
        return (a, *args[1:])

    handles = [
        model.decoder.register_forward_pre_hook(beginnings.read, with_kwargs=True),
        model.decoder.register_forward_hook(beginnings.leave),
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


# ---- what it writes ----


@torch.no_grad()
def concept_direction(
    model: Model, layer: int, words: np.ndarray, others: np.ndarray, fold: str
) -> torch.Tensor:
    """What a layer's MLP has to write to promote some tokens over others, unit norm: float32 (H,).

    Args:
        model: the model.
        layer: where it is to be written.
        words: ids of the tokens to be promoted.
        others: ids of those that they are set against.
        fold: which norms lie on the way to the readout.
    """

    def mean(ids: np.ndarray) -> torch.Tensor:
        rows = torch.as_tensor(ids, dtype=torch.long, device=model.device)
        return model.unembedding[rows].float().mean(0)

    scale = model.fold_scale(layer, fold)
    # A factor near zero lets nothing through, so nothing is spent on it.
    power = scale.square()
    direction = (mean(words) - mean(others)) * scale / (power + NO_WAY * power.mean())
    return direction / torch.linalg.vector_norm(direction)
