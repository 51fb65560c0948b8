"""Intervals against simulation and known values."""

from __future__ import annotations

import numpy as np
import pytest

from conceptvec.validation.statistics import Sample, null_p, selectivity_interval, wilson


@pytest.mark.whole
def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(300):
        stream = np.random.default_rng(trial)
        own = Sample(stream.normal(0.3, 0.2, 40), np.arange(40))
        other = Sample(stream.normal(0.1, 0.2, 40), 100 + np.arange(40))
        low, high = selectivity_interval(own, [other], stream)
        covered += low <= 0.2 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_every_replicate_takes_its_own_larger_of_the_two() -> None:
    """Two equal noisy controls: their maximum lies above either mean, so the interval moves down."""
    stream = np.random.default_rng(1)
    own = Sample(stream.normal(0.3, 0.1, 40), np.arange(40))
    noisy = [Sample(stream.normal(0, 0.5, 40), 100 * (i + 1) + np.arange(40)) for i in range(2)]
    noisy = [Sample(s.drops - s.drops.mean(), s.documents) for s in noisy]
    both = selectivity_interval(own, noisy, np.random.default_rng(2))
    one = selectivity_interval(own, noisy[:1], np.random.default_rng(2))
    assert both[1] < one[1]


def test_positions_of_one_document_stand_or_fall_together() -> None:
    """Forty positions of two documents are as uncertain as two."""
    drops = np.repeat([0.0, 1.0], 20)
    other = Sample(np.zeros(2), np.array([8, 9]))
    together = Sample(drops, np.repeat([0, 1], 20))
    apart = Sample(drops, np.arange(10, 50))
    wide = selectivity_interval(together, [other], np.random.default_rng(3))
    narrow = selectivity_interval(apart, [other], np.random.default_rng(3))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_monte_carlo_p() -> None:
    nulls = np.arange(99.0)
    assert null_p(1000.0, nulls) == 0.01
    assert null_p(-1.0, nulls) == 1.0


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(0, 300, 0.0, 0.01264), (5, 100, 0.02154, 0.11175)]
)
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=2e-4)
    assert wilson(0, 0) == (0.0, 1.0)
