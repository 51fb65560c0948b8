"""The pass against brute force: finite differences of real scalings, plain transformers, every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conceptvec.effects import activity, gradients, rows, sums
from conceptvec.effects.gradients import Gradients
from conceptvec.effects.moved import Moved, draw_moved
from conceptvec.effects.rows import Targets
from conceptvec.model.network import FAMILIES, Model
from conceptvec.records import Pole
from tests.conftest import make_hf, wrap

WORDS, CONCEPTS = 20, 4
STEP = 1e-3


def double(family: str) -> Model:
    model = wrap(make_hf(family).double(), family)
    model.dtype = torch.float64
    return model


def text(model: Model, n: int = 12, seed: int = 0) -> tuple[list[np.ndarray], Targets]:
    """Random passages of 4 to 14 tokens, and targets at half of their positions."""
    rng = np.random.default_rng(seed)
    passages = [
        np.append(2, rng.integers(9, model.vocab_size, rng.integers(3, 14))) for _ in range(n)
    ]
    found = [
        (i, t, ids[t] % WORDS)
        for i, ids in enumerate(passages)
        for t in range(1, len(ids))
        if rng.random() < 0.5
    ]
    passage, position, word = np.array(found).T
    return passages, rows.targets_of(passage, position, word, seed, word % CONCEPTS)


def no_moved() -> Moved:
    return Moved(*np.zeros((6, 0), int))


def unmasked(model: Model) -> torch.Tensor:
    return torch.zeros(model.vocab_size, dtype=torch.bool)


def scan(
    model: Model,
    passages: list[np.ndarray],
    targets: Targets,
    tokens: int = 64,
    layers: Any = None,
    moved: Moved | None = None,
) -> tuple[sums.Effects, activity.Activity]:
    layers = range(model.n_layers) if layers is None else layers
    moved = no_moved() if moved is None else moved
    scan = Gradients(model, layers, unmasked(model), moved, tokens)
    return scan.part(passages, np.arange(len(passages)), targets)


def log_p(model: Model, ids: np.ndarray, position: int) -> torch.Tensor:
    logits = model.hf(input_ids=torch.from_numpy(ids)[None]).logits[0, position - 1]
    return logits.log_softmax(0)[int(ids[position])]


def scaled(model: Model, layer: int, neuron: int, pole: int, factor: float) -> Any:
    """A hook that multiplies a pole's part of one neuron, everywhere but at the first token."""

    def change(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        a = args[0].clone()
        own = a[:, 1:, neuron]
        part = own.clamp(min=0) if pole == 0 else own.clamp(max=0)
        a[:, 1:, neuron] = own + (factor - 1) * part
        return (a,)

    return model.layers[layer].mlp.down_proj.register_forward_pre_hook(change)


@torch.no_grad()
def difference(
    model: Model, ids: np.ndarray, position: int, layer: int, neuron: int, pole: int
) -> float:
    """What scaling the pole's part changes log p by, from 1 − STEP to 1 + STEP, per unit."""
    values = []
    for factor in (1 + STEP, 1 - STEP):
        handle = scaled(model, layer, neuron, pole, factor)
        values.append(float(log_p(model, ids, position)))
        handle.remove()
    return (values[0] - values[1]) / (2 * STEP)


@pytest.mark.whole
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_first_order_is_a_central_difference(family: str) -> None:
    model = double(family)
    passages, targets = text(model)
    effects, _ = scan(model, passages, targets)

    # The strongest effects, and random ones. (Norms and softmax are float32 in every model.)
    strongest = np.argsort(-np.abs(effects.zero), axis=None)[:10]
    random = np.random.default_rng(1).integers(0, effects.zero.size, 15)
    chosen = np.flatnonzero(effects.chosen)
    largest = np.abs(effects.zero).max()
    for place in [*strongest, *random]:
        layer, pole, word, neuron = np.unravel_index(place, effects.zero.shape)
        expected = 0.0
        for i in chosen[targets.word[chosen] == effects.words[word]]:
            ids, position = passages[targets.passage[i]], int(targets.position[i])
            expected += difference(model, ids, position, int(layer), int(neuron), int(pole))
        assert abs(effects.zero.flat[place] - expected) <= 1e-3 * largest


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_float32_agrees_with_float64(family: str) -> None:
    exact, model = double(family), wrap(make_hf(family), family)
    passages, targets = text(model)
    expected, _ = scan(exact, passages, targets)
    got, _ = scan(model, passages, targets)
    assert np.array_equal(got.chosen, expected.chosen)
    for name in ("zero", "gradient", "firing"):
        one, other = getattr(got, name), getattr(expected, name)
        assert np.abs(one - other).max() <= 1e-4 * np.abs(other).max(), name


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2", "mistral"])
@pytest.mark.parametrize("tokens", [1, 30, 1000])
def test_batches_and_padding_change_nothing(family: str, tokens: int) -> None:
    model = wrap(make_hf(family), family)
    passages, targets = text(model, 20)
    expected, counted = scan(model, passages, targets, 64)
    got, seen = scan(model, passages, targets, tokens)
    assert np.array_equal(got.words, expected.words)
    assert np.array_equal(got.rows, expected.rows)
    for name in ("zero", "gradient", "firing", "log_p"):
        one, other = getattr(got, name), getattr(expected, name)
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max(), name
    assert np.allclose(
        seen.total, counted.total, rtol=1e-5, atol=1e-5 * np.abs(counted.total).max()
    )
    assert np.array_equal(seen.positive, counted.positive)


def test_padding_with_another_batch_changes_nothing(tiny: Model, monkeypatch: Any) -> None:
    """Long and short passages in one batch, whatever they ask for, against each alone."""
    passages, targets = text(tiny, 10)
    expected, _ = scan(tiny, passages, targets, 1)
    everything = lambda order, start, *_: order[start:]
    monkeypatch.setattr(rows, "batch_from", everything)
    got, _ = scan(tiny, passages, targets)
    assert np.abs(got.zero - expected.zero).max() <= 1e-5 * np.abs(expected.zero).max()


def test_parts_add_up(tiny: Model) -> None:
    passages, targets = text(tiny, 20)
    whole, counted = scan(tiny, passages, targets)
    scanner = Gradients(tiny, range(tiny.n_layers), unmasked(tiny), no_moved(), 64)
    pieces = []
    for numbers in rows.parts_of(20, 7):
        inside = targets.at(np.isin(targets.passage, numbers))
        pieces.append(scanner.part([passages[i] for i in numbers], numbers, inside))
    total = sums.add([effects for effects, _ in pieces])
    seen = activity.add([part for _, part in pieces])
    for name in ("words", "rows", "occurrences", "chosen", "better"):
        assert np.array_equal(getattr(total, name), getattr(whole, name)), name
    assert np.abs(total.zero - whole.zero).max() <= 1e-5 * np.abs(whole.zero).max()
    assert np.array_equal(seen.reached, counted.reached)
    assert np.array_equal(seen.context_at, counted.context_at)


def test_records_survive_their_arrays(tiny: Model) -> None:
    passages, targets = text(tiny)
    effects, seen = scan(tiny, passages, targets)
    stored = effects.arrays()
    again = sums.Effects.of_arrays(stored)
    for name in sums.PLAIN:
        assert np.array_equal(getattr(again, name), getattr(effects, name)), name
    for name in sums.LAYERED:
        one, other = getattr(again, name), getattr(effects, name)
        largest = np.abs(other).max(-1, keepdims=True)
        assert (np.abs(one - other) <= 2**-11 * np.abs(other) + 2**-24 * largest).all(), name
    # Stored again the bytes are the same: a resumed run and a fresh one agree.
    for name, values in again.arrays().items():
        assert np.array_equal(values, stored[name]), name
    again = activity.Activity.of_arrays(seen.arrays())
    for name in vars(seen):
        assert np.array_equal(getattr(again, name), getattr(seen, name)), name


def test_some_layers_are_those_of_all(tiny: Model) -> None:
    passages, targets = text(tiny)
    whole, _ = scan(tiny, passages, targets)
    some, _ = scan(tiny, passages, targets, layers=[1, 3])
    assert np.abs(some.zero - whole.zero[[1, 3]]).max() <= 1e-6 * np.abs(whole.zero).max()


def test_known_and_log_p_by_plain_transformers(tiny: Model) -> None:
    passages, targets = text(tiny)
    masked = unmasked(tiny)
    masked[::3] = True
    effects, _ = Gradients(tiny, [0, 2], masked, no_moved(), 64).part(
        passages, np.arange(len(passages)), targets
    )
    for i in range(0, len(targets), 5):
        ids, position = passages[targets.passage[i]], int(targets.position[i])
        with torch.no_grad():
            logits = tiny.hf(input_ids=torch.from_numpy(ids)[None]).logits[0, position - 1]
        own = int(ids[position])
        assert effects.better[i] == int(((logits > logits[own]) & ~masked).sum())
        assert effects.log_p[i] == pytest.approx(float(logits.log_softmax(0)[own]), abs=1e-5)


def test_unknown_words_become_no_rows(tiny: Model, monkeypatch: Any) -> None:
    monkeypatch.setattr(rows, "KNOWN_BELOW", 60)
    passages, targets = text(tiny)
    effects, _ = scan(tiny, passages, targets)
    assert (effects.better >= 60).any()
    assert (effects.better[effects.chosen] < 60).all()
    expected, _ = rows.choose(targets, effects.better < 60)
    assert np.array_equal(np.flatnonzero(effects.chosen), np.sort(expected))


def test_firing_is_the_activation_before_the_word(tiny: Model) -> None:
    passages, targets = text(tiny)
    effects, _ = scan(tiny, passages, targets)
    expected = np.zeros_like(effects.firing)
    for i in np.flatnonzero(effects.chosen):
        ids, position = passages[targets.passage[i]], int(targets.position[i])
        a = activations(tiny, ids)[:, position - 1]
        word = effects.index(targets.word[i])
        expected[:, 0, word] += a.clip(min=0)
        expected[:, 1, word] += (-a).clip(min=0)
    assert np.allclose(effects.firing, expected, atol=1e-5 * expected.max())


@torch.no_grad()
def activations(model: Model, ids: np.ndarray) -> np.ndarray:
    """All layers' activations on one passage: (L, T, I)."""
    kept: list[torch.Tensor] = []
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
        for layer in model.layers
    ]
    model.hf(input_ids=torch.from_numpy(ids)[None])
    for handle in handles:
        handle.remove()
    return torch.stack(kept).double().numpy()


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_moved_is_the_vector_under_another_firing(family: str) -> None:
    model = double(family)
    passages, targets = text(model)
    poles = [Pole(1, 3, "-"), Pole(2, 5, "+")]
    moved = draw_moved(poles, 3, model.intermediate_size, {(1, 3), (2, 5)}, 0)
    effects, _ = scan(model, passages, targets, moved=moved)
    expected = np.zeros((len(effects.words), len(moved)))
    for i in np.flatnonzero(effects.chosen):
        ids, position = passages[targets.passage[i]], int(targets.position[i])
        for m in range(len(moved)):
            word = effects.index(targets.word[i])
            expected[word, m] += written_more(model, ids, position, moved, m)
    assert np.abs(effects.moved - expected).max() <= 1e-3 * np.abs(effects.zero).max()
    assert np.abs(expected).max() > 0.05 * np.abs(effects.zero).max()


@torch.no_grad()
def written_more(model: Model, ids: np.ndarray, position: int, moved: Moved, m: int) -> float:
    """Derivative of log p by how much of the moved vector is written when its receiver fires."""
    layer, values = int(moved.layer[m]), []
    vector = model.value_vectors(layer)[moved.source[m]] * moved.source_sign[m]
    strength = (activations(model, ids)[layer][:, moved.receiver[m]] * moved.receiver_sign[m]).clip(
        0
    )
    strength[0] = 0
    for step in (STEP, -STEP):
        more = step * torch.from_numpy(strength)[:, None] * vector
        handle = model.layers[layer].mlp.register_forward_hook(lambda *x, more=more: x[2] + more)
        values.append(float(log_p(model, ids, position)))
        handle.remove()
    return (values[0] - values[1]) / (2 * STEP)


def test_moved_to_itself_is_the_pole(tiny: Model) -> None:
    passages, targets = text(tiny)
    one = np.array([1])
    moved = Moved(0 * one, one, 7 * one, -one, 7 * one, -one)
    effects, _ = scan(tiny, passages, targets, moved=moved)
    assert np.allclose(effects.moved[:, 0], effects.zero[1, 1, :, 7], rtol=1e-5, atol=1e-7)


def test_activity_by_brute_force(tiny: Model) -> None:
    passages, targets = text(tiny, 20)
    _, seen = scan(tiny, passages, targets, 30)
    each = [activations(tiny, ids)[:, 1:] for ids in passages]
    a = np.concatenate(each, 1)  # (L, N, I)
    assert seen.positions == a.shape[1]
    close = dict(rtol=1e-5, atol=1e-6)
    assert np.allclose(seen.total[:, 0], a.clip(min=0).sum(1), **close)
    assert np.allclose(seen.total[:, 1], a.clip(max=0).sum(1), **close)
    assert np.array_equal(seen.positive, (a > 0).sum(1))
    assert np.allclose(seen.largest, np.abs(a).max(1), **close)

    level = 2.0 ** (np.floor(np.log2(seen.largest)) - activity.FIRES_BELOW_MAX)
    assert np.array_equal(seen.reached[:, -1], (np.abs(a) >= level[:, None]).sum(1))

    best = np.stack([np.abs(x).max(1) for x in each], 2)  # (L, I, P)
    order = np.argsort(-best, axis=2)[:, :, : activity.CONTEXTS]
    assert np.array_equal(seen.context_at[..., 0], order)
    assert np.allclose(np.abs(seen.context_values), np.take_along_axis(best, order, 2), **close)
    layer, neuron = 2, 11
    passage, position = seen.context_at[layer, neuron, 0]
    value = activations(tiny, passages[passage])[layer, position, neuron]
    assert seen.context_values[layer, neuron, 0] == pytest.approx(value, rel=1e-5)


def test_out_of_memory_neither_loses_nor_doubles_a_row(tiny: Model, monkeypatch: Any) -> None:
    passages, targets = text(tiny)
    expected, counted = scan(tiny, passages, targets, 64)
    backward, calls = Gradients._backward, []

    def failing(self: Gradients, *args: Any) -> None:
        calls.append(1)
        if len(calls) in (2, 5):
            raise MemoryError
        backward(self, *args)

    monkeypatch.setattr(Gradients, "_backward", failing)
    got, seen = scan(tiny, passages, targets, 64)
    assert len(calls) > 5
    assert np.array_equal(got.rows, expected.rows)
    assert seen.positions == counted.positions
    assert np.abs(got.zero - expected.zero).max() <= 1e-5 * np.abs(expected.zero).max()


def test_text_without_targets_gives_activations_alone(tiny: Model) -> None:
    passages, targets = text(tiny)
    effects, seen = scan(tiny, [*passages, np.array([2])], targets.at(np.zeros(0, int)))
    assert effects.zero.shape == (tiny.n_layers, 2, 0, tiny.intermediate_size)
    assert seen.positions == sum(len(ids) - 1 for ids in passages)


def test_bfloat16_sums_in_float32(tiny: Model) -> None:
    passages, targets = text(tiny)
    expected, _ = scan(tiny, passages, targets)
    model = wrap(make_hf().bfloat16())
    got, _ = scan(model, passages, targets)
    assert got.zero.dtype == np.float32
    error = np.abs(got.zero - expected.zero).max() / np.abs(expected.zero).max()
    assert 1e-6 < error < 0.2
    rounded = torch.from_numpy(got.zero).bfloat16().float().numpy()
    assert (rounded != got.zero).mean() > 0.5


def test_nothing_is_left_behind(tiny: Model) -> None:
    passages, targets = text(tiny)
    before = {name: p.clone() for name, p in tiny.hf.named_parameters()}
    scan(tiny, passages, targets)
    for name, p in tiny.hf.named_parameters():
        assert p.grad is None
        assert torch.equal(p, before[name])
    assert not any(layer.mlp.down_proj._forward_pre_hooks for layer in tiny.layers)


def test_a_gradient_hook_ends_with_its_pass(tiny: Model) -> None:
    x = torch.ones(2, requires_grad=True)
    y, heard = x * 2, []
    with gradients.reducing([y], lambda i, g: heard.append((i, g.tolist()))):
        torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.autograd.grad(y.sum(), x)
    assert heard == [(0, [1.0, 1.0])]


def test_receivers_are_other_neurons_that_are_no_candidates() -> None:
    poles = [Pole(0, 3, "+"), Pole(0, 4, "-"), Pole(2, 3, "+")]
    taken = {(0, 3), (0, 4), (2, 3), (0, 5)}
    moved = draw_moved(poles, 12, 16, taken, 0)
    assert len(moved) == 36
    assert not taken & set(zip(moved.layer.tolist(), moved.receiver.tolist(), strict=True))
    for number in range(3):
        assert len(set(moved.receiver[moved.pole == number].tolist())) == 12
    again = draw_moved(poles[1:], 12, 16, taken, 0)
    assert np.array_equal(again.receiver[again.pole == 0], moved.receiver[moved.pole == 1])
