"""Several vectors damaged together, and what the model writes under damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conceptvec.errors import RequestError, RunError
from conceptvec.validation.damage import Damage, continuation, damaging, removal
from conceptvec.validation.engine import Engine
from conceptvec.validation.sets import measure_sets, random_set
from tests.conftest import make_hf, wrap
from tests.validation.test_damage import brute, every_pair, texts
from tests.validation.test_measure import setting_of


def test_several_layers_damaged_together_equal_an_edit(tiny) -> None:
    engine = Engine(tiny, texts(), 2)
    members = {0: [3, 5], 2: [7]}
    damages = {layer: [removal(tiny, layer, j) for j in of] for layer, of in members.items()}
    damages = {
        layer: [Damage(d.neuron, d.scale, d.shift, d.direction.clone()) for d in of_layer]
        for layer, of_layer in damages.items()
    }
    with damaging(tiny, damages):
        measured = engine.clean(range(5)).log_p
    before = engine.clean(range(5)).log_p
    keep = {layer: tiny.layers[layer].mlp.down_proj.weight.clone() for layer in members}
    with torch.no_grad():
        for layer, of in members.items():
            tiny.layers[layer].mlp.down_proj.weight[:, of] = 0
    expected = Engine(tiny, texts(), 2).clean(range(5)).log_p
    with torch.no_grad():
        for layer, weight in keep.items():
            tiny.layers[layer].mlp.down_proj.weight.copy_(weight)
    assert np.abs(measured - expected).max() < 1e-5
    assert np.abs(measured - before).max() > 1e-5


@pytest.mark.parametrize("sets", [[[(1, 3), (3, 5)], [(2, 8), (3, 1)]], [[(0, 2)], [(3, 4)]]])
def test_drops_of_sets_equal_edits_of_the_weights(sets: list[list[tuple[int, int]]], tiny) -> None:
    """What lies below the lowest damage is computed once, and nothing is lost by that."""
    setting = setting_of(tiny)
    of_concept, others = np.array([3, 7, 13]), np.array([20, 30])
    positions = np.concatenate([of_concept, others])
    drops = measure_sets(sets, of_concept, others, setting)["drop"]

    def log_p() -> np.ndarray:
        return np.array([brute(tiny, setting.text(int(at))) for at in positions])

    clean = log_p()
    for members, measured in zip(sets, drops, strict=True):
        weights = {layer: tiny.layers[layer].mlp.down_proj.weight for layer, _ in members}
        kept = {layer: weight.clone() for layer, weight in weights.items()}
        with torch.no_grad():
            for layer, neuron in members:
                weights[layer][:, neuron] = 0
            expected = clean - log_p()
            for layer, weight in weights.items():
                weight.copy_(kept[layer])
        assert np.abs(measured - expected).max() < 1e-4
        assert np.abs(measured).max() > 1e-4


def test_continuation_is_greedy_and_damage_changes_it(tiny) -> None:
    ids = tiny.encode("w1 w2 w3")
    text, chances = continuation(tiny, ids, {}, 10)
    with torch.inference_mode():
        best = int(tiny.hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert text.split()[0] == tiny.tokenizer.decode([best]).strip()
    assert best == int(chances.argmax())
    assert len(text.split()) <= 10
    assert abs(float(chances.sum()) - 1) < 1e-5
    dog = tiny.unembedding[tiny.tokenizer.get_vocab()["▁dog"]].clone()
    push = Damage(0, 0.0, 50.0, dog)
    assert continuation(tiny, ids, {layer: [push] for layer in range(4)}, 10)[0] != text


def test_nothing_to_continue_is_refused(tiny) -> None:
    with pytest.raises(RequestError, match="empty"):
        continuation(tiny, [], {}, 10)


@pytest.mark.parametrize("part", ["mlp.down_proj", "self_attn.o_proj"])
def test_broken_numbers_above_the_damage_name_their_layer(part: str) -> None:
    hf = make_hf()
    engine = Engine(wrap(hf), texts(), 5)
    state = engine.state(0, [0])
    with torch.no_grad():
        hf.get_submodule(f"model.layers.3.{part}").weight[0, 0] = float("inf")
    with pytest.raises(RunError, match="layer 3.*float16"):
        engine.measure(state, [Damage(0, -1.0, 0.0, torch.ones(32))], every_pair(1, 5))


def test_random_sets_are_like_the_best_and_never_candidates() -> None:
    stream = np.random.default_rng(0)
    likeness = {layer: stream.normal(size=(60, 2)) for layer in (0, 1)}
    best = [(0, 3), (0, 4), (1, 9)]
    taken = {(0, 3), (0, 4), (1, 9), (1, 10)}
    for seed in range(20):
        drawn = random_set(best, taken, likeness, np.random.default_rng(seed))
        assert [layer for layer, _ in drawn] == [0, 0, 1]
        assert len(set(drawn)) == 3
        assert not set(drawn) & taken
