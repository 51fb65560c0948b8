"""The report of a run folder: every pole of it, its effects, and code that gives the very vector."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptvec.cli import main
from conceptvec.effects.survey import read_survey
from conceptvec.holdings import VECTORS
from conceptvec.results import load_results
from conceptvec.scoring.poles import PoleTable
from conceptvec.show.run_lists import run_lists
from conceptvec.tools.scored_poles import read_poles
from tests.pages import Page, unpacked

RESULTS = "concept_vector_results_cpu.json"


@pytest.fixture(scope="module")
def poles(two_layers: Path) -> PoleTable:
    return read_poles(two_layers)


@pytest.fixture(scope="module")
def page(two_layers: Path) -> Page:
    assert main(["report", str(two_layers)]) == 0
    return Page((two_layers / "report.html").read_text("utf-8"))


@pytest.fixture
def copied(two_layers: Path, tmp_path: Path) -> Path:
    shutil.copytree(two_layers, tmp_path / "run")
    return tmp_path / "run"


def test_every_pole_is_in_the_page(page: Page, poles: PoleTable) -> None:
    header, arrays = unpacked(page.scripts[0])
    facts, width = header["poles"], header["poles"]["width"]
    assert len(poles) == 2 * 24 * 2
    word = arrays["word"].reshape(-1, width)
    for row, pole in enumerate(poles):
        at = arrays["layer"][row], arrays["neuron"][row], "+-"[arrays["minus"][row]]
        assert at == (pole.pole.layer, pole.pole.neuron, pole.pole.sign)
        assert facts["answers"][arrays["label"][row]] == pole.label
        assert tuple(facts["texts"][number - 1] for number in word[row] if number) == pole.words
        assert arrays["score"][row] / 10_000 == pytest.approx(pole.score, abs=1e-4)


def test_the_effects_are_those_of_the_scan(page: Page, poles: PoleTable, two_layers: Path) -> None:
    header, arrays = unpacked(page.scripts[0])
    scan = read_survey(two_layers)
    assert header["poles"]["measured"] == list(scan.concepts)
    steps = arrays["effects"].reshape(len(poles), -1)
    effects = steps / 127 * arrays["largest"][:, None]
    layer = np.searchsorted(scan.layers, poles.layer)
    measured = scan.mean[:, layer, poles.neuron, (poles.sign < 0).astype(int)].T
    error = np.abs(effects - measured.astype(float))
    assert (error <= arrays["largest"][:, None] / 253).all()


def test_the_code_gives_the_vector(page: Page, two_layers: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(two_layers / VECTORS)["vectors"]
    results = load_results(two_layers)
    entry = next(iter(results.validated), results["validation_results"][0])
    code = page.header["code"]
    for name in ("layer", "neuron"):
        code = code.replace(f"{{{name}}}", str(entry[name]))
    names: dict[str, Any] = {}
    exec(code.replace("{sign}", "-" if entry["pole"] == "-" else ""), names)
    if results.validated:
        assert torch.equal(names["vector"].float(), stored[0])
    assert names["vector"].shape == (32,)


def test_the_page_names_every_section(page: Page) -> None:
    titles = ["Figures", "Tested vectors", "Found by their effect alone", "All poles"]
    assert [text for text in page.texts if text in titles] == [*titles, *titles]


def test_results_alone_list_what_they_hold(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(copied / RESULTS, tmp_path / "alone")
    assert main(["report", str(tmp_path / "alone" / RESULTS)]) == 0
    page = Page((tmp_path / "alone" / "report.html").read_text("utf-8"))
    assert page.header["poles"] is None
    assert page.data
    assert "All poles" not in page.texts


@pytest.mark.parametrize("name", ["poles", "scan"])
def test_a_damaged_list_is_left_out_and_said(
    name: str, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = copied / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    lists = run_lists(copied, load_results(copied))
    assert getattr(lists, name) is None
    assert sum(part is not None for part in (lists.poles, lists.scan)) == 1
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("other", ["weights", "concepts"])
def test_lists_of_another_run_are_none_of_its_business(other: str, copied: Path) -> None:
    results = load_results(copied)
    if other == "weights":
        results["model"] = results["model"] | {"fingerprint": "0" * 64}
    else:
        results["candidate_distribution"] = {"weather": 0}
    assert run_lists(copied, results).poles is None


def test_another_programs_folder_has_no_lists(copied: Path) -> None:
    (copied / "manifest.json").write_text('{"a": 1}')
    assert run_lists(copied, load_results(copied)).poles is None


def test_a_run_of_stages_1_and_2_lists_its_poles(tiny_run: list[str], tmp_path: Path) -> None:
    argv = [*tiny_run, "--layers", "1", "--stages", "1,2", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    page = Page((tmp_path / "run" / "report.html").read_text("utf-8"))
    assert (
        len(page.header["entries"])
        == load_results(tmp_path / "run")["pipeline_stats"]["concept_candidates"]
    )
    assert page.header["poles"]["measured"] is None
    assert "Tested vectors" not in page.texts
    assert {"Candidates", "All poles"} <= set(page.texts)
