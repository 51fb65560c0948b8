"""Stage 1: project every value vector onto the vocabulary, exactly, and keep the two poles.

For neuron j of layer ℓ the readout is ``z_t = E_t · (s_ℓ ⊙ d_j)`` with the unembedding rows E_t and the folded norm
weights s_ℓ (`Model.fold_scale`): the direct path's ranking of tokens, since both RMS divisors are positive scalars.
`projection` does the arithmetic. No forward pass is needed for it, so the model may be a loaded `models.Model` or
`weights.Weights`, which streams the layers from disk; with the latter the activations are not measured.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from conceptvec.config import Config, parse_layers
from conceptvec.extraction.projection import Projector
from conceptvec.model.network import Model
from conceptvec.model.vocabulary import masked_tokens, token_texts
from conceptvec.model.weights import Weights
from conceptvec.runfolder import Arrays, Parts

logger = logging.getLogger(__name__)


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
    mean: np.ndarray
    fallbacks: (
        np.ndarray
    )  # (2,) rows repeated with more survivors, rows ranked from the full readout

    def arrays(self) -> Arrays:
        """The fields as the arrays of a layer file."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layer"}

    def pole(self, pole: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and readout values of one pole, strongest first."""
        return (
            (self.top_ids, self.top_values)
            if pole == "+"
            else (self.bottom_ids, self.bottom_values)
        )


@dataclass
class Candidates:
    """What Stage 1 found: per layer the projections, and the activation statistics of all its neurons."""

    layers: list[Projections]
    tokens: list[str]  # the vocabulary's texts
    masked: np.ndarray  # bool (V,)
    agreement: dict[str, Any] = field(default_factory=dict)  # of a sample of rows with the CPU
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Neurons examined."""
        return sum(len(p.neurons) for p in self.layers)

    def passing(self, projections: Projections, min_kurtosis: float | None) -> np.ndarray:
        """The stated filter, bool (n,): a vector that is not zero, a readout no flatter than asked."""
        passing = projections.norms > 0
        return passing if min_kurtosis is None else passing & (projections.kurtosis >= min_kurtosis)

    def __repr__(self) -> str:
        return f"Candidates({self.total} neurons in {len(self.layers)} layers, {len(self.tokens)} tokens)"

    def _repr_html_(self) -> str:
        from conceptvec.show.display import candidates_html

        return candidates_html(self)


def sample_neurons(
    layer: int, intermediate_size: int, max_vectors: int | None, seed: int
) -> np.ndarray:
    """The layer's neurons to examine, ascending: all, or a seeded sample that depends on layer and seed alone."""
    if max_vectors is None or max_vectors >= intermediate_size:
        return np.arange(intermediate_size, dtype=np.int32)
    rng = np.random.default_rng([seed, layer, 1])
    return np.sort(rng.choice(intermediate_size, max_vectors, replace=False)).astype(np.int32)


def project_layer(model: Weights, projector: Projector, layer: int, config: Config) -> Projections:
    """Project the chosen value vectors of one layer."""
    neurons = sample_neurons(layer, model.intermediate_size, config.max_vectors, config.seed)
    vectors = model.value_vectors(layer)[
        torch.as_tensor(neurons, dtype=torch.long, device=model.device)
    ].float()
    before = projector.fallbacks.copy()
    found = projector(model.folded(vectors, layer, config.fold), config.batch_size)
    arrays = {k: v.numpy() for k, v in found._asdict().items()}
    arrays |= {k: arrays[k].astype(np.int32) for k in ("top_ids", "bottom_ids")}
    return Projections(
        layer, neurons, norms=torch.linalg.vector_norm(vectors, dim=1).cpu().numpy(),
        fallbacks=projector.fallbacks - before, **arrays,
    )  # fmt: skip


def null_directions(model: Weights, layer: int, fold: str, n: int, seed: int) -> torch.Tensor:
    """Random directions (n, H), folded, with the covariance of the layer's value vectors, in float32.

    Each is a Gaussian mixture of the layer's own columns: its covariance is theirs, and it stands for nothing.
    """
    rng = torch.Generator().manual_seed((seed * 100_003 + layer * 17 + 3) % 2**63)
    mix = torch.randn(n, model.intermediate_size, generator=rng) / math.sqrt(
        model.intermediate_size
    )
    return mix.to(model.device) @ model.readout_directions(layer, fold)


def make_projector(model: Weights, top_k: int) -> tuple[Projector, list[str], torch.Tensor]:
    """The projector of a model, its tokens' texts and the mask of the tokens that are never shown."""
    texts = token_texts(model)
    masked = masked_tokens(model, texts)
    return Projector(model.unembedding, masked, top_k), texts, masked


def extract(model: Weights, config: Config, parts: Parts | None = None) -> Candidates:
    """Stage 1 over the layers of the configuration.

    Args:
        model: a loaded model, or `weights.Weights`: then no activations are measured.
        config: layers, sample size, batch size, top_k, fold, corpus, concepts.
        parts: keeps finished parts (a `store.RunFolder`); without it nothing is kept.

    Returns:
        the projections of every layer and the activation statistics.

    Raises:
        RunError: a sample of the rows does not agree with the CPU.
    """
    start, parts = time.perf_counter(), parts or Parts()
    layers = parse_layers(config.layers, model.n_layers)
    projector, texts, masked = make_projector(model, config.top_k)
    tasks = [
        (
            f"projections/layer_{n:02d}.safetensors",
            lambda n=n: project_layer(model, projector, n, config).arrays(),
        )
        for n in layers
    ]
    found = parts.map(tasks, "Stage 1: projecting", "layer")
    projections = [
        Projections(layer, **arrays) for layer, arrays in zip(layers, found, strict=True)
    ]
    repeated, full = np.sum([p.fallbacks for p in projections], axis=0)
    logger.info(
        "%d readouts: %d repeated, %d ranked in full",
        len(layers) * len(found[0]["neurons"]),
        repeated,
        full,
    )
    candidates = Candidates(projections, texts, masked.numpy())
    from conceptvec.tools.selfcheck import projection_agreement

    candidates.agreement = {"projection": projection_agreement(model, candidates, config)}
    candidates.seconds = round(time.perf_counter() - start, 3)
    return candidates
