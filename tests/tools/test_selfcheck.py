"""Selfcheck and agreement: right on a right device, and a wrong one is found out and stops the run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from conceptvec import Config, RunError
from conceptvec.cli import main
from conceptvec.concepts import Prompt
from conceptvec.extraction.stage import Projector
from conceptvec.tools.selfcheck import damage_agreement, projection_agreement, reference
from conceptvec.validation.engine import Engine
from tests.conftest import concepts_document
from tests.validation.test_damage import FAMILIES, brute, edited


@pytest.fixture
def small(tmp_path) -> Config:
    (tmp_path / "c.json").write_text(json.dumps(concepts_document()))
    (tmp_path / "t.txt").write_text("w1 w2 w3 dog w4\nw5 w6 red w7")
    return Config(
        device="cpu", top_k=10, concepts=str(tmp_path / "c.json"), corpus=str(tmp_path / "t.txt")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_a_real_edit(family: str, tiny_of) -> None:
    """`reference` against an edited float32 model: it moves with the edit, by the same amount."""
    model = tiny_of(family)
    prompts = [Prompt("w1 w2 w3", " dog"), Prompt("w4 w5 w6", " cat"), Prompt("w9 w8 w7", " zoo")]
    change = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(1))
    found = reference(model, prompts, [(0, 3, torch.zeros_like(change)), (2, 5, change)])
    assert np.abs(found[0] - [brute(model, p) for p in prompts]).max() < 1e-5
    weight = model.layers[2].mlp.down_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, 5] += change
    assert np.abs(found[1] - [brute(model, p) for p in prompts]).max() < 1e-5
    assert np.abs(found[1] - found[0]).max() > 1e-2
    with torch.no_grad():
        weight.copy_(before)
    assert edited(
        model, 2, 5, change
    )  # the edit of the damage tests is still possible: nothing was left behind


def test_selfcheck_passes_here(capsys) -> None:
    assert main(["selfcheck", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and len(found["checks"]) >= 12 and all(c["ok"] for c in found["checks"])
    assert all(c["largest_difference"] <= c["allowed"] for c in found["checks"])


def test_selfcheck_finds_a_device_that_computes_wrongly(monkeypatch, capsys) -> None:
    """The failures that are on record: a wrong product of a long reduction, lost columns, a wrong GELU."""
    mm, gelu = torch.mm, torch.nn.functional.gelu

    def wrong_mm(a: torch.Tensor, b: torch.Tensor, **more) -> torch.Tensor:
        out = mm(a, b, **more)
        return out * 0 if a.dtype == torch.float32 and a.shape[1] > 16_000 else out

    def wrong_gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        out = gelu(x, approximate=approximate)
        return torch.where(x > 900, torch.nan, out) if x.dtype == torch.float32 else out

    monkeypatch.setattr(torch, "mm", wrong_mm)
    monkeypatch.setattr(torch.nn.functional, "gelu", wrong_gelu)
    assert main(["selfcheck", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [line.split("  ")[0] for line in lines if "WRONG" in line]
    assert wrong[:2] == ["longest reduction of a run", "GELU of large values"]
    assert "use --device cpu" in lines[-1]


def test_projections_that_disagree_stop_the_run(tiny, small, monkeypatch) -> None:
    from conceptvec import extract

    sound = extract(tiny, small)
    assert sound.agreement["projection"]["rows"] == 4
    assert 0 < sound.agreement["projection"]["largest_difference"] < 1e-6
    rounded = Projector._rounded
    monkeypatch.setattr(
        Projector, "_rounded", lambda self, e, i, d: rounded(self, e, i, d) * (1 + 1e-3)
    )
    with pytest.raises(RunError, match="computes wrongly: the projection .* `conceptvec selfcheck"):
        extract(tiny, small)
    monkeypatch.undo()
    left_out = [
        dataclasses.replace(p, top_ids=p.top_ids[:, 1:], top_values=p.top_values[:, 1:])
        for p in sound.layers
    ]
    with pytest.raises(RunError, match="projection"):
        projection_agreement(tiny, dataclasses.replace(sound, layers=left_out), small)


def test_damage_that_disagrees_stops_the_run(tiny, small, monkeypatch) -> None:
    found = damage_agreement(tiny, small, [0, 1, 2, 3])
    assert (
        found["rows"] == 27
        and found["largest_difference"] < 1e-4
        and found["largest_difference_of_drops"] < 1e-4
    )
    above = Engine._run

    def one_layer_short(self, hidden, first, *rest, **more):  # in replays, which run to the top
        return above(self, hidden, first + (first == 3 and not rest), *rest, **more)

    def broken(self, hidden, first, *rest, **more):
        return above(self, hidden, first, *rest, **more) * torch.nan

    for wrong in (one_layer_short, broken):
        monkeypatch.setattr(Engine, "_run", wrong)
        with pytest.raises(RunError, match="computes wrongly: the damage|NaN or infinity"):
            damage_agreement(tiny, small, [0, 1, 2, 3])


def test_agreement_is_in_the_results(tiny_run, tmp_path, capsys) -> None:
    assert (
        main([*tiny_run, "--layers", "1", "--nulls", "5", "--json", "--out", str(tmp_path / "run")])
        == 0
    )
    agreement = json.loads(capsys.readouterr().out)["agreement"]
    assert agreement["projection"]["largest_difference"] <= agreement["projection"]["allowed"]
    assert agreement["damage"]["largest_difference"] <= agreement["damage"]["allowed"] == 1e-3
