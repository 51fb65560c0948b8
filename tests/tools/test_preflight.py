"""Preflight: what it says of a run, and what the Hub's refusals become."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptvec import Config, RequestError, load_model
from conceptvec.cli import main
from conceptvec.model.checkpoint import Checkpoint
from conceptvec.tools import estimates
from conceptvec.tools.estimates import Shape, shape_of
from conceptvec.tools.preflight import Plan, duration, preflight, size


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def run(out: Path, *options: str) -> int:
    """``conceptvec run`` on the CPU into a folder."""
    return main(["run", "--device", "cpu", "--out", str(out), *options])


def plan_of(out: Path, **options: Any) -> Plan:
    return preflight(Config(device="cpu", out=str(out), **options))


def test_the_plan_of_the_demo(out: Path) -> None:
    plan = plan_of(out)
    assert plan.ok
    assert plan.shape == Shape(4, 96, 40, 4096)
    assert plan.work.projection_flops == 2 * 96 * 4096 * 4 * 40
    assert plan.needs.download_bytes == 0
    assert plan.device.why == "exact on a CPU"


@pytest.mark.parametrize(
    ("shape", "tokens", "seconds"),
    [(Shape(18, 640, 2048, 262144), 111_000, 153), (Shape(4, 96, 40, 4096), 41_000, 10)],
    ids=["270M", "demo"],
)
def test_what_is_no_product_takes_its_time(
    shape: Shape, tokens: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where arithmetic takes none, what an H100's two runs took remains, on a CPU as well."""
    monkeypatch.setattr(estimates, "_speed", lambda *about: float("inf"))
    monkeypatch.setattr(estimates, "preselection", lambda device: torch.float32)
    config = Config(corpus_tokens=tokens, max_vectors=None)

    def of(device: str) -> tuple[float, float]:
        """Low and high seconds of the configuration as it stands."""
        work = estimates.work_of(config, shape, device)
        return estimates.seconds_of(config, shape, work, torch.device(device), torch.float32)

    low, high = of("cuda")
    assert low < seconds < high
    config = replace(config, layers="0")  # text and scan go through all layers all the same
    assert of("cuda") == (low, high)
    assert of("cpu") == (low, high)


def test_a_run_times_nothing_before_it_begins(out: Path, monkeypatch) -> None:
    """Only who asks how long it takes waits for the answer."""
    monkeypatch.delattr(estimates, "_speed")
    assert run(out, "--stages", "1", "--layers", "0", "--max-vectors", "3") == 0
    with pytest.raises(NameError, match="_speed"):
        run(out, "--dry-run")


def test_parameters_are_counted_from_the_files_bytes(out: Path) -> None:
    exact = sum(p.numel() for p in load_model(Config(device="cpu")).hf.parameters())
    assert plan_of(out).model.parameters == pytest.approx(exact, rel=0.02)


def test_a_dry_run_writes_nothing(out: Path) -> None:
    assert run(out, "--dry-run") == 0
    assert not out.exists()


@pytest.mark.parametrize(
    "said", ["exact on a CPU", "4 layers × 40 neurons", "ready    yes", "all here (package)"]
)
def test_a_dry_run_says(said: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(out, "--dry-run")
    assert said in capsys.readouterr().out


def test_the_document_of_a_dry_run_is_the_plan(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(out, "--dry-run", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert document["model"]["layers"] == 4
    assert document["work"]["stages"] == [1, 2, 3]
    assert document["run_folder"] == {"path": str(out), "state": "new"}


def test_the_plan_in_a_cell_is_escaped(tmp_path: Path) -> None:
    shown = plan_of(tmp_path / "<b>&")._repr_html_()
    assert "&lt;b&gt;&amp;" in shown
    assert "<b>" not in shown


def test_little_memory_is_a_warning(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conceptvec.tools.preflight.device_memory", lambda _: 1000)
    plan = plan_of(out)
    assert plan.ok
    assert "memory may not do" in plan.warnings[0]


def test_a_full_disk_is_a_problem(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("conceptvec.tools.preflight.free_disk", lambda _: 1000)
    assert run(out, "--dry-run") == 2
    assert "has room for 1 kB" in capsys.readouterr().out
    assert run(out) == 2
    assert "make room or give another --out" in capsys.readouterr().err


@pytest.fixture
def finished(out: Path) -> Path:
    """The folder of a run of Stages 1 and 2 on one layer."""
    assert run(out, "--layers", "0", "--max-vectors", "5", "--stages", "1,2") == 0
    return out


def test_what_is_there_already_needs_no_room(finished: Path, monkeypatch) -> None:
    asked = {"layers": "0", "max_vectors": 5}
    needed = plan_of(finished, **asked, stages=(1, 2)).needs.disk_bytes
    there = sum(file.stat().st_size for file in finished.rglob("*.safetensors"))
    assert there > needed
    monkeypatch.setattr("conceptvec.tools.preflight.free_disk", lambda _: 10)
    assert plan_of(finished, **asked, stages=(1, 2)).ok
    assert plan_of(finished, **asked, stages=(1, 2), overwrite=True).ok


def test_more_tokens_than_the_vocabulary_holds_need_no_more_room(out: Path) -> None:
    plans = [plan_of(out, top_k=top_k, stages=(1,)) for top_k in (4096, 10**9)]
    assert plans[0].needs.disk_bytes == plans[1].needs.disk_bytes
    assert plans[0].needs.memory_bytes == plans[1].needs.memory_bytes


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "resumed, 2 parts are done"),
        ({"layers": "1"}, "of another run"),
        ({"layers": "1", "overwrite": True}, "started afresh"),
    ],
)
def test_the_state_of_the_run_folder(changes: dict[str, Any], state: str, finished: Path) -> None:
    plan = plan_of(finished, **({"layers": "0", "max_vectors": 5} | changes))
    assert plan.run_folder.state == state
    assert plan.ok == (state != "of another run")


def test_another_run_is_told_by_its_options(finished: Path) -> None:
    (problem,) = plan_of(finished, layers="1", max_vectors=5).problems
    assert "layers was '0', is '1'" in problem


def test_a_shorter_run_does_not_replace_finished_results(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = finished / "concept_vector_results_cpu.json"
    before = results.read_bytes()
    assert run(finished, "--layers", "0", "--max-vectors", "5", "--stages", "1") == 2
    assert "holds the results of stages 1, 2, and a shorter" in capsys.readouterr().err
    assert results.read_bytes() == before


def test_a_shorter_run_may_overwrite_and_leaves_no_figure_of_the_longer(finished: Path) -> None:
    options = ("--layers", "0", "--max-vectors", "5", "--stages", "1", "--overwrite")
    assert run(finished, *options) == 0
    assert [figure.name for figure in (finished / "figures").iterdir()] == ["funnel.png"]


@pytest.mark.parametrize(
    ("size", "layers"), [("config", None), ("0", 0), ("true", True), ("text", "many")]
)
def test_a_config_without_usable_dimensions_is_refused(size: str, layers: Any) -> None:
    settings = {"model_type": "gemma3_text", "num_hidden_layers": layers}
    broken = Checkpoint("it", "folder", None, None, settings, 10)
    with pytest.raises(RequestError, match="config.json of it"):
        shape_of(broken)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (size(1), "0 kB"),
        (size(2_000_000), "2 MB"),
        (size(1.26e9), "1.3 GB"),
        (duration(0.2), "1 s"),
        (duration(120), "2 min"),
        (duration(7200), "2.0 h"),
    ],
)
def test_sizes_and_durations_for_people(shown: str, text: str) -> None:
    assert shown == text


class FakeHub(BaseHTTPRequestHandler):
    """A Hub on this machine: a gated model, a pickle-only one, and nothing else."""

    def do_GET(self) -> None:
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        files = {
            "org/gated": ["config.json", "model.safetensors"],
            "org/pickle": ["config.json", "pytorch_model.bin"],
        }
        if "/auth-check" in self.path and name == "org/gated":
            self.answer(403, {"error": "restricted"}, "GatedRepo")
        elif self.path.startswith("/api/models/") and name in files:
            siblings = [{"rfilename": f, "size": 2_000_000_000} for f in files[name]]
            description = {
                "id": name,
                "sha": "a" * 40,
                "gated": "manual" if "gated" in name else False,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            self.answer(200, description)
        else:
            self.answer(401, {"error": "Repository not found"}, "RepoNotFound")

    do_HEAD = do_GET

    def answer(self, status: int, body: dict, code: str = "") -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


ASK = """
import sys
from conceptvec.cli import main
for name in ("org/gated", "org/pickle", "org/none"):
    assert main(["run", "--dry-run", "--device", "cpu", "--model", name]) == 2
"""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def environment(address: str, home: Path) -> dict[str, str]:
    """The environment of a machine with this Hub, this cache and no token."""
    unset = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    root = str(Path(__file__).parents[2])
    return kept | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": root,
    }


def python(*arguments: str, home: Path, address: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(address, home),
        cwd=home,
    )
    assert "Traceback" not in done.stderr
    return done


def test_what_the_hub_refuses(hub: str, tmp_path: Path) -> None:
    done = python("-c", ASK, home=tmp_path, address=hub)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("conceptvec: ")]
    gated, pickle, nothing = lines
    assert "org/gated is gated and no token is set here (the Hub says: restricted)" in gated
    assert "Accept the licence at https://huggingface.co/org/gated" in gated
    assert "HF_TOKEN" in gated
    assert "pickle files" in pickle
    assert "the Hub has no model org/none" in nothing
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("org/tiny", 0, "using org/tiny as it is in the cache"),
        ("org/other", 2, "is not on this machine and the Hub cannot be reached"),
    ],
)
def test_without_a_network_the_cache_is_used(
    name: str, status: int, said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    argv = ["-m", "conceptvec", "run", "--dry-run", "--device", "cpu", "--model", name]
    done = python(*argv, home=tmp_path, address="http://127.0.0.1:9")  # nothing listens there
    assert done.returncode == status, done.stderr
    assert said in done.stderr
