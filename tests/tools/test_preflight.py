"""Preflight: what it says of a run, and what the Hub's refusals become."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conceptvec import Config
from conceptvec.cli import main
from conceptvec.tools.preflight import preflight


def test_the_plan_of_the_demo(tmp_path, capsys) -> None:
    out = str(tmp_path / "run")
    assert main(["run", "--dry-run", "--device", "cpu", "--out", out, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["ok"] and plan["model"]["layers"] == 4 and plan["model"]["hidden_size"] == 96
    assert plan["work"]["projection_flops"] == 2 * 96 * 4096 * 4 * 40
    assert plan["needs"]["download_bytes"] == 0 and plan["device"]["why"] == "exact on a CPU"
    # The demo's own report of its size, which the plan takes from the bytes of the file.
    weights = json.loads(
        (Path(__file__).parents[2] / "conceptvec/data/demo/config.json").read_text()
    )
    assert plan["model"]["vocab_size"] == weights["vocab_size"]
    from conceptvec import load_model

    exact = sum(p.numel() for p in load_model(Config(device="cpu")).hf.parameters())
    assert abs(plan["model"]["parameters"] / exact - 1) < 0.02
    assert main(["run", "--dry-run", "--device", "cpu", "--out", out]) == 0
    text = capsys.readouterr().out
    assert "exact on a CPU" in text and "4 layers × 40 neurons" in text and "ready    yes" in text
    assert not (tmp_path / "run").exists()  # nothing was written


def test_the_plan_in_a_cell_is_escaped(tmp_path) -> None:
    plan = preflight(Config(device="cpu", out=str(tmp_path / "<b>&")))
    assert "&lt;b&gt;&amp;" in plan._repr_html_() and "<b>" not in plan._repr_html_()


def test_a_full_disk_and_little_memory(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("conceptvec.tools.preflight.free_disk", lambda _: 1000)
    monkeypatch.setattr("conceptvec.tools.preflight.device_memory", lambda _: 1000)
    assert main(["run", "--dry-run", "--device", "cpu", "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().out
    assert "has room for 1 kB" in said and "memory may not do" in said and "ready    no" in said
    assert main(["run", "--device", "cpu", "--out", str(tmp_path / "r")]) == 2
    assert "make room or give another --out" in capsys.readouterr().err


def test_the_state_of_the_run_folder(tmp_path, capsys) -> None:
    argv = [
        "run",
        "--device",
        "cpu",
        "--stages",
        "1,2",
        "--layers",
        "0",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(argv) == 0
    config = Config(device="cpu", layers="0", out=str(tmp_path / "r"))
    assert preflight(config).run_folder.state == "resumed, 2 parts are done"
    other = preflight(Config(device="cpu", layers="1", out=str(tmp_path / "r")))
    assert not other.ok and "layers was '0', is '1'" in other.problems[0]
    afresh = Config(device="cpu", layers="1", out=str(tmp_path / "r"), overwrite=True)
    assert preflight(afresh).ok and preflight(afresh).run_folder.state == "started afresh"


def test_a_shorter_run_does_not_replace_finished_results(tmp_path, capsys) -> None:
    argv = [
        "run",
        "--device",
        "cpu",
        "--layers",
        "0",
        "--max-vectors",
        "5",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main([*argv, "--stages", "1"]) == 0
    assert main([*argv, "--stages", "1,2"]) == 0
    before = (tmp_path / "r/concept_vector_results_cpu.json").read_bytes()
    assert main([*argv, "--stages", "1"]) == 2
    assert (
        "holds the results of stages 1, 2, and a shorter run would replace them"
        in capsys.readouterr().err
    )
    assert (tmp_path / "r/concept_vector_results_cpu.json").read_bytes() == before
    assert main([*argv, "--stages", "1", "--overwrite"]) == 0
    assert [f.name for f in (tmp_path / "r/figures").iterdir()] == [
        "funnel.png"
    ]  # no figure of the longer run


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
            self.answer(200, {"id": name, "sha": "a" * 40, "gated": "manual" if "gated" in name else False,
                              "siblings": siblings, "private": False, "tags": [], "downloads": 0})  # fmt: skip
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
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_the_hub_refuses(hub, tmp_path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    gated, pickle, none = [
        line for line in done.stderr.splitlines() if line.startswith("conceptvec: ")
    ]
    assert (
        "org/gated is gated and no token is set here. Accept the licence at https://huggingface.co/org/gated"
        in gated
    )
    assert (
        "HF_TOKEN" in gated and "pickle files" in pickle and "the Hub has no model org/none" in none
    )
    assert not list(tmp_path.rglob("*.safetensors")) and "Traceback" not in done.stderr


def test_without_a_network_the_cache_is_used(tiny_folder, tmp_path) -> None:
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
    }
    environment |= {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }  # nothing listens there
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])

    def dry_run(name: str) -> subprocess.CompletedProcess:
        argv = [
            sys.executable,
            "-m",
            "conceptvec",
            "run",
            "--dry-run",
            "--device",
            "cpu",
            "--model",
            name,
        ]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
        )

    done = dry_run("org/tiny")
    assert done.returncode == 0 and "using org/tiny as it is in the cache" in done.stderr, (
        done.stderr
    )
    done = dry_run("org/other")
    assert (
        done.returncode == 2
        and "is not on this machine and the Hub cannot be reached" in done.stderr
    )
    assert "Traceback" not in done.stderr
