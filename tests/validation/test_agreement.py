"""Damaged passes that are wrong are found out and stop the run."""

from __future__ import annotations

import pytest
import torch

from conceptvec import RunError
from conceptvec.validation.agreement import damage_agreement
from conceptvec.validation.replay import Replay
from tests.validation.test_damage import texts

LAYERS = [0, 1, 2, 3]


def test_a_sound_engine_agrees(tiny) -> None:
    record = damage_agreement(tiny, texts() * 3, LAYERS, 0, 8)
    assert record["rows"] == 27
    assert record["largest_difference"] < 1e-4
    assert record["largest_difference_of_drops"] < 1e-4


@pytest.mark.parametrize("fault", ["one layer short", "not a number"])
def test_damage_that_disagrees_stops_the_run(fault: str, tiny, monkeypatch) -> None:
    run = Replay.run

    def broken(self, states, first, last=None, check=False):
        if last is not None or check:  # only replays to the top go wrong
            return run(self, states, first, last, check)
        if fault == "not a number":
            return run(self, states, first) * torch.nan
        return run(self, states, first + (first == 3))

    monkeypatch.setattr(Replay, "run", broken)
    with pytest.raises(RunError, match="computes wrongly: the damage|NaN or infinity"):
        damage_agreement(tiny, texts(), LAYERS, 0, 8)
