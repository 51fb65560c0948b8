"""The few statistics that Stage 3 needs, each a pure function of numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000  # of the bootstrap
Z95 = 1.959964  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Sample:
    """Drops at positions, and the document that each position comes from; both (n,)."""

    drops: np.ndarray
    documents: np.ndarray

    @property
    def mean(self) -> float:
        """The mean drop, nats."""
        return float(self.drops.mean())


def selectivity_interval(
    own: Sample, others: Sequence[Sample], rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of mean(own) − the largest of the other means (Efron 1979).

    Documents are resampled, all samples together, since positions of one document share its text.
    Each replicate takes its own largest of the other means.
    """
    samples = [own, *others]
    documents, place = np.unique(
        np.concatenate([sample.documents for sample in samples]), return_inverse=True
    )
    weight = rng.multinomial(
        len(documents), np.full(len(documents), 1 / len(documents)), RESAMPLES
    )  # (R, documents): how often each is drawn

    means = []
    start = 0
    for sample in samples:
        columns = place[start : start + len(sample.drops)]
        counts = weight[:, columns]  # (R, n)
        means.append(counts @ sample.drops / np.maximum(counts.sum(1), 1))
        start += len(columns)
    difference = means[0] - np.max(means[1:], axis=0)
    low, high = np.quantile(difference, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def null_p(observed: float, nulls: np.ndarray) -> float:
    """Monte Carlo p-value: (1 + #{null ≥ observed}) / (1 + K) (Phipson & Smyth 2010)."""
    return float((1 + np.sum(nulls >= observed)) / (1 + len(nulls)))


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, z = hits / n, Z95
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
