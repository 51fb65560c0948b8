"""Stage 1: project every value vector onto the vocabulary, exactly, and keep the two poles.

For neuron j of layer ℓ the readout is ``z_t = E_t · (s_ℓ ⊙ d_j)`` with the unembedding rows E_t and the folded norm
weights s_ℓ (`Model.fold_scale`): the direct path's ranking of tokens, since both RMS divisors are positive scalars.

Selection is exact. A float32 product finds survivors through block maxima (a top-k value lies in one of the k blocks
with the largest maxima); they are ranked again in float64, ties by lower id, and the margin to what was left behind is
checked against the rounding error; a row that fails the check is ranked from its full float64 readout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.activations import Activations, corpus_activations
from conceptvec.config import Config, parse_layers
from conceptvec.memory import Batch
from conceptvec.store import Arrays, Parts
from conceptvec.vocabulary import masked_tokens, token_texts

if TYPE_CHECKING:
    from conceptvec.models import Model

BLOCK = 256  # vocabulary columns per block maximum
SPARE = 14  # survivors beyond k that guard against rounding


@dataclass
class Projections:
    """The two poles of n neurons of one layer. Rows follow `neurons`; arrays are numpy, float32 and int32."""

    layer: int
    neurons: np.ndarray  # (n,)
    top_ids: np.ndarray  # (n, k), most promoted first
    top_values: np.ndarray
    bottom_ids: np.ndarray  # (n, k), most suppressed first
    bottom_values: np.ndarray
    norms: np.ndarray  # (n,) of d_j itself
    variance: np.ndarray  # (n,) moments of the readout over the shown tokens
    skew: np.ndarray
    kurtosis: np.ndarray  # excess

    def arrays(self) -> Arrays:
        """The fields as the arrays of a layer file."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layer"}

    def pole(self, pole: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and readout values of one pole, strongest first."""
        return (self.top_ids, self.top_values) if pole == "+" else (self.bottom_ids, self.bottom_values)


class Projector:
    """Projects directions (n, H) of the residual stream onto the shown tokens of an unembedding.

    Args:
        unembedding: (V, H) on the device of the computation, any precision.
        masked: bool (V,); these tokens never appear.
        top_k: tokens per pole; at most the number of shown tokens are kept.
    """

    def __init__(self, unembedding: torch.Tensor, masked: torch.Tensor, top_k: int) -> None:
        self.shown = torch.nonzero(~masked).flatten().to(unembedding.device)
        self.rows = unembedding[self.shown].float().contiguous()
        self.k = min(top_k, len(self.shown))
        self.exact = torch.float32 if unembedding.device.type == "mps" else torch.float64
        # |fl(x·y) − x·y| ≤ γ_H ‖x‖‖y‖; the usual growth of rounding errors is √H, and 4 leaves room.
        self.error = 4 * torch.finfo(torch.float32).eps * math.sqrt(self.rows.shape[1])
        self.largest = float(torch.linalg.vector_norm(self.rows, dim=1).max())
        self.fallbacks = 0

    def __call__(self, directions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Top ids and values, bottom ids and values, variance, skew and excess kurtosis of n readouts."""
        directions = directions.float()
        readout = directions @ self.rows.T
        moments = _moments(readout)
        blocks = readout
        if pad := -readout.shape[1] % BLOCK:
            blocks = torch.nn.functional.pad(readout, (0, pad), value=float("nan"))
        tiles = blocks.view(len(readout), -1, BLOCK)
        high = self._pole(directions, readout, tiles, largest=True)
        low = self._pole(directions, readout, tiles, largest=False)
        return (*high, *low, *moments)

    def _pole(self, directions: torch.Tensor, readout: torch.Tensor, tiles: torch.Tensor, largest: bool) -> tuple:
        keep = min(self.k + SPARE, readout.shape[1])
        sign = 1.0 if largest else -1.0
        # The last block may hold padding; NaN never survives amax/amin below.
        fill = -math.inf if largest else math.inf
        maxima = tiles.amax(2) if largest else tiles.amin(2)
        last = torch.nan_to_num(tiles[:, -1], nan=fill)
        maxima[:, -1] = last.amax(1) if largest else last.amin(1)
        n_blocks = min(keep, maxima.shape[1])
        chosen = maxima.topk(n_blocks, dim=1, largest=largest).indices
        columns = (chosen[:, :, None] * BLOCK + torch.arange(BLOCK, device=chosen.device)).flatten(1)
        inside = columns < readout.shape[1]
        values = torch.where(inside, readout.gather(1, columns.clamp(max=readout.shape[1] - 1)), fill)
        rough, at = values.topk(keep, dim=1, largest=largest)
        ids = columns.gather(1, at)
        values = self._ranked(directions, ids) * sign
        ids, values = _order(ids, values)
        slack = self.error * torch.linalg.vector_norm(directions, dim=1) * self.largest
        if keep < readout.shape[1]:
            unsafe = values[:, self.k - 1] <= (rough[:, -1] * sign).to(values.dtype) + slack
            for row in torch.nonzero(unsafe).flatten().tolist():
                self.fallbacks += 1
                full = torch.arange(readout.shape[1], device=ids.device)[None]
                every = self._ranked(directions[row : row + 1], full) * sign
                one, v = _order(full, every)
                ids[row], values[row] = one[0, :keep], v[0, :keep]
        return self.shown[ids[:, : self.k]], (values[:, : self.k] * sign).float()

    def _ranked(self, directions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Readouts of the given columns in float64, rounded to float32: the same in any batch."""
        out = []
        step = max(1, 2**25 // (ids.shape[1] * self.rows.shape[1]))
        for d, i in zip(directions.split(step), ids.split(step), strict=True):
            rows = self.rows[i].to(self.exact)
            out.append(torch.bmm(rows, d.to(self.exact)[:, :, None]).squeeze(2))
        return torch.cat(out).float()


def _order(ids: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort by falling value, equal values by lower id."""
    by_id = ids.argsort(dim=1)
    ids, values = ids.gather(1, by_id), values.gather(1, by_id)
    order = values.argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), values.gather(1, order)


def _moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Variance, skew and excess kurtosis along the rows."""
    centred = z - z.mean(1, keepdim=True)
    square = centred * centred
    variance = square.mean(1)
    third, fourth = (square * centred).mean(1), (square * square).mean(1)
    floor = torch.clamp(variance, min=1e-30)
    return variance, third / floor**1.5, fourth / floor**2 - 3


@dataclass
class Candidates:
    """What Stage 1 found: per layer the projections, and the activation statistics of all its neurons."""

    layers: list[Projections]
    activations: Activations
    tokens: list[str]  # the vocabulary's texts
    masked: np.ndarray  # bool (V,)
    agreement: dict[str, Any] = field(default_factory=dict)  # of a sample of rows with the CPU

    @property
    def total(self) -> int:
        """Neurons examined."""
        return sum(len(p.neurons) for p in self.layers)

    def passing(self, projections: Projections, min_kurtosis: float | None) -> np.ndarray:
        """The stated filter, bool (n,): a neuron that fires on the corpus, with a readout no flatter than asked."""
        fires = self.activations.max_abs[projections.layer][projections.neurons] > 0
        passing = fires & (projections.norms > 0)
        return passing if min_kurtosis is None else passing & (projections.kurtosis >= min_kurtosis)

    def __repr__(self) -> str:
        return f"Candidates({self.total} neurons in {len(self.layers)} layers, {len(self.tokens)} tokens)"

    def _repr_html_(self) -> str:
        from conceptvec.display import candidates_html

        return candidates_html(self)


def sample_neurons(layer: int, intermediate_size: int, max_vectors: int | None, seed: int) -> np.ndarray:
    """The layer's neurons to examine, ascending: all, or a seeded sample that depends on layer and seed alone."""
    if max_vectors is None or max_vectors >= intermediate_size:
        return np.arange(intermediate_size, dtype=np.int32)
    rng = np.random.default_rng([seed, layer, 1])
    return np.sort(rng.choice(intermediate_size, max_vectors, replace=False)).astype(np.int32)


def project_layer(model: Model, projector: Projector, layer: int, config: Config) -> Projections:
    """Project the chosen value vectors of one layer in batches."""
    neurons = sample_neurons(layer, model.intermediate_size, config.max_vectors, config.seed)
    vectors = model.value_vectors(layer)
    scale = model.fold_scale(layer, config.fold)

    def project(rows: slice) -> list[torch.Tensor]:
        raw = vectors[torch.as_tensor(neurons[rows], dtype=torch.long, device=vectors.device)].float()
        return [t.cpu() for t in (torch.linalg.vector_norm(raw, dim=1), *projector(raw * scale))]

    parts = Batch(config.batch_size, "value vectors").map(len(neurons), project)
    norms, top_ids, top, bottom_ids, bottom, *moments = (torch.cat(c).numpy() for c in zip(*parts, strict=True))
    return Projections(
        layer, neurons, top_ids.astype(np.int32), top, bottom_ids.astype(np.int32), bottom,
        norms, *(m.astype(np.float32) for m in moments),
    )  # fmt: skip


def null_directions(model: Model, layer: int, fold: str, n: int, seed: int) -> torch.Tensor:
    """Random directions (n, H), folded, with the covariance of the layer's value vectors, in float32.

    Each is a Gaussian mixture of the layer's own columns: its covariance is theirs, and it stands for nothing.
    """
    rng = torch.Generator().manual_seed(seed * 100_003 + layer * 17 + 3)
    mix = torch.randn(n, model.intermediate_size, generator=rng) / math.sqrt(model.intermediate_size)
    vectors = model.value_vectors(layer).float() * model.fold_scale(layer, fold)
    return mix.to(vectors.device) @ vectors


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices that cut n items into batches."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def make_projector(model: Model, top_k: int) -> tuple[Projector, list[str], torch.Tensor]:
    """The projector of a model, its tokens' texts and the mask of the tokens that are never shown."""
    texts = token_texts(model)
    masked = masked_tokens(model, texts)
    return Projector(model.unembedding, masked, top_k), texts, masked


def extract(model: Model, config: Config, parts: Parts | None = None) -> Candidates:
    """Stage 1 over the layers of the configuration.

    Args:
        model: a loaded model.
        config: layers, sample size, batch size, top_k, fold, corpus, concepts.
        parts: keeps finished parts (a `store.RunFolder`); without it nothing is kept.

    Returns:
        the projections of every layer and the activation statistics.

    Raises:
        RunError: a sample of the rows does not agree with the CPU.
    """
    parts = parts or Parts()
    layers = parse_layers(config.layers, model.n_layers)
    projector, texts, masked = make_projector(model, config.top_k)
    tasks = [
        (f"projections/layer_{n:02d}.safetensors", lambda n=n: project_layer(model, projector, n, config).arrays())
        for n in layers
    ]
    found = parts.map(tasks, "Stage 1: projecting", "layer")
    compute = lambda: corpus_activations(model, config, layers).arrays()  # noqa: E731
    activations = parts.map([("activations.safetensors", compute)], "Stage 1: activations", "pass")[0]
    projections = [Projections(layer, **arrays) for layer, arrays in zip(layers, found, strict=True)]
    candidates = Candidates(projections, Activations.of_arrays(activations), texts, masked.numpy())
    from conceptvec.selfcheck import projection_agreement

    candidates.agreement = {"projection": projection_agreement(model, candidates, config)}
    return candidates
