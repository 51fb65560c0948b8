"""One unit of measurement against real edits of the weights, for every role and kind of damage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conceptvec.effects.passages import Passages
from conceptvec.validation.damage import KINDS, Damager
from conceptvec.validation.engine import Text
from conceptvec.validation.evidence import drops_of
from conceptvec.validation.measure import (
    CLEAN,
    Request,
    Setting,
    Subject,
    measure_unit,
    split_unit,
)
from conceptvec.validation.positions import Positions
from conceptvec.validation.replay import Replay
from tests.validation.test_damage import brute, edited

LAYER = 1
MEANS = {LAYER: np.linspace(-1, 1, 24)}


def setting_of(model, batch_size: int = 7) -> Setting:
    stream = np.random.default_rng(0)
    lengths = [6, 9, 12, 12, 5]
    ids = [[2, *stream.integers(9, 200, n - 1).tolist()] for n in lengths]
    passages = Passages.of_lists(ids, [1] * 5, range(5))
    passage_of = np.repeat(np.arange(5, dtype=np.int32), lengths)
    return Setting(model, passages, passage_of, Damager(3), MEANS, batch_size, Replay(model))


def own(neuron: int, sign: int = 1) -> Subject:
    return Subject("candidate", f"L01_N{neuron:04d}+", LAYER, neuron, sign, 0, neuron)


MOVED = Subject("moved", "L01_N0003+", LAYER, 8, 1, 0, 3, -1)
POSITIONS = np.array([3, 7, 13, 20, 30])


def expected(setting: Setting, subject: Subject, column: torch.Tensor) -> np.ndarray:
    """Log-probabilities of the tokens after `POSITIONS` with another column in place."""
    model = setting.model
    with edited(model, LAYER, subject.neuron, column):
        return np.array([brute(model, setting.text(int(at))) for at in POSITIONS])


def test_a_position_is_the_passage_up_to_the_token_that_it_predicts(tiny) -> None:
    setting = setting_of(tiny)
    text = setting.text(7)  # the second token of the second passage
    assert list(text.ids) == setting.passages.passage(1)[:3].tolist()
    assert text.start == 2
    assert isinstance(text, Text)


@pytest.mark.parametrize("subject", [own(3), own(11), MOVED], ids=["own", "another", "moved"])
def test_units_equal_edits_of_the_weights(subject: Subject, tiny) -> None:
    setting = setting_of(tiny)
    vectors = tiny.value_vectors(LAYER).clone()
    vector = vectors[subject.source] * subject.source_sign
    requests = [Request(subject, POSITIONS, (CLEAN, "zero", "rotate"))]
    (measured,) = split_unit(requests, measure_unit(requests, setting))

    clean = expected(setting, subject, vector)
    assert np.abs(measured.clean.values - clean).max() < 1e-5
    gone = expected(setting, subject, 0 * vector)
    assert np.abs(measured.drops("zero", POSITIONS) - (clean - gone)).max() < 1e-4
    turned = [
        expected(setting, subject, vector + damage.direction)
        for damage in setting.damager("rotate", vector, (LAYER, subject.neuron))
    ]
    rotate = clean - np.mean(turned, axis=0)
    assert np.abs(measured.drops("rotate", POSITIONS) - rotate).max() < 1e-4
    assert np.abs(measured.drops("zero", POSITIONS)).max() > 1e-3


@pytest.mark.parametrize("first", KINDS)
def test_every_kind_is_right_in_every_place(first: str, tiny) -> None:
    """Whatever stands first, each kind has its own draws and its own numbers."""
    setting = setting_of(tiny)
    kinds = (CLEAN, first, *(kind for kind in KINDS if kind != first))
    requests = [Request(own(5), POSITIONS, kinds)]
    (together,) = split_unit(requests, measure_unit(requests, setting))
    assert together.primary == first
    for kind in KINDS:
        alone_requests = [Request(own(5), POSITIONS, (kind,))]
        (alone,) = split_unit(alone_requests, measure_unit(alone_requests, setting))
        assert np.abs(together.log_p[kind].values - alone.log_p[kind].values).max() < 1e-5


def test_draws_are_averaged(tiny) -> None:
    setting = setting_of(tiny)
    vector = tiny.value_vectors(LAYER)[5].clone()
    requests = [Request(own(5), POSITIONS, ("noise",))]
    (measured,) = split_unit(requests, measure_unit(requests, setting))
    each = [
        expected(setting, own(5), vector + damage.direction)
        for damage in setting.damager("noise", vector, (LAYER, 5))
    ]
    assert len(each) == 3
    assert np.abs(measured.log_p["noise"].values - np.mean(each, axis=0)).max() < 1e-4


def test_batches_and_company_change_nothing(tiny) -> None:
    requests = [
        Request(own(3), POSITIONS, (CLEAN, "zero")),
        Request(own(5), POSITIONS[:3], (CLEAN, "zero", "rotate")),
        Request(MOVED, POSITIONS[1:], (CLEAN, "zero")),
    ]
    together = split_unit(requests, measure_unit(requests, setting_of(tiny, 50)))
    for request, measured in zip(requests, together, strict=True):
        unit = measure_unit([request], setting_of(tiny, 1))
        (alone,) = split_unit([request], unit)
        for kind in request.kinds:
            difference = alone.log_p[kind].values - measured.log_p[kind].values
            assert np.abs(difference).max() < 1e-5
        assert tuple(measured.log_p) == request.kinds


def test_subjects_of_several_layers_are_measured_as_each_alone(tiny_of) -> None:
    """The clean state is carried up from layer to layer: in every family, from its own norms on."""
    for family in ("gemma3", "gemma2", "llama", "qwen3"):
        setting = replace(setting_of(tiny_of(family)), means={0: MEANS[1], 3: 2 * MEANS[1]})
        requests = [
            Request(replace(own(neuron), layer=layer), POSITIONS, (CLEAN, "zero", "mean"))
            for layer, neuron in ((3, 2), (0, 5), (3, 7))
        ]
        unit = measure_unit(requests, setting)
        units = [measure_unit([request], setting) for request in requests]
        together = split_unit(requests, unit)
        for request, measured, alone_unit in zip(requests, together, units, strict=True):
            (alone,) = split_unit([request], alone_unit)
            for kind in request.kinds:
                difference = alone.log_p[kind].values - measured.log_p[kind].values
                assert np.abs(difference).max() < 1e-5
            assert np.abs(alone.drops("zero", POSITIONS)).max() > 1e-4
        assert np.allclose(unit["cost"], sum(one["cost"] for one in units))


def test_layers_below_a_unit_are_computed_once(tiny) -> None:
    """The lowest layer runs on each text once, however many layers have a subject."""
    setting = replace(setting_of(tiny, 50), means=dict.fromkeys(range(4), MEANS[1]))
    requests = [
        Request(replace(own(3), layer=layer), POSITIONS, ("zero",)) for layer in range(1, 4)
    ]
    measure_unit(requests, setting)  # the replay learns the widths, by passes of its own
    rows = []
    handle = tiny.layers[0].register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    try:
        measure_unit(requests, setting)
    finally:
        handle.remove()
    assert sum(rows) == len(POSITIONS)


def test_known_clean_values_take_the_place_of_rows(tiny) -> None:
    """They are handed on as they are; a moved vector's baseline is measured beside them."""
    known = np.array([-1.5, -2.5, -3.5, -4.5, -5.5])
    kinds = (CLEAN, "zero")
    plain = [Request(own(5), POSITIONS, kinds), Request(MOVED, POSITIONS, kinds)]
    saved = [Request(own(5), POSITIONS, kinds, known), plain[1]]
    before, after = (measure_unit(requests, setting_of(tiny)) for requests in (plain, saved))
    assert (after["cost"] * 4 == before["cost"] * 3).all()  # three of the four kinds of rows
    one, moved = split_unit(saved, after)
    assert tuple(one.log_p) == kinds and one.primary == "zero"
    assert (one.clean.values == known).all()
    measured, measured_moved = split_unit(plain, before)
    assert np.abs(measured.clean.values - known).max() > 0.1
    for a, b in ((one, measured), (moved, measured_moved)):
        assert np.abs(a.log_p["zero"].values - b.log_p["zero"].values).max() < 1e-5
    assert np.abs(moved.clean.values - measured_moved.clean.values).max() < 1e-5


def test_a_second_measurement_covers_the_positions_that_it_was_made_for(tiny) -> None:
    """Its drops are those of one measurement of all kinds at all positions."""
    setting, few = setting_of(tiny), POSITIONS[[2, 0]]
    whole_request = Request(own(5), POSITIONS, (CLEAN, "zero", "rotate"))
    (whole,) = split_unit([whole_request], measure_unit([whole_request], setting))
    parts = []
    for request in (
        Request(own(5), POSITIONS, (CLEAN, "zero")),
        Request(own(5), few, ("rotate",)),
    ):
        parts += split_unit([request], measure_unit([request], setting))
    both = parts[0].with_kinds(parts[1])
    assert both.primary == "zero" and tuple(both.damaged) == ("zero", "rotate")
    assert np.abs(both.drops("rotate", few) - whole.drops("rotate", few)).max() < 1e-5
    assert not both.damaged["rotate"].covers(POSITIONS)

    positions = Positions(few, POSITIONS[[1]], POSITIONS[[1]], POSITIONS[:0], 0)
    rotate = drops_of(both, positions, "rotate")
    assert rotate.of_concept == pytest.approx(both.drops("rotate", few).mean())
    assert rotate.unrelated is None and rotate.selectivity is None
    assert drops_of(both, positions, "zero").unrelated is not None


def test_keys_tell_subjects_apart() -> None:
    subjects = [own(3), own(3, -1), own(4), MOVED, Subject("null", "L01_N0003+", 1, 3, 1, 0, 3)]
    assert len({subject.key for subject in subjects}) == len(subjects)
