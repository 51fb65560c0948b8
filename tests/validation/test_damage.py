"""Damage by addition against a real edit of the weight column and an ordinary forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from conceptvec.concepts import Prompt
from conceptvec.errors import RequestError, RunError
from conceptvec.model.checkpoint import FAMILIES
from conceptvec.validation.damage import Damage, damages
from conceptvec.validation.engine import Engine, split_answer
from tests.conftest import make_hf, wrap

PROMPTS = [
    Prompt("w1 w2 w3", " dog"), Prompt("w4", " cat"), Prompt("w5 w6 w7 w8 w9 w10 w11 w12", " cow"),
    Prompt("w1 w2 w3 w4 w5 w6", " red blue"), Prompt("w9 w8 w7", " zoo"), Prompt("w3 w3", " fox"),
]  # fmt: skip
# transformers 4.50 does not know Qwen 3 yet.
FAMILIES = [f for f in FAMILIES if f in transformers.models.auto.configuration_auto.CONFIG_MAPPING]


@torch.inference_mode()
def brute(model, prompt: Prompt) -> float:
    """Mean log-probability of the answer by an ordinary forward pass of one unpadded sequence."""
    ids, start = split_answer(model, prompt)
    logits = model.hf(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(np.mean([logits[i - 1, ids[i]] for i in range(start, len(ids))]))


def edited(model, layer: int, neuron: int, change: torch.Tensor) -> list[float]:
    """The same after a real edit of the column, undone afterwards."""
    weight = model.layers[layer].mlp.down_proj.weight
    keep = weight.detach().clone()
    with torch.no_grad():
        weight[:, neuron] += change
    try:
        return [brute(model, p) for p in PROMPTS]
    finally:
        with torch.no_grad():
            weight.copy_(keep)


@pytest.mark.parametrize("family", FAMILIES)
def test_damage_equals_weight_edit(family: str, tiny_of) -> None:
    model = tiny_of(family)
    everything = range(len(PROMPTS))
    for layer in range(model.n_layers):
        neurons = [3, 11]
        vectors = model.value_vectors(layer).clone()
        rows = [d for n in neurons for kind in ("zero", "noise")
                for d in damages(model, layer, n, kind, 0.0, 2, 1.0, None, 5)]  # fmt: skip
        changes = [(d.neuron, -vectors[d.neuron] if d.scale < 0 else d.direction) for d in rows]
        expected = np.array([edited(model, layer, n, c) for n, c in changes])
        untouched = [brute(model, p) for p in PROMPTS]
        for size in (1, 4, 100):
            engine = Engine(model, PROMPTS, size)
            state = engine.state(layer, neurons)
            found = engine.measure(state, rows, everything)
            assert np.abs(found - expected).max() < 1e-4
            clean = engine.measure(state, [Damage(3, 0.0, 0.0, vectors[3])], everything)
            assert np.abs(clean[0] - untouched).max() < 1e-5
            # The damages do something, so that agreement means something.
            assert np.abs(found - clean).max() > 1e-3


def test_mean_ablation_replaces_the_activation(tiny) -> None:
    """Mean ablation equals an ordinary pass in which the neuron's activation is a constant."""
    engine, layer, neuron, mean = Engine(tiny, PROMPTS, 50), 1, 4, 0.37
    found = engine.measure(
        engine.state(layer, [neuron]),
        damages(tiny, layer, neuron, "mean", mean, 1, 1, None, 0),
        range(6),
    )

    def fix(_, args):
        a = args[0].clone()
        a[..., neuron] = mean
        return (a, *args[1:])

    handle = tiny.layers[layer].mlp.down_proj.register_forward_pre_hook(fix)
    expected = [brute(tiny, p) for p in PROMPTS]
    handle.remove()
    assert np.abs(found[0] - expected).max() < 1e-4


def test_noise_is_on_the_sphere_and_reproducible(tiny) -> None:
    norm = float(tiny.value_vectors(2)[5].norm())
    one = damages(tiny, 2, 5, "noise", 0.0, 3, 2.0, None, 7)
    again = damages(tiny, 2, 5, "noise", 0.0, 3, 2.0, None, 7)
    assert all(abs(float(d.direction.norm()) / norm - 2) < 1e-5 for d in one)
    assert all(torch.equal(a.direction, b.direction) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0].direction, one[1].direction)
    absolute = damages(tiny, 2, 5, "noise", 0.0, 200, 2.0, 0.1, 7)
    assert abs(float(torch.stack([d.direction for d in absolute]).std()) - 0.1) < 0.005


def test_divergence_on_neutral_prompts(tiny) -> None:
    engine = Engine(tiny, PROMPTS, 4)
    neutral = [1, 4]
    state = engine.state(0, [2])
    zero = damages(tiny, 0, 2, "zero", 0.0, 1, 1, None, 0)
    pairs = np.array([(0, p) for p in range(6)])
    _, kl = engine.measure_pairs(state, zero, pairs, engine.clean_distribution(neutral))
    assert np.isnan(kl).tolist() == [p not in neutral for p in range(6)]
    weight = tiny.layers[0].mlp.down_proj.weight
    for p in neutral:
        ids, start = split_answer(tiny, PROMPTS[p])
        with torch.inference_mode():
            before = (
                tiny.hf(input_ids=torch.tensor([ids])).logits[0, start - 1].double().log_softmax(0)
            )
            keep = weight[:, 2].clone()
            weight[:, 2] = 0
            after = (
                tiny.hf(input_ids=torch.tensor([ids])).logits[0, start - 1].double().log_softmax(0)
            )
            weight[:, 2] = keep
        assert abs(kl[p] - float((before.exp() * (before - after)).sum())) < 1e-5


def test_nothing_is_written(tiny) -> None:
    before = tiny.fingerprint
    engine = Engine(tiny, PROMPTS, 5)
    engine.measure(
        engine.state(1, [0]), damages(tiny, 1, 0, "noise", 0.0, 2, 4.0, None, 0), range(6)
    )
    assert wrap(tiny.hf).fingerprint == before
    assert not tiny.layers[1].mlp._forward_hooks


def test_broken_weights_are_an_error_that_names_the_layer() -> None:
    hf = make_hf()
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="layer 2"):
        Engine(wrap(hf), PROMPTS, 5).state(2, [0])


def test_answer_without_a_token_is_refused(tiny) -> None:
    with pytest.raises(RequestError, match="adds no token"):
        split_answer(tiny, Prompt("w1 w2", ""))
