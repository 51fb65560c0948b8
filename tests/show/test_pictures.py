"""Pictures come last, and their failure costs a line."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conceptvec.cli import main
from conceptvec.show import figures, pictures
from conceptvec.tools.calibrate import save_calibration
from tests.documents import document

IMPORT = "import conceptvec.show.figures, matplotlib; print(matplotlib.rcParams['backend'])"


@pytest.mark.whole
@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("nonsense", None), ("module://no.such", "module://no.such"), ("svg", "svg"), ("", None)],
)
def test_the_backend_of_the_environment_is_none_of_our_business(wanted, chosen) -> None:
    environment = os.environ | {"MPLBACKEND": wanted}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert chosen is None or done.stdout.strip() == chosen


@pytest.mark.parametrize(
    "error",
    [ValueError("a font"), OSError(28, "No space left"), ImportError("no module"), MemoryError()],
)
def test_a_figure_that_fails_leaves_the_others(error, tmp_path, monkeypatch, caplog) -> None:
    def broken(_) -> None:
        raise error

    monkeypatch.setattr(figures.FIGURES["funnel"], "draw", broken)
    pictures.save_run_figures(document(), tmp_path)
    assert "funnel could not be drawn" in caplog.text
    assert {path.stem for path in tmp_path.iterdir()} == {*figures.measured(document())} - {
        "funnel"
    }


def test_a_folder_that_cannot_be_written_costs_the_figures(tmp_path, caplog) -> None:
    (tmp_path / "figures").write_text("a file")
    pictures.save_run_figures(document(), tmp_path / "figures")
    assert "could not be drawn" in caplog.text


def test_a_calibration_without_its_figure_is_kept(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING, "conceptvec"):
        save_calibration({"nothing": "to draw"}, tmp_path)
    assert (tmp_path / "calibration.json").exists()
    assert "the figure could not be drawn" in caplog.text


def test_results_are_there_before_the_first_picture(tmp_path, monkeypatch, capsys) -> None:
    def interrupted(*_) -> None:
        assert list(tmp_path.glob("r/concept_vector_results_*.json"))
        assert (tmp_path / "r/concept_vectors.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("conceptvec.pipeline.save_run_figures", interrupted)
    argv = ["run", "--device", "cpu", "--layers", "3", "--max-vectors", "5", "--stages", "1"]
    assert main([*argv, "--out", str(tmp_path / "r")]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_report_lacks_a_figure_that_cannot_be_drawn(tmp_path: Path, monkeypatch) -> None:
    from conceptvec.show.report import page

    def broken(_) -> None:
        raise ValueError("a font")

    whole = page(document()).count("<figure>")
    monkeypatch.setattr(figures.FIGURES["funnel"], "draw", broken)
    assert page(document()).count("<figure>") == whole - 1
