"""The two poles of every neuron of a layer: what its value vector promotes, and what it suppresses.

For neuron j of layer ℓ the readout is ``z_t = E_t · (s_ℓ ⊙ d_j)`` with the unembedding rows E_t and
the folded norm weights s_ℓ (`Weights.fold_scale`): the direct path's ranking of tokens, since both
RMS divisors are positive scalars. `projection` does the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch

from conceptvec.extraction.projection import Projector
from conceptvec.files import Arrays
from conceptvec.model.powers import lengths
from conceptvec.model.vocabulary import masked_tokens, token_texts
from conceptvec.model.weights import Weights
from conceptvec.streams import rng, torch_rng


@dataclass(frozen=True)
class Projections:
    """The two poles of n neurons of one layer. Rows follow `neurons`; arrays are numpy.

    Attributes:
        layer: zero-based.
        neurons: int32 (n,).
        top_ids: int32 (n, k), most promoted first.
        top_values: float32 (n, k), the readout.
        bottom_ids: int32 (n, k), most suppressed first.
        bottom_values: float32 (n, k), the readout.
        norms: float32 (n,), of the value vector itself.
        variance: float64 (n,), of the readout over the shown tokens; so are the next three.
        skew: float32 (n,).
        kurtosis: float32 (n,), excess.
        mean: float32 (n,).
        fallbacks: int32 (2,), rows repeated with more survivors, rows ranked from the full
            readout.
    """

    layer: int
    neurons: np.ndarray
    top_ids: np.ndarray
    top_values: np.ndarray
    bottom_ids: np.ndarray
    bottom_values: np.ndarray
    norms: np.ndarray
    variance: np.ndarray
    skew: np.ndarray
    kurtosis: np.ndarray
    mean: np.ndarray
    fallbacks: np.ndarray

    def arrays(self) -> Arrays:
        """The fields as the arrays of a layer file."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layer"}

    def pole(self, sign: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and readout values of one pole, strongest first: (n, k) each."""
        if sign == "+":
            return self.top_ids, self.top_values
        return self.bottom_ids, self.bottom_values

    def sharpness(self, sign: str, first: int) -> np.ndarray:
        """How far a pole's first tokens stand out of the readout, in its own deviations: (n,)."""
        distance = np.abs(self.pole(sign)[1][:, :first] - self.mean[:, None]).mean(1)
        return distance / np.sqrt(np.maximum(self.variance, np.finfo(float).tiny))


def make_projector(model: Weights, top_k: int) -> tuple[Projector, list[str], torch.Tensor]:
    """The projector of a model, its tokens' texts, and the mask of tokens that are never shown."""
    texts = token_texts(model)
    masked = masked_tokens(model, texts)
    return Projector(model.unembedding, masked, top_k), texts, masked


def sample_neurons(
    layer: int, intermediate_size: int, max_vectors: int | None, seed: int
) -> np.ndarray:
    """The layer's neurons to examine, int32, ascending.

    All of them, or a seeded sample that depends on layer and seed alone.
    """
    if max_vectors is None or max_vectors >= intermediate_size:
        return np.arange(intermediate_size, dtype=np.int32)
    stream = rng(seed, "neurons", layer)
    sample = stream.choice(intermediate_size, max_vectors, replace=False)
    return np.sort(sample).astype(np.int32)


def project_neurons(
    model: Weights,
    projector: Projector,
    layer: int,
    neurons: np.ndarray,
    *,
    fold: str,
    batch_size: int,
) -> Projections:
    """Project some of a layer's value vectors, int32 (n,)."""
    rows = torch.as_tensor(neurons, dtype=torch.long, device=model.device)
    vectors = model.value_vectors(layer)[rows].float()  # (n, H)
    before = projector.fallbacks.copy()
    readouts = projector(model.folded(vectors, layer, fold), batch_size)
    arrays = {name: values.numpy() for name, values in readouts._asdict().items()}
    for name in ("top_ids", "bottom_ids"):
        arrays[name] = arrays[name].astype(np.int32)
    return Projections(
        layer,
        neurons,
        norms=lengths(vectors).cpu().numpy(),
        fallbacks=projector.fallbacks - before,
        **arrays,
    )


def null_directions(model: Weights, layer: int, fold: str, n: int, seed: int) -> torch.Tensor:
    """Random directions, folded, with the covariance of the layer's value vectors: float32 (n, H).

    Each is a Gaussian mixture of the layer's own columns: its covariance is theirs, and it stands
    for nothing.
    """
    size = model.intermediate_size
    stream = torch_rng(seed, "null directions", layer)
    mixture = torch.randn(n, size, generator=stream) / math.sqrt(size)
    return mixture.to(model.device) @ model.readout_directions(layer, fold)
