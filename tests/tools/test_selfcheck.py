"""Selfcheck: right on a right device, and a wrong one is found out."""

from __future__ import annotations

import json

import torch

from conceptvec.cli import main


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


def test_agreement_is_in_the_results(tiny_run, tmp_path, capsys) -> None:
    assert main([*tiny_run, "--layers", "1", "--json", "--out", str(tmp_path / "run")]) == 0
    agreement = json.loads(capsys.readouterr().out)["agreement"]
    assert agreement["projection"]["largest_difference"] <= agreement["projection"]["allowed"]
    assert agreement["damage"]["largest_difference"] <= agreement["damage"]["allowed"] == 1e-3
