"""The run folder: whose it is, what it keeps, what it removes, and several processes in it."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from conceptvec import Config, RequestError, RunError
from conceptvec.runfolder import Parts, RunFolder, manifests, part_name, shard

FACTS = {"fingerprint": "f" * 64, "dtype": "float32", "device": "cpu"}
LAYER = "projections/layer_00.safetensors"
ARRAYS = {"x": np.ones(3)}


@pytest.fixture(autouse=True)
def others_ask_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no other processes here: what they have is what this one has."""
    monkeypatch.setattr(RunFolder, "gathered", lambda self, value: [value] * self.world)


class Processes:
    """What accelerate says of several processes, here of one that is alone."""

    def __init__(self, rank: int, number: int = 2, error: Exception | None = None) -> None:
        self.process_index, self.num_processes, self.error = rank, number, error

    def wait_for_everyone(self) -> None:
        if self.error:
            raise self.error


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("fingerprint", "weights differ"),
        ("dtype", "dtype was float32, is other"),
        ("device", "device was cpu, is other"),
    ],
)
def test_a_folder_of_another_model(change: str, said: str, tmp_path) -> None:
    RunFolder(tmp_path, Config(), FACTS)
    with pytest.raises(RequestError, match=said):
        RunFolder(tmp_path, Config(), FACTS | {change: "other"})


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 3}, "seed was 0, is 3"), ({"top_k": 9}, "top_k was 50, is 9")],
)
def test_a_folder_of_another_configuration(change, said, tmp_path) -> None:
    RunFolder(tmp_path, Config(), FACTS)
    with pytest.raises(RequestError, match=said):
        RunFolder(tmp_path, Config(**change), FACTS)


def test_a_folder_of_another_file(tmp_path) -> None:
    concepts = tmp_path / "c.json"
    concepts.write_text("{}")
    config = Config(concepts=str(concepts))
    RunFolder(tmp_path / "run", config, FACTS)
    concepts.write_text('{"a": 1}')
    with pytest.raises(RequestError, match="content of the concepts file differs"):
        RunFolder(tmp_path / "run", config, FACTS)


def test_a_folder_of_another_version(tmp_path, monkeypatch) -> None:
    RunFolder(tmp_path, Config(), FACTS)
    monkeypatch.setattr("conceptvec.identity.__version__", "99")
    with pytest.raises(RequestError, match="it was written by conceptvec .*, this is 99"):
        RunFolder(tmp_path, Config(), FACTS)


@pytest.mark.parametrize("change", [{"overwrite": True}, {"stages": (1,)}, {"out": "elsewhere"}])
def test_where_and_how_far_do_not_make_another_run(change, tmp_path) -> None:
    RunFolder(tmp_path, Config(), FACTS)
    RunFolder(tmp_path, dataclasses.replace(Config(), **change), FACTS)


def test_the_number_of_the_gpu_does_not_make_another_run(tmp_path) -> None:
    RunFolder(tmp_path, Config(), FACTS | {"device": "cuda:0"})
    RunFolder(tmp_path, Config(), FACTS | {"device": "cuda:1"})


def test_overwrite_removes_its_own_files_only(tmp_path) -> None:
    config = Config(overwrite=True)
    RunFolder(tmp_path, config, FACTS).save(LAYER, ARRAYS)
    (tmp_path / "concept_vector_results_cpu.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "projections" / "notes.txt").write_text("mine")
    fresh = RunFolder(tmp_path, config, FACTS | {"fingerprint": "other"})
    assert files_in(tmp_path) == ["manifest.json", "model.safetensors", "projections/notes.txt"]
    assert fresh.load(LAYER) is None


@pytest.mark.parametrize("name", ["../out.safetensors", "/tmp/x.safetensors", "a/../../x", ""])
def test_a_manifest_cannot_remove_what_is_outside(name: str, tmp_path) -> None:
    run = tmp_path / "run"
    RunFolder(run, Config(), FACTS)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"parts": {name: "0"}}))
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    RunFolder(run, Config(overwrite=True), FACTS)
    assert files_in(tmp_path) == ["out.safetensors", "run/manifest.json"]


FOREIGN = ['{"name": "web app"}', "[]", '{"configuration": {}, "parts": []}']


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_manifest_is_left_alone(foreign: str, tmp_path) -> None:
    (tmp_path / "manifest.json").write_text(foreign)
    with pytest.raises(RequestError, match="not written by conceptvec"):
        RunFolder(tmp_path, Config(overwrite=True), FACTS)
    assert (tmp_path / "manifest.json").read_text() == foreign


def test_half_written_files_of_killed_processes_go(tmp_path) -> None:
    (tmp_path / "projections").mkdir()
    for name, age in (("old", 7200), ("new", 0)):
        file = tmp_path / "projections" / f".{name}.1.conceptvec.tmp"
        file.write_text("half")
        os.utime(file, (time.time() - age,) * 2)
    RunFolder(tmp_path, Config(), FACTS)
    assert files_in(tmp_path / "projections") == [".new.1.conceptvec.tmp"]


def test_parts_are_kept(tmp_path) -> None:
    (computed,) = RunFolder(tmp_path, Config(), FACTS).map([(LAYER, lambda: ARRAYS)], "", "")
    assert computed is ARRAYS
    never = [(LAYER, lambda: pytest.fail("computed again"))]
    (loaded,) = RunFolder(tmp_path, Config(), FACTS).map(never, "", "")
    assert np.array_equal(loaded["x"], ARRAYS["x"])


def test_without_a_folder_nothing_is_kept() -> None:
    (computed,) = Parts().map([(LAYER, lambda: ARRAYS)], "", "")
    assert computed is ARRAYS
    assert Parts().load(LAYER) is None


def test_the_manifest_says_whose_the_folder_is(tmp_path) -> None:
    RunFolder(tmp_path, Config(seed=4), FACTS)
    (manifest,) = manifests(tmp_path)
    assert manifest["model"] == FACTS
    assert manifest["configuration"]["seed"] == 4
    assert manifest["parts"] == {}


def test_a_parts_name_follows_what_it_is_made_for() -> None:
    assert part_name("x", [1, 2]) == part_name("x", [1, 2])
    assert part_name("x", [1, 2]) != part_name("x", [1, 3])
    assert part_name("x", 1).startswith("x_")


@pytest.mark.parametrize("size", range(1, 6))
@pytest.mark.parametrize("n", [0, 1, 5, 11])
def test_shares_lose_nothing(n: int, size: int) -> None:
    shares = [shard(range(n), rank, size) for rank in range(size)]
    assert sorted(sum(shares, [])) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_part_of_another_process_is_taken_over(tmp_path) -> None:
    first = RunFolder(tmp_path, Config(), FACTS, Processes(0))
    second = RunFolder(tmp_path, Config(), FACTS, Processes(1))
    second.save(LAYER, ARRAYS)
    assert first.load(LAYER) is not None
    assert len(manifests(tmp_path)) == 2
    first.finish()
    (manifest,) = manifests(tmp_path)
    assert list(manifest["parts"]) == [LAYER]


def test_waiting_has_an_end(tmp_path) -> None:
    said = "[gloo] Timed out waiting 7200000ms for recv operation to complete\nmore"
    lost = Processes(0, error=RuntimeError(said))
    with pytest.raises(RunError, match="another process was lost .*Run the same command again"):
        RunFolder(tmp_path, Config(), FACTS, lost)


def test_a_part_that_never_appears(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("conceptvec.runfolder.time.sleep", lambda _: None)
    folder = RunFolder(tmp_path, Config(), FACTS, Processes(1))
    with pytest.raises(RunError, match="a.safetensors is missing: another process was lost"):
        folder.map([("a.safetensors", dict), ("b.safetensors", dict)], "", "")
