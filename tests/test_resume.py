"""A run that is killed, damaged or short of room ends with the same results when it is resumed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from conceptvec.cli import main
from tests.children import lasting, parts, start


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    process = start([*tiny_run, "--out", str(folder / "run")], folder / "log")
    process.join(300)
    assert process.exitcode == 0, (folder / "log").read_text()
    return folder / "run"


@pytest.fixture
def again(finished, tmp_path) -> Path:
    """A copy of the finished run to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def kill_and_resume(
    tiny_run: list[str], folder: Path, kills: int, seed: int, total: int
) -> list[int]:
    """Kill runs in `folder` with SIGKILL at random numbers of finished parts.

    Returns these numbers.
    """
    rng, seen = np.random.default_rng(seed), []
    for at in sorted(rng.integers(0, total, kills)):
        process = start([*tiny_run, "--out", str(folder)], folder.with_suffix(".log"))
        while len(parts(folder)) < at and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        seen.append(len(parts(folder)))
    process = start([*tiny_run, "--out", str(folder)], folder.with_suffix(".log"))
    process.join(300)
    assert process.exitcode == 0, folder.with_suffix(".log").read_text()
    return seen


def test_killed_at_random_moments(tiny_run, finished, tmp_path) -> None:
    total = len(parts(finished))
    seen = kill_and_resume(tiny_run, tmp_path / "run", 5, 0, total)
    assert seen[0] < total  # early
    assert seen[-1] > 6  # and late: Stage 1 has six parts here
    assert lasting(tmp_path / "run") == lasting(finished)
    assert parts(tmp_path / "run") == parts(finished)


def test_damaged_parts_are_computed_again(tiny_run, finished, again, caplog) -> None:
    for i, name in enumerate(sorted(parts(again))):
        file = again / name
        if i % 4 == 0:
            file.write_bytes(file.read_bytes()[:-5])
        elif i % 4 == 1:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        elif i % 4 == 2:
            file.unlink()
    (again / "concept_vector_results_cpu.json").write_text("{")
    assert main([*tiny_run, "--out", str(again)]) == 0
    assert "is damaged" in caplog.text
    assert lasting(again) == lasting(finished)
    assert parts(again) == parts(finished)


@pytest.mark.parametrize("content", ["", "{", "\x00\x01", '{"parts": 1', "[" * 10_000])
def test_damaged_manifest(content, tiny_run, finished, again, caplog) -> None:
    (again / "manifest.json").write_text(content)
    assert main([*tiny_run, "--out", str(again)]) == 0
    assert "is damaged" in caplog.text
    assert lasting(again) == lasting(finished)
    assert parts(again) == parts(finished)


def test_nothing_is_computed_twice(tiny_run, again, finished, monkeypatch, capsys) -> None:
    def never(*_: object) -> None:
        raise AssertionError("computed although it is finished")

    monkeypatch.setattr("conceptvec.extraction.stage.project_layer", never)
    monkeypatch.setattr("conceptvec.validation.stage.measure_unit", never)
    monkeypatch.setattr("conceptvec.effects.stage.read_passages", never)
    monkeypatch.setattr("conceptvec.effects.gradients.Gradients.part", never)
    assert main([*tiny_run, "--out", str(again)]) == 0
    assert lasting(again) == lasting(finished)


@pytest.mark.parametrize(
    ("extra", "said"),
    [(["--top-k", "11"], "top_k was 10, is 11"), (["--seed", "3"], "seed was 0, is 3"),
     (["--damage", "zero"], "damage was ['zero', 'rotate', 'mean'], is ['zero']")],
)  # fmt: skip
def test_folder_of_another_configuration(extra, said, tiny_run, finished, capsys) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert main([*tiny_run, "--out", str(finished), *extra]) == 2
    assert said in capsys.readouterr().err
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_full_disk_keeps_what_was_there(tiny_run, tmp_path, finished, monkeypatch, capsys) -> None:
    """The disk fills up at the twelfth write; with room again the same command ends well."""
    real, left = os.fsync, [12]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr("conceptvec.files.os.fsync", full)
    assert main([*tiny_run, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Make room" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.tmp"))
    assert 0 < len(parts(tmp_path / "run")) < len(parts(finished))
    monkeypatch.undo()
    assert main([*tiny_run, "--out", str(tmp_path / "run")]) == 0
    assert lasting(tmp_path / "run") == lasting(finished)


def test_interrupted(tiny_run, tmp_path, monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("conceptvec.pipeline.run", interrupt)
    assert main([*tiny_run, "--overwrite", "--out", str(tmp_path / "a b")]) == 130
    said = capsys.readouterr().err
    assert "Resume: conceptvec run" in said
    assert f"'{tmp_path}/a b'" in said
    assert "--overwrite" in said  # nothing was cleared yet


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_in_a_real_process(tiny_run, tmp_path) -> None:
    import signal

    process = start([*tiny_run, "--out", str(tmp_path / "run")], tmp_path / "log")
    while not parts(tmp_path / "run") and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 130
    assert "Resume: conceptvec run" in said
    assert "Traceback" not in said


def test_a_finished_run_that_fits_no_schema_is_kept(
    tiny_run, tmp_path, monkeypatch, capsys, caplog
) -> None:
    """The fault is the program's: everything is there, and another version goes on from it."""
    import conceptvec.results as results

    run = ["--layers", "1", "--stages", "1,2", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(results, "SCHEMA_VERSION", 7)
    assert main([*tiny_run, *run]) == 1
    said = capsys.readouterr().err
    kept = tmp_path / "run" / "concept_vector_results_cpu.invalid.json"
    assert "$.schema_version: 7 is not one of" in caplog.text
    assert f"they are in {kept}" in said
    assert "Traceback" not in said
    assert json.loads(kept.read_text())["schema_version"] == 7
    assert (tmp_path / "run" / "concept_vectors.safetensors").exists()
    before = parts(tmp_path / "run")
    monkeypatch.undo()
    assert main([*tiny_run, *run]) == 0
    assert parts(tmp_path / "run") == before
    assert not kept.exists()


def test_a_finished_choice_of_positions_is_not_made_again(
    again, tiny_run, finished, monkeypatch
) -> None:
    """Each layer's positions are a part of their own: reading them needs no clean pass."""
    from conceptvec.validation import placement

    passes = []
    made = placement.CleanPass
    monkeypatch.setattr(
        placement, "CleanPass", lambda *args: passes.append(list(args[2])) or made(*args)
    )
    argv = [*tiny_run, "--out", str(again)]
    (again / "concept_vector_results_cpu.json").unlink()
    assert main(argv) == 0
    assert passes == []

    (lost,) = (again / "validation").glob("placed_L02*")
    lost.unlink()
    (again / "concept_vector_results_cpu.json").unlink()
    assert main(argv) == 0
    assert len(passes) == 1
    assert lasting(again) == lasting(finished)


def test_where_memory_is_short_layers_get_a_clean_pass_each(
    again, tiny_run, finished, monkeypatch
) -> None:
    """One pass is held at a time, and the positions are those of one pass for all layers."""
    from conceptvec.validation import placement

    held: list[weakref.ref[placement.CleanPass]] = []
    alive: list[int] = []
    made = placement.CleanPass

    def counted(*args) -> placement.CleanPass:
        gc.collect()
        alive.append(sum(one() is not None for one in held))
        clean = made(*args)
        held.append(weakref.ref(clean))
        return clean

    monkeypatch.setattr(placement, "CleanPass", counted)
    monkeypatch.setattr(placement, "ACTIVATION_BYTES", 1)
    shutil.rmtree(again / "validation")
    (again / "concept_vector_results_cpu.json").unlink()
    assert main([*tiny_run, "--out", str(again)]) == 0
    assert len(held) == len(list((again / "validation").glob("placed_*"))) > 1
    assert alive == [0] * len(held)
    assert lasting(again) == lasting(finished)
