"""Planted neurons fire where they should in every kind of forward pass, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptvec.effects.passages import Passages
from conceptvec.tools.planting import (
    OFF_CONCEPT,
    SPREAD,
    Plant,
    activations,
    concept_direction,
    firing_places,
    planted,
    prefix_hashes,
    text_hashes,
)
from conceptvec.tools.worth import TOLERANCE, set_norms
from conceptvec.validation.clean import CleanPass
from conceptvec.validation.damage import Damage, Damager
from conceptvec.validation.engine import Engine, Text
from conceptvec.validation.measure import (
    CLEAN,
    Request,
    Setting,
    Subject,
    measure_unit,
    split_unit,
)
from conceptvec.validation.replay import Replay
from tests.conftest import make_hf, wrap

FAMILIES = ("gemma3_text", "gemma2", "llama", "qwen3")
LAYER, NEURON = 2, 5


def some_passages(n: int = 9, vocabulary: int = 200, seed: int = 0) -> Passages:
    stream = np.random.default_rng(seed)
    texts = [[2, *stream.integers(9, vocabulary, int(size))] for size in stream.integers(4, 12, n)]
    return Passages.of_lists(texts, [1] * n, range(n))


def a_plant(passages: Passages, hidden: int, seed: int = 0, neuron: int = NEURON) -> Plant:
    """It fires at a third of the places."""
    stream = np.random.default_rng(seed)
    hashes = text_hashes(passages)
    fires = np.unique(hashes[stream.random(len(hashes)) < 1 / 3])
    column = torch.from_numpy(stream.standard_normal(hidden).astype(np.float32))
    return Plant(LAYER, neuron, 0, column, fires)


def brute_log_p(hf, plants: list[Plant], ids: list[int]) -> float:
    """The last token's log-probability, the activations put in by hand, token by token."""

    def put(_, args):
        a = args[0].clone()
        for plant in plants:
            for t in range(a.shape[1]):
                value = 1
                for token in ids[: t + 1]:
                    value = (value * 6364136223846793005 + token + 1) % 2**64
                fires = value in {int(x) % 2**64 for x in plant.fires}
                share = ((value * 6364136223846793005) % 2**64 >> 40) / 2**24
                a[0, t, plant.neuron] = (1 + SPREAD * (2 * share - 1)) if fires else 0.0
        return (a,)

    down = hf.model.layers[LAYER].mlp.down_proj
    before = down.weight.detach().clone()
    handle = down.register_forward_pre_hook(put)
    with torch.no_grad():
        for plant in plants:
            down.weight[:, plant.neuron] = plant.column
        logits = hf(input_ids=torch.tensor([ids])).logits[0, -2]
        down.weight.copy_(before)
    handle.remove()
    return float(logits.log_softmax(0)[ids[-1]])


def log_p(hf, ids: list[int]) -> float:
    with torch.no_grad():
        logits = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -2]
    return float(logits.log_softmax(0)[ids[-1]])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=5))
def test_hashes_are_equal_exactly_where_beginnings_are(rows: list[list[int]]) -> None:
    hashes = prefix_hashes(np.array(rows))
    for i, first in enumerate(rows):
        for j, second in enumerate(rows):
            for t in range(6):
                is_same = first[: t + 1] == second[: t + 1]
                assert (hashes[i, t] == hashes[j, t]) == is_same


def test_padding_and_batches_leave_hashes_as_they_are() -> None:
    passages = some_passages()
    alone = text_hashes(passages)
    padded = np.zeros((len(passages), int(passages.lengths.max())), np.int64)
    for i in range(len(passages)):
        padded[i, : passages.lengths[i]] = passages.passage(i)
    together = prefix_hashes(padded)
    for i, start in enumerate(passages.starts):
        n = passages.lengths[i]
        assert (together[i, :n] == alone[start : start + n]).all()


def test_it_fires_at_all_own_places_and_at_few_others() -> None:
    hashes = np.arange(20_000) * 7919
    own, others = np.arange(500), np.arange(500, 20_000)
    fires = firing_places(own, others, hashes, np.random.default_rng(0))
    a = activations(fires, hashes)
    assert (a[own] > 0).all()
    assert abs((a[others] > 0).mean() - OFF_CONCEPT) < 0.006
    at = a[a > 0]
    assert np.abs(at - 1).max() <= SPREAD + 1e-6
    assert len(np.unique(at)) > 0.99 * len(at)  # a match by activation has something to choose by


@pytest.mark.parametrize("family", FAMILIES)
def test_every_forward_pass_sees_what_brute_force_puts_in(family: str, tiny_of) -> None:
    """A whole pass, the engine's pieces with and without damage, and the clean pass."""
    model = tiny_of(family)
    passages = some_passages()
    plants = [a_plant(passages, 32), a_plant(passages, 32, seed=1, neuron=11)]
    texts = [passages.passage(i).tolist() for i in range(len(passages))]
    expected = [brute_log_p(model.hf, plants, ids) for ids in texts]
    without = [brute_log_p(model.hf, [plants[0].scaled(0.0), plants[1]], ids) for ids in texts]
    assert np.abs(np.array(expected) - without).max() > 1e-3

    with planted(model, plants):
        whole = [log_p(model.hf, ids) for ids in texts]
        engine = Engine(model, [Text(ids, len(ids) - 1) for ids in texts], 4)
        pieces = engine.clean(range(len(texts))).log_p
        state = engine.state(LAYER, [NEURON])
        nothing = Damage(NEURON, 0.0, 0.0, torch.zeros(32))
        removed = Damage(NEURON, -1.0, 0.0, plants[0].column)
        pairs = np.array([(d, t) for d in range(2) for t in range(len(texts))])
        both = engine.measure(state, [nothing, removed], pairs).log_p.reshape(2, -1)
        clean = CleanPass(model, passages, {LAYER: [NEURON, 11]})
        ends = passages.starts + passages.lengths - 2
        from_clean = clean.log_p(ends)

    for measured in (whole, pieces, both[0], from_clean):
        assert np.abs(np.array(measured) - expected).max() < 1e-4
    assert np.abs(both[1] - without).max() < 1e-4
    hashes = text_hashes(passages)
    for plant in plants:
        seen = clean.activation(LAYER, plant.neuron)
        assert np.abs(seen - activations(plant.fires, hashes)).max() < 1e-6


def test_a_caught_up_pass_between_the_pieces_changes_nothing(tiny) -> None:
    """The replay may run a pass of its own, over other tokens, between embedding and layers."""
    passages = some_passages()
    plant = a_plant(passages, 32)
    ids = torch.from_numpy(passages.passage(0).astype(np.int64))[None]
    with planted(tiny, [plant]):
        ready, late = Replay(tiny), Replay(tiny)
        ready.prepare(ids.shape[1])
        expected = ready.run(ready.embed(ids), 0)
        assert torch.equal(late.run(late.embed(ids), 0), expected)


def test_the_model_is_as_before_afterwards(tiny) -> None:
    passages = some_passages()
    ids = passages.passage(0).tolist()
    weight = tiny.layers[LAYER].mlp.down_proj.weight
    kept, before = weight.detach().clone(), log_p(tiny.hf, ids)
    with pytest.raises(KeyError), planted(tiny, [a_plant(passages, 32)]):
        assert log_p(tiny.hf, ids) != before
        raise KeyError
    assert torch.equal(weight, kept)
    assert log_p(tiny.hf, ids) == before


def test_what_a_plant_cannot_know_is_an_error_and_no_number(tiny) -> None:
    passages = some_passages()
    plant = a_plant(passages, 32)
    last = Plant(3, 0, 0, plant.column, plant.fires)
    for plants in ([last], [plant, Plant(1, 0, 0, plant.column, plant.fires)]):
        with pytest.raises(ValueError, match="below the last"), planted(tiny, plants):
            pass
    ids = torch.from_numpy(passages.passage(0).astype(np.int64))[None]
    with planted(tiny, [plant]):
        cache = tiny.decoder(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="whole texts"):
            tiny.decoder(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        tiny.decoder(input_ids=ids, use_cache=False)
        with pytest.raises(RuntimeError, match="saw texts of"):
            tiny.layers[LAYER].mlp(torch.zeros(1, 3, 32))
    with planted(tiny, []):  # nothing to plant is no error
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_the_direction_promotes_its_words(family: str, tiny_of) -> None:
    model = tiny_of(family)
    words, others = np.arange(20, 30), np.arange(40, 200)
    direction = concept_direction(model, 1, words, others, "both")
    assert float(torch.linalg.vector_norm(direction)) == pytest.approx(1, abs=1e-5)
    gap = model.unembedding[words].mean(0) - model.unembedding[others].mean(0)
    folded = model.folded(direction[None], 1, "both")[0]
    assert float(torch.cosine_similarity(folded, gap, dim=0)) > 0.99


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_norms_make_plants_worth_what_they_should_be(family: str, tiny_of) -> None:
    """Against real edits of the weight; what no norm can reach is not planted."""
    model = tiny_of(family)
    passages = some_passages(30)
    hashes = text_hashes(passages)
    ends = passages.starts + passages.lengths - 2
    ends = ends[passages.lengths > 5]
    own = [ends[:12], ends[12:]]
    plants = []
    for number, at in enumerate(own):
        words = passages.ids[at + 1]
        column = concept_direction(model, LAYER, words, np.arange(9, 200), "both")
        plants.append(Plant(LAYER, number, number, column, np.unique(hashes[at])))
    passage_of = np.repeat(np.arange(len(passages)), passages.lengths)
    setting = Setting(
        model, passages, passage_of, Damager(0), {LAYER: np.zeros(24)}, 16, Replay(model)
    )

    found = set_norms(model, plants, [0.1, 0.3], own, setting)
    for plant, target, at in zip(found, (0.1, 0.3), own, strict=True):
        assert plant is not None
        drops = []
        for position in at:
            ids = list(setting.text(int(position)).ids)
            others = [p.scaled(0.0) for p in plants if p.neuron != plant.neuron]
            with planted(model, [plant, *others]):
                clean = log_p(model.hf, ids)
            with planted(model, [plant.scaled(0.0), *others]):
                drops.append(clean - log_p(model.hf, ids))
        assert np.mean(drops) == pytest.approx(target, rel=TOLERANCE + 0.01)

    # The measurement of a run, with all of them standing, says nearly the same.
    with planted(model, [plant for plant in found if plant]):
        requests = [
            Request(Subject("planted", "", LAYER, i, 1, i, i), at, (CLEAN, "zero"))
            for i, at in enumerate(own)
        ]
        measured = split_unit(requests, measure_unit(requests, setting))
    for item, target in zip(measured, (0.1, 0.3), strict=True):
        assert item.drops("zero", item.clean.positions).mean() == pytest.approx(target, rel=0.3)

    assert set_norms(model, plants, [100.0, 0.1], own, setting)[0] is None


def test_planting_in_a_model_of_its_own_dtype() -> None:
    """A bfloat16 model holds the column in its precision, and its activations stay its own."""
    model = wrap(make_hf().to(torch.bfloat16))
    passages = some_passages()
    plant = a_plant(passages, 32)
    seen = []
    with planted(model, [plant]):
        down = model.layers[LAYER].mlp.down_proj
        handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model.decoder(input_ids=torch.tensor([passages.passage(0).tolist()]), use_cache=False)
        handle.remove()
        assert torch.equal(down.weight[:, NEURON], plant.column.to(torch.bfloat16))
    assert seen[0].dtype is torch.bfloat16
