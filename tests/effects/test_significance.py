"""p-values: planted uses are found; vectors without timing, and wrong concepts, are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptvec.effects import significance as sig
from conceptvec.effects.significance import Columns, Nulls
from conceptvec.effects.statistics import Contrast, others
from conceptvec.effects.use import Use

C, N_WORDS, DRAWS = 6, 240, 12
NAMES = [f"concept {number}" for number in range(C)]


def compared() -> Contrast:
    return Contrast(np.random.default_rng(0).integers(0, C, N_WORDS), others(C))


def firing(rng: np.random.Generator, n: int) -> np.ndarray:
    """Sparse activations without any relation to the words."""
    return rng.exponential(size=(N_WORDS, n)) * (rng.random((N_WORDS, n)) < 0.3)


def columns(rng: np.random.Generator, push: np.ndarray, active: np.ndarray) -> Columns:
    """Vectors that help words by `push` when their neuron fires more than on average, and noise."""
    noise = 0.01 * rng.standard_t(3, push.shape)
    return Columns(
        zero=0.05 * push * active + noise,
        mean=0.05 * push * (active - active.mean(0)) + noise,
        firing=active,
        readout=push,
    )


def planted(
    n_timed: int, n_idle: int, seed: int = 1
) -> tuple[Columns, np.ndarray, Columns, np.ndarray]:
    """Candidates that promote their concepts' words; the first fire before them, the others anywhere."""
    rng = np.random.default_rng(seed)
    n = n_timed + n_idle
    concept = np.arange(n) % C
    own = compared().concept[:, None] == concept
    push = own * rng.uniform(0, 2, own.shape) + 0.1 * rng.standard_normal(own.shape)
    active = firing(rng, n)
    active[:, :n_timed] += 3 * own[:, :n_timed] * rng.random((N_WORDS, n_timed))
    pole = np.repeat(np.arange(n), DRAWS)
    moved = columns(rng, push[:, pole], firing(rng, len(pole)))
    return columns(rng, push, active), concept, moved, pole


def nulls_of(candidates: Columns, concept: np.ndarray, moved: Columns, pole: np.ndarray) -> Nulls:
    """The nulls of a run, from all moved vectors but the first of every pole."""
    words = compared()
    stream = np.random.default_rng(7)
    effect, timing = sig.permuted_nulls(candidates, concept, words, stream, 60)
    kept = np.flatnonzero(np.arange(len(pole)) % DRAWS > 0)
    t = sig.timed_statistic(moved.take(kept), words)
    own = t[concept[pole[kept]], np.arange(len(kept))]
    return Nulls(effect, np.sort(own), timing)


def values(uses: list[Use], name: str) -> np.ndarray:
    return np.array([getattr(use, name) for use in uses])


def test_planted_uses_are_found_and_controls_are_not() -> None:
    candidates, concept, moved, pole = planted(40, 60)
    nulls, words = nulls_of(candidates, concept, moved, pole), compared()
    p = values(sig.uses_of(candidates, concept, words, nulls, NAMES), "p")
    q = sig.benjamini_hochberg(p)
    assert (q[:40] <= sig.MAX_Q).mean() > 0.9
    assert (q[40:] <= sig.MAX_Q).mean() <= 0.1

    # Controls at the candidates' own cut-off: moved vectors outside the null, and wrong concepts.
    limit = sig.cut_off(p, q)
    held_out = np.arange(0, len(pole), DRAWS)
    of_moved = sig.uses_of(moved.take(held_out), concept, words, nulls, NAMES)
    assert (values(of_moved, "p") <= limit).mean() <= 0.05
    wrong = sig.uses_of(candidates, (concept + 1) % C, words, nulls, NAMES)
    assert (values(wrong, "p") <= limit).mean() <= 0.05


def test_zero_ablation_alone_would_take_idle_vectors_for_used() -> None:
    """Why the timing is tested: whoever fires a vector, its words lose without it."""
    candidates, concept, moved, pole = planted(0, 100)
    as_zero = Columns(candidates.zero, candidates.zero, candidates.firing, candidates.readout)
    moved = Columns(moved.zero, moved.zero, moved.firing, moved.readout)
    nulls = nulls_of(as_zero, concept, moved, pole)
    uses = sig.uses_of(as_zero, concept, compared(), nulls, NAMES)
    assert (sig.benjamini_hochberg(values(uses, "p_words")) <= sig.MAX_Q).mean() > 0.3
    assert (sig.benjamini_hochberg(values(uses, "p")) <= sig.MAX_Q).mean() <= 0.05


def test_permuted_words_give_uniform_p_on_noise() -> None:
    candidates, concept, _, _ = planted(0, 400)
    rng = np.random.default_rng(5)
    noise = 10 ** rng.uniform(-4, -1, 400) * rng.standard_t(3, candidates.mean.shape)
    plain = Columns(noise, noise, candidates.firing, candidates.readout)
    null, _ = sig.permuted_nulls(plain, concept, compared(), np.random.default_rng(0), 60)
    observed = sig.statistic(plain, compared())[concept, np.arange(400)]
    p = sig.p_against(null, observed)
    assert 0.03 <= (p <= 0.05).mean() <= 0.07
    assert 0.4 <= (p <= 0.5).mean() <= 0.6


def test_timing_is_relative_and_rests_where_a_pole_never_fires() -> None:
    candidates, _, _, _ = planted(3, 3)
    quiet = Columns(candidates.zero, candidates.mean, 0 * candidates.firing, candidates.readout)
    louder = Columns(candidates.zero, candidates.mean, 50 * candidates.firing, candidates.readout)
    words = compared()
    assert (sig.firing_statistic(quiet, words) == 0).all()
    expected = sig.firing_statistic(candidates, words)
    assert np.allclose(sig.firing_statistic(louder, words), expected)
    together = sig.statistic(candidates, words) + expected
    assert np.allclose(sig.timed_statistic(candidates, words), together)


def test_what_is_said_of_a_pole_by_hand() -> None:
    candidates, concept, moved, pole = planted(4, 0)
    words = compared()
    nulls = nulls_of(candidates, concept, moved, pole)
    uses = sig.uses_of(candidates, concept, words, nulls, NAMES)
    for row, use in enumerate(uses):
        judged, means = {}, {}
        for c in range(C):
            inside = np.flatnonzero(words.concept == c)
            order = sorted(inside, key=lambda w, row=row: -candidates.readout[w, row])
            judged[c] = order[: -(-len(inside) // 3)]
            means[c] = candidates.mean[judged[c], row].mean()
        own = concept[row]
        rest = {c: value for c, value in means.items() if c != own}
        strongest = max(rest, key=rest.__getitem__)
        each = candidates.mean[judged[own], row]
        assert use.mean == pytest.approx(means[own])
        assert use.largest_other == pytest.approx(rest[strongest])
        assert use.largest_other_concept == NAMES[strongest]
        assert use.words == sum(x > 0 and x >= 0.1 * means[own] for x in each)
        without = (each.sum() - each.max()) / (len(each) - 1)
        assert use.without_strongest_word == pytest.approx(without)
        assert use.p == max(use.p_words, use.p_moved)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(-1, 7))
def test_p_counts_what_is_at_least_as_large(null: list[int], observed: int) -> None:
    expected = (1 + sum(x >= observed for x in null)) / (1 + len(null))
    assert sig.p_against(np.sort(null), np.array([observed]))[0] == pytest.approx(expected)


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=40))
def test_benjamini_hochberg_by_its_definition(p: list[float]) -> None:
    q = sig.benjamini_hochberg(np.array(p))
    ordered = sorted(p)
    for i, value in enumerate(p):
        above = [ordered[k] * len(p) / (k + 1) for k in range(len(p)) if ordered[k] >= value]
        assert q[i] == pytest.approx(min(1.0, *above, 1.0))


def test_the_cut_off_is_the_largest_p_that_is_used() -> None:
    p = np.array([0.001, 0.02, 0.03, 0.9])
    assert sig.cut_off(p, sig.benjamini_hochberg(p)) == 0.03
    assert sig.cut_off(p[3:], p[3:]) == -1.0
