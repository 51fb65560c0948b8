"""The two poles of a layer's neurons."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conceptvec.extraction import projection
from conceptvec.extraction.poles import (
    Projections,
    make_projector,
    null_directions,
    project_neurons,
    sample_neurons,
)
from conceptvec.model.network import Model

NEURONS = np.array([3, 7, 20], np.int32)


def projected(model: Model, batch_size: int = 16, fold: str = "both") -> Projections:
    projector, _, _ = make_projector(model, 10)
    return project_neurons(model, projector, 1, NEURONS, fold=fold, batch_size=batch_size)


@pytest.mark.parametrize("fold", ["both", "final", "none"])
def test_poles_are_the_ends_of_the_readout(fold: str, tiny) -> None:
    projections = projected(tiny, fold=fold)
    _, _, masked = make_projector(tiny, 10)
    scale = tiny.fold_scale(1, fold).double()
    for row, neuron in enumerate(NEURONS):
        vector = tiny.value_vectors(1)[neuron].double()
        readout = tiny.unembedding.double() @ (scale * vector)
        readout[masked] = torch.nan
        order = [i for i in readout.argsort().tolist() if not masked[i]]
        for sign, best in (("+", order[::-1]), ("-", order)):
            ids, values = projections.pole(sign)
            assert ids[row].tolist() == best[:10]
            assert np.allclose(values[row], readout[best[:10]], atol=1e-6)


def test_norms_are_those_of_the_value_vectors(tiny) -> None:
    norms = tiny.value_vectors(1)[NEURONS].norm(dim=1)
    assert np.allclose(projected(tiny).norms, norms)


def test_memory_that_runs_out_in_the_middle_changes_nothing(tiny, monkeypatch) -> None:
    whole = projected(tiny)
    product, calls = projection._product, []

    def once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return product(*args)

    monkeypatch.setattr(projection, "_product", once)
    halved = projected(tiny)
    for name in ("neurons", "top_ids", "top_values", "bottom_ids", "bottom_values", "norms"):
        assert np.array_equal(getattr(whole, name), getattr(halved, name)), name


def test_the_arrays_are_those_of_the_contract(tiny) -> None:
    arrays = projected(tiny).arrays()
    assert arrays["neurons"].dtype == np.int32
    for name in ("top_ids", "bottom_ids"):
        assert arrays[name].dtype == np.int32
        assert arrays[name].shape == (3, 10)
    for name in ("top_values", "bottom_values", "norms"):
        assert arrays[name].dtype == np.float32
    assert "layer" not in arrays


@pytest.mark.parametrize("most", [None, 24, 100])
def test_all_neurons_are_examined_where_there_are_no_more(most: int | None) -> None:
    assert sample_neurons(2, 24, most, 0).tolist() == list(range(24))


def test_a_sample_depends_on_layer_and_seed_alone() -> None:
    sample = sample_neurons(2, 1000, 100, 5)
    assert sample.tolist() == sorted(set(sample.tolist()))
    assert len(sample) == 100
    assert np.array_equal(sample, sample_neurons(2, 1000, 100, 5))
    assert not np.array_equal(sample, sample_neurons(3, 1000, 100, 5))
    assert not np.array_equal(sample, sample_neurons(2, 1000, 100, 6))


def test_null_directions_have_the_covariance_of_the_layer(tiny) -> None:
    directions = null_directions(tiny, 1, "both", 20_000, 0).double()
    vectors = tiny.readout_directions(1, "both").double()
    expected = vectors.T @ vectors / len(vectors)
    covariance = directions.T @ directions / len(directions)
    assert (covariance - expected).abs().max() < 0.05 * expected.abs().max()
