"""Damaged passes that are wrong are found out and stop the run."""

from __future__ import annotations

import pytest
import torch

from conceptvec import RunError
from conceptvec.concepts import load_concepts
from conceptvec.validation.agreement import damage_agreement
from conceptvec.validation.engine import Engine


def test_damage_that_disagrees_stops_the_run(tiny, small, monkeypatch) -> None:
    groups = load_concepts(small.concepts).prompts().values()
    prompts = [prompt for group in groups for prompt in group]
    record = damage_agreement(tiny, small, [0, 1, 2, 3], prompts)
    assert record["rows"] == 27
    assert record["largest_difference"] < 1e-4
    assert record["largest_difference_of_drops"] < 1e-4
    above = Engine._run

    def one_layer_short(self, hidden, first, *rest, **more):  # in replays, which run to the top
        return above(self, hidden, first + (first == 3 and not rest), *rest, **more)

    def broken(self, hidden, first, *rest, **more):
        return above(self, hidden, first, *rest, **more) * torch.nan

    for wrong in (one_layer_short, broken):
        monkeypatch.setattr(Engine, "_run", wrong)
        with pytest.raises(RunError, match="computes wrongly: the damage|NaN or infinity"):
            damage_agreement(tiny, small, [0, 1, 2, 3], prompts)
