"""Runs of the command line in processes of their own.

They are forked from a server that has imported everything once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

VOLATILE = ("created", "environment", "timings", "resources")
PRELOAD = [
    "tests.children",
    "conceptvec.pipeline",
    "conceptvec.validation.stage",
    "conceptvec.tools.selfcheck",
    "conceptvec.show.figures",
    "transformers.models.gemma3.modeling_gemma3",
]


def _child(argv: list[str], env: dict[str, str], log: str, folder: str) -> None:
    # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(env)
    with open(log, "w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        import torch

        torch.set_num_threads(1)
        from conceptvec.cli import main

        try:
            status = main(argv)
        except BaseException:
            traceback.print_exc()
            status = 99
        file.flush()
    os._exit(status)


def start(
    argv: list[str], log: Path, env: dict[str, str] | None = None
) -> multiprocessing.process.BaseProcess:
    """Start ``conceptvec ARGV``; its output goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_child, args=(argv, env or {}, str(log), os.getcwd()))
    process.start()
    return process


def world(size: int) -> list[dict[str, str]]:
    """The environment variables that torchrun sets for `size` processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def lasting(folder: Path) -> str:
    """The results of a run without what may differ from run to run."""
    document = json.loads((folder / "concept_vector_results_cpu.json").read_text(encoding="utf-8"))
    for key in VOLATILE:
        del document[key]
    for key in ("out", "overwrite"):
        del document["configuration"][key]
    return json.dumps(document)


def parts(folder: Path) -> dict[str, str]:
    """The parts that the folder's manifests list."""
    out: dict[str, str] = {}
    for file in folder.glob("manifest*.json"):
        try:
            out |= json.loads(file.read_text())["parts"]
        except (OSError, ValueError):
            continue
    return out
