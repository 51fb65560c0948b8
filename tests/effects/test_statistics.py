"""The statistics against brute force, on nulls and on planted effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptvec.effects import statistics as stats
from conceptvec.effects.statistics import Words

N_CONCEPTS = 5


def words(sizes: tuple[int, ...] = (20, 31, 9, 40, 16), share: int = 3, seed: int = 0) -> Words:
    concept = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return Words(concept, stats.against_others(len(sizes)), share)


def noise(compared: Words, n_poles: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Heavy-tailed effects of very different sizes, and readouts that say nothing."""
    rng = np.random.default_rng(seed)
    n = len(compared.concept)
    size = 10 ** rng.uniform(-4, -1, (n_poles, 1))
    effect = size * rng.standard_t(3, (n_poles, n))
    return effect, stats.ranked(rng.standard_normal((n_poles, n)))


def by_hand(
    effect: np.ndarray, readout: np.ndarray, compared: Words, concept: int, floor: float
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
    rng = np.random.default_rng(3)
    effect, readout = rng.standard_normal((2, 4, len(compared.concept)))
    got = stats.studentised(effect, stats.ranked(readout), compared, 0.01)
    for concept in range(len(sizes)):
        for pole in range(4):
            expected = by_hand(effect[pole], readout[pole], compared, concept, 0.01)
            assert got.t[concept, pole] == pytest.approx(expected)


def test_a_concept_may_be_contrasted_with_some_others_alone() -> None:
    compared = words()
    against = np.zeros((N_CONCEPTS, N_CONCEPTS))
    against[:, 4] = 1
    effect, order = noise(compared, 3)
    got = stats.studentised(effect, order, replace(compared, against=against))
    # What the other concepts' words do no longer matters to concept 0.
    changed = effect + 5.0 * np.isin(compared.concept, [1, 2, 3])
    again = stats.studentised(changed, order, replace(compared, against=against))
    assert np.allclose(got.t[0], again.t[0])
    assert not np.allclose(got.t[1], again.t[1])


@given(st.integers(0, 1000), st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_scale_order_and_shift_of_the_readout(seed: int, factor: float) -> None:
    compared = words()
    rng = np.random.default_rng(seed)
    effect, readout = rng.standard_normal((2, 2, len(compared.concept)))
    expected = stats.studentised(effect, stats.ranked(readout), compared, 0.0).t
    assert np.allclose(
        stats.studentised(factor * effect, stats.ranked(factor * readout + 1), compared, 0.0).t,
        expected,
    )
    shuffle = rng.permutation(len(compared.concept))
    moved = replace(compared, concept=compared.concept[shuffle])
    order = stats.ranked(readout[:, shuffle])
    assert np.allclose(stats.studentised(effect[:, shuffle], order, moved, 0.0).t, expected)


def test_a_neuron_without_effect_has_no_statistic() -> None:
    compared = words()
    effect, order = noise(compared, 50)
    tiny = stats.studentised(effect * 1e-6, order, compared)
    assert np.abs(tiny.t).max() < 1e-3


def test_permuted_words_give_uniform_p_on_noise() -> None:
    compared = words((40, 60, 50, 80, 70))
    effect, order = noise(compared, 400)
    concept = np.arange(400) % N_CONCEPTS
    null = stats.permuted(effect, order, compared, concept, 100, 0)
    observed = stats.studentised(effect, order, compared).t[concept, np.arange(400)]
    p = stats.upper_p(observed, null)
    assert 0.03 <= (p <= 0.05).mean() <= 0.07
    assert 0.4 <= (p <= 0.5).mean() <= 0.6


def test_planted_effects_are_found_and_their_size_does_not_matter() -> None:
    compared = words()
    effect, order = noise(compared, 200)
    concept = np.arange(200) % N_CONCEPTS
    spread = effect.std(1, keepdims=True)
    planted = effect + 3 * spread * (compared.concept == concept[:, None])
    poles = np.arange(200)
    null = stats.permuted(planted, order, compared, concept, 100, 0, 1e-6)
    observed = stats.studentised(planted, order, compared, 1e-6).t[concept, poles]
    q = stats.benjamini_hochberg(stats.upper_p(observed, null))
    assert (q <= stats.MAX_Q).mean() > 0.8


def test_permutations_follow_the_seed() -> None:
    compared = words()
    effect, order = noise(compared, 5)
    concept = np.zeros(5, int)
    first = stats.permuted(effect, order, compared, concept, 3, 1)
    assert np.array_equal(first, stats.permuted(effect, order, compared, concept, 3, 1))
    assert not np.array_equal(first, stats.permuted(effect, order, compared, concept, 3, 2))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(-1, 7))
def test_p_counts_what_is_at_least_as_large(null: list[int], observed: int) -> None:
    expected = (1 + sum(x >= observed for x in null)) / (1 + len(null))
    assert stats.upper_p(np.array([observed]), np.array(null))[0] == pytest.approx(expected)


def test_a_value_is_not_in_its_own_null() -> None:
    values, fold = np.array([1.0, 2.0, 3.0, 10.0]), np.array([0, 0, 1, 1])
    assert stats.held_out_p(values, fold).tolist() == [1.0, 1.0, 1 / 3, 1 / 3]


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=40))
def test_benjamini_hochberg_by_its_definition(p: list[float]) -> None:
    q = stats.benjamini_hochberg(np.array(p))
    ordered = sorted(p)
    for i, value in enumerate(p):
        above = [ordered[k] * len(p) / (k + 1) for k in range(len(p)) if ordered[k] >= value]
        assert q[i] == pytest.approx(min(1.0, *above, 1.0))
