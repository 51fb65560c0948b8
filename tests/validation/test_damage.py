"""Damage by addition against a real edit of the weight column and an ordinary forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import transformers

from conceptvec.concepts import Prompt
from conceptvec.errors import RequestError, RunError
from conceptvec.model.checkpoint import FAMILIES as ALL_FAMILIES
from conceptvec.validation.damage import DRAWS, KINDS, Damage, Damager
from conceptvec.validation.engine import Engine, Text
from conceptvec.validation.transfer import split_answer
from tests.conftest import make_hf, wrap

# transformers 4.50 does not know Qwen 3 yet.
KNOWN_FAMILIES = transformers.models.auto.configuration_auto.CONFIG_MAPPING
FAMILIES = [family for family in ALL_FAMILIES if family in KNOWN_FAMILIES]


def texts() -> list[Text]:
    """Texts of different lengths; the fourth has an answer of two tokens."""
    return [
        Text([2, 10, 11, 12, 210], 4),
        Text([2, 13, 211], 2),
        Text([2, 14, 15, 16, 17, 18, 19, 20, 21, 212], 9),
        Text([2, 10, 11, 12, 13, 14, 15, 222, 223], 7),
        Text([2, 18, 17, 16, 230], 4),
    ]


@torch.inference_mode()
def brute(model, text: Text) -> float:
    """Mean log-probability of the answer by an ordinary forward pass of one unpadded sequence."""
    logits = model.hf(input_ids=torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
    answer = range(text.start, len(text.ids))
    return float(np.mean([logits[i - 1, text.ids[i]] for i in answer]))


@contextmanager
def edited(model, layer: int, neuron: int, column: torch.Tensor) -> Iterator[None]:
    """Within the context the column of ``down_proj`` is another one."""
    weight = model.layers[layer].mlp.down_proj.weight
    keep = weight.detach().clone()
    with torch.no_grad():
        weight[:, neuron] = column
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(keep)


def every_pair(damages: int, n_texts: int) -> np.ndarray:
    return np.array([(d, t) for d in range(damages) for t in range(n_texts)], int)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["zero", "rotate", "noise"])
def test_damage_equals_an_edit_of_the_weight(family: str, kind: str, tiny_of) -> None:
    model, everything = tiny_of(family), texts()
    for layer in range(model.n_layers):
        vector = model.value_vectors(layer)[3].clone()
        damages = Damager(5)(kind, vector, (layer, 3))
        columns = [vector + d.direction if d.scale > 0 else 0 * vector for d in damages]
        expected = []
        for column in columns:
            with edited(model, layer, 3, column):
                expected.append([brute(model, text) for text in everything])
        untouched = [brute(model, text) for text in everything]
        for size in (1, 4, 100):
            engine = Engine(model, everything, size)
            pairs = every_pair(len(damages), len(everything))
            log_p = engine.measure(engine.state(layer, [3, 11]), damages, pairs).log_p
            measured = log_p.reshape(len(damages), -1)
            assert np.abs(measured - expected).max() < 1e-4
            # The damage does something, so that agreement means something.
            assert np.abs(measured - untouched).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_passes_equal_ordinary_ones(family: str, tiny_of) -> None:
    model, everything = tiny_of(family), texts()
    expected = [brute(model, text) for text in everything]
    for size in (1, 3, 100):
        engine = Engine(model, everything, size)
        assert np.abs(engine.clean(range(5)).log_p - expected).max() < 1e-5
        nothing = [Damage(4, 0.0, 0.0, torch.zeros(model.hidden_size))]
        replayed = engine.measure(engine.state(1, [4]), nothing, every_pair(1, 5)).log_p
        assert np.abs(replayed - expected).max() < 1e-5


def test_ranks_count_the_likelier_tokens(tiny) -> None:
    engine = Engine(tiny, texts(), 2)
    better = engine.clean(range(5)).better
    for text, found in zip(texts(), better, strict=True):
        with torch.inference_mode():
            logits = tiny.hf(input_ids=torch.tensor([text.ids])).logits[0]
        answer = range(text.start, len(text.ids))
        expected = max(int((logits[i - 1] > logits[i - 1, text.ids[i]]).sum()) for i in answer)
        assert found == expected


def test_mean_ablation_replaces_the_activation(tiny) -> None:
    """Mean ablation equals an ordinary pass in which the neuron's activation is a constant."""
    layer, neuron, mean = 1, 4, 0.37
    engine = Engine(tiny, texts(), 50)
    damages = Damager(0)("mean", tiny.value_vectors(layer)[neuron].clone(), (layer, neuron), mean)
    measured = engine.measure(engine.state(layer, [neuron]), damages, every_pair(1, 5)).log_p

    def fix(_, args):
        a = args[0].clone()
        a[..., neuron] = mean
        return (a, *args[1:])

    handle = tiny.layers[layer].mlp.down_proj.register_forward_pre_hook(fix)
    expected = [brute(tiny, text) for text in texts()]
    handle.remove()
    assert np.abs(measured - expected).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_damages_are_reproducible_and_differ_by_draw(kind: str, tiny) -> None:
    vector = tiny.value_vectors(2)[5].clone()
    first, again = (Damager(7)(kind, vector, (2, 5), 0.1) for _ in range(2))
    assert len(first) == (DRAWS if kind in ("rotate", "noise") else 1)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.direction, other.direction)
    if len(first) > 1:
        assert not torch.equal(first[0].direction, first[1].direction)
        elsewhere = Damager(7)(kind, vector, (2, 6), 0.1)
        assert not torch.equal(first[0].direction, elsewhere[0].direction)


def test_sizes_of_random_damages(tiny) -> None:
    vector = tiny.value_vectors(2)[5].clone()
    norm = float(vector.norm())
    for damage in Damager(7)("noise", vector, (2, 5)):
        assert abs(float(damage.direction.norm()) / norm - 2) < 1e-5
    for damage in Damager(7)("rotate", vector, (2, 5)):
        assert abs(float((vector + damage.direction).norm()) / norm - 1) < 1e-5
    absolute = [Damager(seed, 0.1)("noise", vector, (2, 5)) for seed in range(70)]
    elements = torch.stack([damage.direction for draws in absolute for damage in draws])
    assert abs(float(elements.std()) - 0.1) < 0.005


def test_divergence_from_the_clean_distribution(tiny) -> None:
    engine, wanted = Engine(tiny, texts(), 4), [1, 4]
    vector = tiny.value_vectors(0)[2].clone()
    zero = Damager(0)("zero", vector, (0, 2))
    reference = engine.clean_distribution(wanted)
    answers = engine.measure(engine.state(0, [2]), zero, every_pair(1, 5), reference)
    assert np.isnan(answers.divergence).tolist() == [i not in wanted for i in range(5)]
    for i in wanted:
        text = texts()[i]
        ids = torch.tensor([text.ids])
        with torch.inference_mode():
            before = tiny.hf(input_ids=ids).logits[0, text.start - 1].double().log_softmax(0)
            with edited(tiny, 0, 2, 0 * vector):
                after = tiny.hf(input_ids=ids).logits[0, text.start - 1].double().log_softmax(0)
        expected = float((before.exp() * (before - after)).sum())
        assert abs(answers.divergence[i] - expected) < 1e-5


def test_nothing_is_written(tiny) -> None:
    before = tiny.fingerprint
    engine = Engine(tiny, texts(), 5)
    damages = Damager(0)("noise", tiny.value_vectors(1)[0].clone(), (1, 0))
    engine.measure(engine.state(1, [0]), damages, every_pair(3, 5))
    assert wrap(tiny.hf).fingerprint == before
    assert not tiny.layers[1].mlp._forward_hooks


def test_broken_weights_are_an_error_that_names_the_layer() -> None:
    hf = make_hf()
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="layer 2"):
        Engine(wrap(hf), texts(), 5).state(2, [0])


def test_answer_without_a_token_is_refused(tiny) -> None:
    with pytest.raises(RequestError, match="adds no token"):
        split_answer(tiny, Prompt("w1 w2", ""))


def test_a_prompt_and_its_answer_as_tokens(tiny) -> None:
    text = split_answer(tiny, Prompt("w1 w2", " dog"))
    assert text.start == 2
    assert tiny.tokenizer.convert_ids_to_tokens(list(text.ids[text.start :])) == ["▁dog"]
