"""Named random streams: the same everywhere, and independent of each other."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conceptvec.streams import rng, torch_rng

STREAMS = [
    (0, "sample"),
    (1, "sample"),
    (2**64, "sample"),
    (0, "sample", 0),
    (0, "sample", 1),
    (0, "sample", 0, 1),
    (0, "sample", 1, 0),
    (0, "sample", 10),
    (0, "sample 1"),
    (0, "null"),
]


def of_numpy(*stream) -> list[float]:
    return rng(*stream).standard_normal(4).tolist()


def of_torch(*stream) -> list[float]:
    return torch.randn(4, generator=torch_rng(*stream)).tolist()


@pytest.mark.parametrize("draw", [of_numpy, of_torch])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_repeats(draw, stream) -> None:
    assert draw(*stream) == draw(*stream)


@pytest.mark.parametrize("draw", [of_numpy, of_torch])
@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(STREAMS, 2)))
def test_streams_differ(draw, one, other) -> None:
    assert draw(*one) != draw(*other)


def test_numpys_whole_numbers_are_numbers() -> None:
    assert of_numpy(0, "sample", np.int32(7)) == of_numpy(0, "sample", 7)


@pytest.mark.whole
def test_a_stream_is_the_same_in_another_process() -> None:
    """No hash that Python salts."""
    program = "from conceptvec.streams import rng; print(rng(3, 'x', 4).integers(2**40))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) == rng(3, "x", 4).integers(2**40)


@given(seed=st.integers(0, 2**70), numbers=st.lists(st.integers(0, 2**70), max_size=3))
def test_any_seed_and_numbers_serve(seed: int, numbers: list[int]) -> None:
    assert 0 <= rng(seed, "x", *numbers).random() < 1
    assert 0 <= float(torch.rand(1, generator=torch_rng(seed, "x", *numbers))) < 1


def test_neighbouring_streams_are_uncorrelated() -> None:
    draws = np.stack([rng(0, "x", number).standard_normal(400) for number in range(60)])
    correlations = np.corrcoef(draws)[np.triu_indices(60, 1)]
    assert abs(correlations.mean()) < 0.005
    assert np.abs(correlations).max() < 0.25
