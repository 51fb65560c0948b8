"""Several processes over one run folder: the same results; a lost one is an error and a resume."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conceptvec.cli import main
from tests.children import lasting, parts, start, world


@pytest.fixture(scope="module")
def alone(tiny_run, tmp_path_factory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert start_all([*tiny_run, "--out", str(folder / "run")], folder, [{}]) == [0]
    return folder / "run"


def start_all(
    argv: list[str], folder: Path, environments: list[dict[str, str]]
) -> list[int | None]:
    """Exit codes of one process per environment."""
    processes = [start(argv, folder / f"log{i}", env) for i, env in enumerate(environments)]
    for p in processes:
        p.join(300)
    return [p.exitcode for p in processes]


def test_three_processes(tiny_run, alone, tmp_path) -> None:
    argv = [*tiny_run, "--json", "--out", str(tmp_path / "run")]
    assert start_all(argv, tmp_path, world(3)) == [0, 0, 0], (tmp_path / "log0").read_text()
    assert lasting(tmp_path / "run") == lasting(alone)
    assert parts(tmp_path / "run") == parts(alone)
    assert [p.name for p in (tmp_path / "run").glob("manifest*")] == ["manifest.json"]
    # The first process alone talks.
    assert "validation_results" not in (tmp_path / "log1").read_text()


# --multi_gpu is accelerate's name for "several processes through torch's launcher"; none of them
# needs a GPU.
LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc_per_node 2 --standalone",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no --main_process_port 0",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(launcher, tiny_run, alone, tmp_path) -> None:
    launched = [sys.executable, "-m", *LAUNCHERS[launcher].split(), "-m", "conceptvec"]
    command = [*launched, *tiny_run, "--out", str(tmp_path / "run")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert lasting(tmp_path / "run") == lasting(alone)


def test_a_lost_process_is_an_error_and_a_resume(tiny_run, alone, tmp_path) -> None:
    argv = [*tiny_run, "--out", str(tmp_path / "run")]
    first, second = (start(argv, tmp_path / f"log{i}", env) for i, env in enumerate(world(2)))
    while len(parts(tmp_path / "run")) < 8 and second.is_alive():
        time.sleep(0.002)
    second.kill()
    first.join(120)
    said = (tmp_path / "log0").read_text()
    assert first.exitcode == 1
    assert "another process was lost" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "run").glob("concept_vector_results*"))
    assert (tmp_path / "run" / "manifest.rank1.json").exists()
    assert main(argv) == 0  # one process takes over what two have begun
    assert lasting(tmp_path / "run") == lasting(alone)


def test_positions_of_a_layer_that_is_lost_are_chosen_again_by_all(
    tiny_run, alone, tmp_path
) -> None:
    """One of the processes misses a part of its share; the clean pass takes both."""
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    for lost in (*folder.glob("validation/placed_L02*"), *folder.glob("*_results_*.json")):
        lost.unlink()
    assert start_all([*tiny_run, "--out", str(folder)], tmp_path, world(2)) == [0, 0]
    assert lasting(folder) == lasting(alone)
    assert parts(folder) == parts(alone)


def test_a_bad_request_ends_all_processes(tiny_run, tmp_path) -> None:
    argv = [*tiny_run, "--layers", "9", "--out", str(tmp_path / "run")]
    assert start_all(argv, tmp_path, world(2)) == [2, 2]
