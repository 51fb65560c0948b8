"""Drawing: the probabilities of the logits, in two levels and through rough proposals."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conceptvec.effects import sampling
from conceptvec.effects.sampling import (
    BLOCK,
    TRIES,
    UNIFORMS,
    draw,
    draw_by_proposals,
    drawer,
    logits_of,
    padded,
)
from tests.conftest import make_hf, wrap

FAMILIES = ["gemma3_text", "gemma3", "gemma2", "llama", "mistral", "qwen2", "qwen3"]


def exact(family: str = "gemma3_text", **changes):
    return wrap(make_hf(family, **changes).double(), family)


def counts(logits: torch.Tensor, n: int, seed: int = 0) -> np.ndarray:
    """How often each token comes out of n draws from one row of logits."""
    uniforms = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))
    tokens = draw(logits.repeat(n, 1), uniforms)
    return np.bincount(tokens.numpy(), minlength=len(logits))


@pytest.mark.parametrize("size", [7, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
def test_tokens_are_drawn_with_their_probabilities(size):
    n = 4000
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1)) * 3
    expected = n * torch.softmax(logits.double(), 0).numpy()
    frequent = expected > 5
    observed = counts(logits, n)
    chi2 = ((observed - expected)[frequent] ** 2 / expected[frequent]).sum()
    # Mean and standard deviation of χ² are its degrees of freedom and √(2·df).
    degrees = frequent.sum()
    assert abs(chi2 - degrees) < 5 * np.sqrt(2 * degrees)


def test_drawing_inverts_the_cumulative_distribution_in_order():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    grid = (torch.arange(1000) + 0.5) / 1000
    uniforms = torch.stack([torch.zeros(1000), grid], 1)
    tokens = draw(logits.repeat(1000, 1), uniforms)
    assert torch.equal(tokens, tokens.sort().values)
    assert np.bincount(tokens.numpy()).tolist() == [100, 200, 300, 400]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 3 * BLOCK),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.5, 1 - 2**-24]),
    st.sampled_from([0.0, 0.5, 1 - 2**-24]),
)
def test_a_token_without_probability_is_never_drawn(size, seed, first, second):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, size, generator=generator) * 5
    possible = torch.rand(size, generator=generator) < 0.1
    possible[int(torch.randint(size, (1,), generator=generator))] = True
    logits[:, ~possible] = -torch.inf
    token = draw(logits, torch.tensor([[first, second]]))
    assert possible[token].all()


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1000.0, 0.0, 999.0]])
    tokens = draw(logits.repeat(2, 1), torch.tensor([[0.0, 0.0], [0.0, 0.99]]))
    assert tokens.tolist() == [0, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model(family):
    model = exact(family)
    ids = torch.randint(9, 200, (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = model.decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        expected = model.hf(input_ids=ids).logits[:, -1]
        torch.testing.assert_close(logits_of(model, states), expected.float())


def test_bfloat16_models_give_float32_logits():
    model = wrap(make_hf().bfloat16())
    states = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = states.double() @ model.unembedding.double().T
    logits = logits_of(model, states)
    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def reader(size: int, softcap: float | None = None, seed: int = 0) -> SimpleNamespace:
    """What of a model is needed for drawing; its logits spread as those of a trained model."""
    generator = torch.Generator().manual_seed(seed)
    unembedding = torch.randn(size, 32, generator=generator)
    return SimpleNamespace(unembedding=unembedding, softcap=softcap, vocab_size=size)


def is_distributed_as(observed: np.ndarray, probabilities: np.ndarray) -> bool:
    """Whether χ² over the frequent tokens lies within five of its standard deviations."""
    expected = observed.sum() * probabilities
    frequent = expected > 5
    chi2 = ((observed - expected)[frequent] ** 2 / expected[frequent]).sum()
    degrees = frequent.sum()
    return bool(abs(chi2 - degrees) < 5 * np.sqrt(2 * degrees))


def proposals(model, states: torch.Tensor, rough: torch.Tensor, n: int = 6000) -> np.ndarray:
    """How often each token is drawn from one state (H,)."""
    uniforms = torch.rand(n, UNIFORMS, generator=torch.Generator().manual_seed(2))
    tokens = draw_by_proposals(model, padded(rough), states.expand(n, -1), uniforms)
    return np.bincount(tokens.numpy(), minlength=len(model.unembedding))


@pytest.mark.whole
@pytest.mark.parametrize("size", [200, BLOCK, 3 * BLOCK - 5])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_proposals_give_the_probabilities_of_the_exact_logits(size, softcap):
    model = reader(size, softcap)
    states = torch.randn(32, generator=torch.Generator().manual_seed(1)) * 0.7
    probabilities = logits_of(model, states[None]).double().softmax(1)[0].numpy()
    observed = proposals(model, states, model.unembedding.bfloat16())
    assert is_distributed_as(observed, probabilities)


@pytest.mark.whole
def test_logits_that_are_far_rougher_than_rounding_are_put_right():
    """Logits off by up to the slack: without the correction χ² would be hundreds."""
    model = reader(200)
    states = torch.randn(32, generator=torch.Generator().manual_seed(1)) * 0.7
    rough = logits_of(model, states[None])[0]
    generator = torch.Generator().manual_seed(3)
    error = (torch.rand(200, generator=generator) * 2 - 1) * 0.2
    # A change of the unembedding along the state changes the logits by what is wanted.
    changed = model.unembedding + error[:, None] * states / states.square().sum()
    observed = proposals(model, states, changed.bfloat16(), 20_000)
    assert is_distributed_as(observed, rough.double().softmax(0).numpy())
    assert not is_distributed_as(observed, (rough + error).double().softmax(0).numpy())


def test_padding_is_never_drawn():
    model = reader(BLOCK + 3)
    observed = proposals(model, torch.zeros(32), model.unembedding.bfloat16())
    assert len(observed) == BLOCK + 3
    assert is_distributed_as(observed, np.full(BLOCK + 3, 1 / (BLOCK + 3)))


def test_a_token_is_drawn_even_where_all_proposals_are_refused():
    model = reader(50)
    uniforms = torch.rand(10, UNIFORMS, generator=torch.Generator().manual_seed(0))
    uniforms.view(10, TRIES, 3)[:, :, 2] = 1.0
    rough = padded(model.unembedding.bfloat16())
    tokens = draw_by_proposals(model, rough, torch.randn(10, 32), uniforms)
    assert ((tokens >= 0) & (tokens < 50)).all()


def test_rows_do_not_touch(monkeypatch):
    """The same rows, alone and together, and worked on in parts of any size."""
    model = reader(2 * BLOCK)
    generator = torch.Generator().manual_seed(0)
    states, uniforms = torch.randn(9, 32, generator=generator), torch.rand(9, UNIFORMS)
    rough = padded(model.unembedding.bfloat16())
    together = draw_by_proposals(model, rough, states, uniforms)
    monkeypatch.setattr(sampling, "IN_CACHE", 2 * 2 * BLOCK)
    assert torch.equal(draw_by_proposals(model, rough, states, uniforms), together)
    alone = [
        draw_by_proposals(model, rough, states[i : i + 1], uniforms[i : i + 1]) for i in range(9)
    ]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("has_units", [True, False])
def test_rough_proposals_are_for_large_matrices_and_fast_units(tiny, monkeypatch, has_units):
    precision = torch.bfloat16 if has_units else torch.float32
    monkeypatch.setattr(sampling, "preselection", lambda device: precision)
    assert drawer(tiny).func is sampling._draw_directly
    monkeypatch.setattr(sampling, "SMALLEST", 0)
    chosen = sampling.draw_by_proposals if has_units else sampling._draw_directly
    assert drawer(tiny).func is chosen
