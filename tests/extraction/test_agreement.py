"""A projection that is wrong is found out and stops the run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from conceptvec import Config, RunError, extract
from conceptvec.extraction.agreement import projection_agreement
from conceptvec.extraction.projection import Projector
from conceptvec.extraction.stage import Candidates
from conceptvec.model.network import Model


def check(model: Model, candidates: Candidates, config: Config) -> dict:
    layers, masked = candidates.layers, candidates.masked
    return projection_agreement(model, layers, masked, config.fold, config.seed)


@pytest.mark.parametrize("fold", ["both", "final", "none"])
def test_sound_projections_agree(fold: str, tiny, small) -> None:
    config = dataclasses.replace(small, fold=fold)
    record = extract(tiny, config).agreement["projection"]
    assert record["rows"] == 4
    assert 0 < record["largest_difference"] < 1e-6


def test_values_that_are_wrong_stop_the_run(tiny, small, monkeypatch) -> None:
    rounded = Projector._rounded

    def wrong(self, *args) -> torch.Tensor:
        return rounded(self, *args) * (1 + 1e-3)

    monkeypatch.setattr(Projector, "_rounded", wrong)
    with pytest.raises(RunError, match="computes wrongly: the projection .* `conceptvec selfcheck"):
        extract(tiny, small)


@pytest.mark.parametrize("end", ["top", "bottom"])
def test_a_token_that_was_left_out_is_noticed(end: str, tiny, small) -> None:
    sound = extract(tiny, small)
    names = (f"{end}_ids", f"{end}_values")
    short = [
        dataclasses.replace(layer, **{name: getattr(layer, name)[:, 1:] for name in names})
        for layer in sound.layers
    ]
    with pytest.raises(RunError, match="projection"):
        check(tiny, dataclasses.replace(sound, layers=short), small)


def test_projections_of_another_fold_do_not_agree(tiny, small) -> None:
    sound = extract(tiny, small)
    with pytest.raises(RunError, match="projection"):
        check(tiny, sound, dataclasses.replace(small, fold="none"))
