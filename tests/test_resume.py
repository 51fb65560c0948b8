"""A run that is killed, damaged or short of room: the same command ends with the same results, or says why not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conceptvec import Config, RequestError, RunError
from conceptvec.cli import main
from conceptvec.runfolder import Parts, RunFolder, shard, write_atomic
from tests.children import lasting, parts, start

FACTS = {"fingerprint": "f" * 64, "dtype": "float32", "device": "cpu"}


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
    """Kill runs in `folder` with SIGKILL at random numbers of finished parts; returns these numbers."""
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
    assert seen[0] < total and seen[-1] > 6  # early and late: Stage 1 has six parts here
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
    assert lasting(again) == lasting(finished) and parts(again) == parts(finished)


@pytest.mark.parametrize("content", ["", "{", "\x00\x01", '{"parts": 1', "[" * 10_000])
def test_damaged_manifest(content, tiny_run, finished, again, caplog) -> None:
    (again / "manifest.json").write_text(content)
    assert main([*tiny_run, "--out", str(again)]) == 0
    assert "is damaged" in caplog.text
    assert lasting(again) == lasting(finished) and parts(again) == parts(finished)


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


def test_folder_of_another_model_or_file(tmp_path) -> None:
    concepts = tmp_path / "c.json"
    concepts.write_text("{}")
    config = Config(out=str(tmp_path / "run"), concepts=str(concepts))
    RunFolder(tmp_path / "run", config, FACTS)
    for change, said in [
        ("fingerprint", "weights differ"),
        ("dtype", "dtype was float32"),
        ("device", "device was"),
    ]:
        with pytest.raises(RequestError, match=said):
            RunFolder(tmp_path / "run", config, FACTS | {change: "other"})
    concepts.write_text('{"a": 1}')
    with pytest.raises(RequestError, match="content of the concepts file differs"):
        RunFolder(tmp_path / "run", config, FACTS)


def test_overwrite_removes_its_own_files_only(tmp_path) -> None:
    run, config = tmp_path / "run", Config(overwrite=True)
    folder = RunFolder(run, config, FACTS)
    folder.save("projections/layer_00.safetensors", {"x": np.ones(3)})
    (run / "concept_vector_results_cpu.json").write_text("{}")
    (run / "model.safetensors").write_bytes(b"mine")
    (run / "projections" / "notes.txt").write_text("mine")
    fresh = RunFolder(run, config, FACTS | {"fingerprint": "other"})
    left = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())
    assert left == ["manifest.json", "model.safetensors", "projections/notes.txt"]
    assert fresh.load("projections/layer_00.safetensors") is None


@pytest.mark.parametrize(
    "foreign", ['{"name": "web app"}', "[]", '{"configuration": {}, "parts": []}']
)
def test_a_foreign_manifest_is_left_alone(foreign, tmp_path) -> None:
    (tmp_path / "manifest.json").write_text(foreign)
    with pytest.raises(RequestError, match="not written by conceptvec"):
        RunFolder(tmp_path, Config(overwrite=True), FACTS)
    assert (tmp_path / "manifest.json").read_text() == foreign


def test_full_disk_keeps_what_was_there(tiny_run, tmp_path, finished, monkeypatch, capsys) -> None:
    """The disk fills up at the twelfth write; with room again the same command ends with the same results."""
    real, left = os.fsync, [12]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr("conceptvec.files.os.fsync", full)
    assert main([*tiny_run, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and "Make room" in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.tmp")) and 0 < len(parts(tmp_path / "run")) < len(
        parts(finished)
    )
    monkeypatch.undo()
    assert main([*tiny_run, "--out", str(tmp_path / "run")]) == 0
    assert lasting(tmp_path / "run") == lasting(finished)


@pytest.mark.skipif(
    os.name != "posix" or not shutil.which("mount") or os.geteuid() != 0, reason="needs root"
)
def test_really_full_and_read_only_disks(tmp_path, capsys) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        write_atomic(disk / "old", b"kept")
        with pytest.raises(RunError, match="No space left"):
            write_atomic(disk / "old", b"x" * 200_000)
        assert (disk / "old").read_bytes() == b"kept" and [p.name for p in disk.iterdir()] == [
            "old"
        ]
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(RunError, match="Read-only"):
            RunFolder(disk / "run", Config(), FACTS)
        assert main(["run", "--stages", "1", "--device", "cpu", "--out", str(disk / "run")]) in (
            1,
            2,
        )
        said = capsys.readouterr().err
        assert "Traceback" not in said and str(disk) in said
    finally:
        subprocess.run(["umount", disk], check=True)


def test_interrupted(tiny_run, tmp_path, monkeypatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("conceptvec.pipeline.run", interrupt)
    assert main([*tiny_run, "--overwrite", "--out", str(tmp_path / "a b")]) == 130
    said = capsys.readouterr().err
    assert (
        "Resume: conceptvec run" in said
        and f"'{tmp_path}/a b'" in said
        and "--overwrite" not in said
    )


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_in_a_real_process(tiny_run, tmp_path) -> None:
    import signal

    process = start([*tiny_run, "--out", str(tmp_path / "run")], tmp_path / "log")
    while not parts(tmp_path / "run") and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 130 and "Resume: conceptvec run" in said and "Traceback" not in said


def test_half_written_files_of_killed_processes_go(tmp_path) -> None:
    (tmp_path / "projections").mkdir()
    for name, age in (("old", 7200), ("new", 0)):
        file = tmp_path / "projections" / f".{name}.1.tmp"
        file.write_text("half")
        os.utime(file, (time.time() - age,) * 2)
    RunFolder(tmp_path, Config(), FACTS)
    assert [p.name for p in (tmp_path / "projections").iterdir()] == [".new.1.tmp"]


def test_shares_lose_nothing() -> None:
    for n in range(12):
        for size in range(1, 6):
            shares = [shard(range(n), r, size) for r in range(size)]
            assert sorted(sum(shares, [])) == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_parts_come_back_as_they_were(tmp_path) -> None:
    folder = RunFolder(tmp_path, Config(), FACTS)
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array([1.5, np.nan]),
              "c_json": {"text": ["ü", "\u2028"]}}  # fmt: skip
    made = Parts().map([("x.safetensors", lambda: arrays)], "", "")
    kept = folder.map([("x.safetensors", lambda: arrays)], "", "")
    loaded = RunFolder(tmp_path, Config(), FACTS).load("x.safetensors")
    assert loaded is not None and made[0] is arrays and kept[0] is arrays
    assert np.array_equal(loaded["a"], arrays["a"]) and loaded["a"].dtype == np.int32
    assert (
        np.array_equal(loaded["b"], arrays["b"], equal_nan=True)
        and loaded["c_json"] == arrays["c_json"]
    )
    assert json.loads((tmp_path / "manifest.json").read_text())["model"] == FACTS
