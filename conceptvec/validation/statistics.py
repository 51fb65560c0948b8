"""The few statistics that Stage 3 needs, each a pure function of numpy arrays."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000  # bootstrap resamples and label permutations


def bootstrap_selectivity(
    concept: np.ndarray, unrelated: np.ndarray, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of mean(concept) − mean(unrelated), resampling the prompts of each group (Efron 1979)."""
    means = [x[rng.integers(0, len(x), (RESAMPLES, len(x)))].mean(1) for x in (concept, unrelated)]
    low, high = np.quantile(means[0] - means[1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def welch_t(concept: np.ndarray, unrelated: np.ndarray) -> np.ndarray:
    """Studentised selectivity of rows of drops (n, prompts): difference of the means over its standard error (Welch).

    Neurons differ by orders of magnitude in how much a damage of the same relative size does. Dividing by the spread
    over the prompts makes them comparable, so that nulls of all layers can be pooled.
    """
    difference = concept.mean(-1) - unrelated.mean(-1)
    squared = sum(
        x.var(-1, ddof=min(1, x.shape[-1] - 1)) / x.shape[-1] for x in (concept, unrelated)
    )
    return difference / np.sqrt(np.maximum(squared, 1e-18))


def permutation_p(concept: np.ndarray, unrelated: np.ndarray, rng: np.random.Generator) -> float:
    """One-sided label permutation test of mean(concept) − mean(unrelated) > 0: (1 + #{≥}) / (1 + K)."""
    pooled = np.concatenate([concept, unrelated])
    observed = concept.mean() - unrelated.mean()
    shuffled = rng.permuted(np.broadcast_to(pooled, (RESAMPLES, len(pooled))), axis=1)
    differences = shuffled[:, : len(concept)].mean(1) - shuffled[:, len(concept) :].mean(1)
    return float((1 + np.sum(differences >= observed - 1e-12)) / (1 + RESAMPLES))


def null_p(observed: float, nulls: np.ndarray) -> float:
    """Monte Carlo p-value against null statistics: (1 + #{null ≥ observed}) / (1 + K) (Phipson & Smyth 2010)."""
    return float((1 + np.sum(nulls >= observed)) / (1 + len(nulls)))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the false discovery rate (Benjamini & Hochberg 1995)."""
    n = len(p)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * n / np.arange(1, n + 1)
    out = np.empty(n)
    out[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0) if n else scaled
    return out


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, half = hits / n, z * np.sqrt(hits * (n - hits) / n**3 + z * z / (4 * n * n))
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    return max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale))
