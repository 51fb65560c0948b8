"""The slow exact way is an ordinary pass with a real edit of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conceptvec import RunError
from conceptvec.model.network import Model
from conceptvec.model.reference import Edit, agreement, exact_readouts, reference
from tests.conftest import KNOWN
from tests.model.forward import TEXTS, end_log_probability

CPU = torch.device("cpu")


def ends(model: Model) -> list[tuple[list[int], int]]:
    """The texts' ids, and the place of their last token."""
    return [(ids, len(ids) - 1) for ids in map(model.encode, TEXTS)]


def passes(model: Model) -> np.ndarray:
    """What ordinary float32 passes give for the ends."""
    return np.array([end_log_probability(model.hf, *end) for end in ends(model)])


@pytest.mark.parametrize("family", KNOWN)
def test_the_reference_is_a_real_edit(family: str, tiny_of) -> None:
    """It moves with an edit of the weights, by the same amount, and leaves nothing behind."""
    model = tiny_of(family)
    change = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(1))
    edits = [Edit(0, 3, torch.zeros_like(change)), Edit(2, 5, change)]
    clean, edited = reference(model, ends(model), edits)
    assert np.abs(clean - passes(model)).max() < 1e-5
    with torch.no_grad():
        model.layers[2].mlp.down_proj.weight[:, 5] += change
    assert np.abs(edited - passes(model)).max() < 1e-5
    assert np.abs(edited - clean).max() > 1e-2


def test_the_reference_leaves_nothing_behind(tiny) -> None:
    before = tiny.fingerprint
    reference(tiny, ends(tiny), [Edit(1, 4, torch.ones(tiny.hidden_size))])
    del tiny.fingerprint  # is kept once it is computed
    assert tiny.fingerprint == before


def test_the_reference_bounds_logits_where_the_model_does(tiny_of) -> None:
    model = tiny_of("gemma2")
    assert model.softcap == model.hf.config.final_logit_softcapping
    free = reference(model, ends(model), [Edit(0, 0, torch.zeros(model.hidden_size))])
    model.softcap = 0.5
    bound = reference(model, ends(model), [Edit(0, 0, torch.zeros(model.hidden_size))])
    assert np.abs(bound + np.log(model.vocab_size)).max() < 1.1  # within the bound of uniform
    assert np.abs(bound - free).max() > 0.1


def test_exact_readouts_do_not_depend_on_the_chunks(tiny, monkeypatch) -> None:
    states = torch.randn(3, tiny.hidden_size, dtype=torch.float64)
    whole = exact_readouts(tiny, states)
    assert torch.equal(whole, states @ tiny.unembedding.double().T)
    monkeypatch.setattr("conceptvec.model.reference.ROWS", 7)
    assert torch.allclose(exact_readouts(tiny, states), whole, rtol=1e-12)


@pytest.mark.parametrize("difference", [0.2, float("nan"), float("inf")])
def test_a_difference_that_is_not_allowed_is_an_error(difference: float) -> None:
    with pytest.raises(RunError, match="cpu computes wrongly: the readout of a sample"):
        agreement("readout", 3, difference, 0.1, "nats", CPU)


def test_a_difference_that_is_allowed_is_written_down() -> None:
    record = agreement("readout", 3, 0.1, 0.1, "nats", CPU)
    assert record == {"rows": 3, "largest_difference": 0.1, "allowed": 0.1, "unit": "nats"}
