"""The contrast over distinct words, against word by word."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptvec.effects import statistics as stats
from conceptvec.effects.statistics import Contrast

N_CONCEPTS = 5


def words(sizes: tuple[int, ...] = (20, 31, 9, 40, 16), share: int = 3, seed: int = 0) -> Contrast:
    concept = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return Contrast(concept, stats.others(len(sizes)), share)


def by_hand(
    effect: np.ndarray, readout: np.ndarray, compared: Contrast, concept: int, floor: float
) -> float:
    """One pole's statistic under one concept, word by word."""
    means, errors = [], []
    for c in range(len(compared.against)):
        own = [w for w in range(len(effect)) if compared.concept[w] == c]
        own.sort(key=lambda w: -readout[w])
        losses = effect[own[: -(-len(own) // compared.share)]]
        means.append(losses.mean())
        errors.append(losses.var(ddof=1) / len(losses) if len(losses) > 1 else 0.0)
    weights = compared.against[concept]
    squared = errors[concept] + sum(w**2 * e for w, e in zip(weights, errors, strict=True))
    contrast = means[concept] - float(weights @ means)
    return contrast / np.sqrt(squared + floor**2)


@pytest.mark.parametrize("share", [1, 3, 5])
@pytest.mark.parametrize("sizes", [(20, 31, 9, 40, 16), (1, 2, 30), (6, 6)])
def test_the_statistic_by_hand(sizes: tuple[int, ...], share: int) -> None:
    compared = words(sizes, share)
    effect, readout = np.random.default_rng(3).standard_normal((2, len(compared.concept), 4))
    got = stats.studentised(effect, readout, compared, 0.01).t
    for concept in range(len(sizes)):
        for pole in range(4):
            expected = by_hand(effect[:, pole], readout[:, pole], compared, concept, 0.01)
            assert got[concept, pole] == pytest.approx(expected)


def test_a_concept_may_be_contrasted_with_some_others_alone() -> None:
    against = np.zeros((N_CONCEPTS, N_CONCEPTS))
    against[:, 4] = 1
    compared = replace(words(), against=against)
    effect, readout = np.random.default_rng(1).standard_normal((2, len(compared.concept), 3))
    got = stats.studentised(effect, readout, compared).t
    # What the other concepts' words do no longer matters to concept 0.
    changed = effect + 5.0 * np.isin(compared.concept, [1, 2, 3])[:, None]
    again = stats.studentised(changed, readout, compared).t
    assert np.allclose(got[0], again[0])
    assert not np.allclose(got[1], again[1])


@given(st.integers(0, 1000), st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_scale_order_and_shift_of_the_readout(seed: int, factor: float) -> None:
    compared = words()
    rng = np.random.default_rng(seed)
    effect, readout = rng.standard_normal((2, len(compared.concept), 2))
    expected = stats.studentised(effect, readout, compared, 0.0).t
    again = stats.studentised(factor * effect, factor * readout + 1, compared, 0.0).t
    assert np.allclose(again, expected)
    order = rng.permutation(len(compared.concept))
    shuffled = replace(compared, concept=compared.concept[order])
    got = stats.studentised(effect[order], readout[order], shuffled, 0.0).t
    assert np.allclose(got, expected)


def test_a_neuron_without_effect_has_no_statistic() -> None:
    compared = words()
    effect, readout = np.random.default_rng(1).standard_normal((2, len(compared.concept), 50))
    assert np.abs(stats.studentised(effect * 1e-8, readout, compared).t).max() < 1e-3
