"""The run folder: finished parts on disk, atomic and checksummed, so that a run can be killed at any time.

A part is a dict of numpy arrays (and a little text) in one safetensors file. Its SHA-256 stands in ``manifest.json``
beside the configuration and the model's fingerprint. Reading checks the sum; a damaged part is computed again. Several
processes share a folder: each computes its slice of the parts and lists them in a manifest of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError

Arrays = dict[str, Any]
Task = tuple[str, Callable[[], Arrays]]


def plain(value: Any) -> float | None:
    """A number as the results hold it, six significant digits; NaN (not measured) is null."""
    number = float(value)
    return None if math.isnan(number) else float(f"{number:.6g}")


class Parts:
    """Computes parts and keeps nothing: what the stages use when there is no run folder."""

    rank, world = 0, 1

    def barrier(self) -> None:
        """Wait for the other processes."""

    def load(self, name: str) -> Arrays | None:  # noqa: ARG002
        """The part, if it is there and sound."""
        return None

    def save(self, name: str, arrays: Arrays) -> None:
        """Keep a finished part."""

    def map(self, tasks: Sequence[Task], desc: str, unit: str) -> list[Arrays]:
        """Every task's part, in order: loaded where it is on disk, computed and kept where it is not."""
        out: list[Arrays | None] = [self.load(name) for name, _ in tasks]
        todo = [i for i, found in enumerate(out) if found is None]
        mine = shard(todo, self.rank, self.world)
        with tqdm(total=len(tasks), initial=len(tasks) - len(todo), desc=desc, unit=unit, disable=self.rank > 0) as bar:
            for i in mine:
                name, compute = tasks[i]
                out[i] = compute()
                self.save(name, out[i])
                bar.update(1)
            bar.update(len(todo) - len(mine))
        self.barrier()
        found = []
        for (name, _), arrays in zip(tasks, out, strict=True):
            arrays = arrays if arrays is not None else self.load(name)
            if arrays is None:
                raise RunError(f"{name} is missing: another process was lost. Run the same command again to resume.")
            found.append(arrays)
        return found


def shard(items: Sequence[Any], rank: int, world: int) -> list[Any]:
    """This process's contiguous share of the items; the shares differ by at most one and lose nothing."""
    edges = [len(items) * r // world for r in range(world + 1)]
    return list(items[edges[rank] : edges[rank + 1]])


class RunFolder(Parts):
    """A folder that belongs to one configuration and one model.

    Raises:
        RequestError: the folder belongs to another configuration or model, or cannot be written.
    """

    def __init__(self, path: Path, config: Config, model: dict[str, Any], world: Any = None) -> None:
        self.path, self._world = path, world
        self.rank, self.world = (world.process_index, world.num_processes) if world else (0, 1)
        self._own = path / ("manifest.json" if self.rank == 0 else f"manifest.rank{self.rank}.json")
        self.identity = {"configuration": config.identity(), "model": model["fingerprint"]}
        if self.rank == 0:
            try:
                if config.overwrite and (path / "manifest.json").exists():
                    for known in ("projections", "validation", "figures"):
                        shutil.rmtree(path / known, ignore_errors=True)
                    for file in [*path.glob("manifest*.json"), *path.glob("*.safetensors")]:
                        file.unlink()
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RequestError(f"--out: {path} cannot be written ({error}); give another folder") from None
        self.barrier()
        manifests = [self._read(file) for file in sorted(path.glob("manifest*.json"))]
        for manifest in manifests:
            self._same(manifest)
        self.barrier()
        self.parts: dict[str, str] = {}
        for manifest in manifests:
            self.parts |= manifest.get("parts", {})
        self.barrier()
        self._write_manifest()

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self._world is not None and self.world > 1:
            self._world.wait_for_everyone()

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}  # damaged: every part is then computed again

    def _same(self, manifest: dict[str, Any]) -> None:
        if not manifest:
            return
        was, now = manifest.get("configuration", {}), self.identity["configuration"]
        changes = [f"{k} was {was.get(k)!r}, is {v!r}" for k, v in now.items() if was.get(k) != v]
        if manifest.get("model") != self.identity["model"]:
            changes.append("the model's weights differ")
        if changes:
            raise RequestError(
                f"--out: {self.path} holds another run ({'; '.join(changes)}). "
                "Give another --out, or --overwrite to start afresh."
            )

    def _write_manifest(self) -> None:
        text = json.dumps(self.identity | {"parts": dict(sorted(self.parts.items()))}, indent=1)
        write_atomic(self._own, text.encode())

    def load(self, name: str) -> Arrays | None:
        """The part, if it is listed and its bytes are those that were written."""
        from safetensors.numpy import load

        expected = self.parts.get(name) or self._others().get(name)
        try:
            content = (self.path / name).read_bytes()
        except OSError:
            return None
        if expected is None or hashlib.sha256(content).hexdigest() != expected:
            return None
        return {k: _text(v) if k.endswith("_json") else v for k, v in load(content).items()}

    def _others(self) -> dict[str, str]:
        if self.world == 1:
            return {}
        out: dict[str, str] = {}
        for file in self.path.glob("manifest*.json"):
            out |= self._read(file).get("parts", {})
        return out

    def save(self, name: str, arrays: Arrays) -> None:
        """Write the part and list it."""
        from safetensors.numpy import save

        plain = {
            k: np.frombuffer(json.dumps(v).encode(), np.uint8) if k.endswith("_json") else np.ascontiguousarray(v)
            for k, v in arrays.items()
        }
        content = save(plain)
        write_atomic(self.path / name, content)
        self.parts[name] = hashlib.sha256(content).hexdigest()
        self._write_manifest()

    def finish(self) -> None:
        """Merge the manifests of several processes into one."""
        self.parts |= self._others()
        self.barrier()
        if self.rank == 0:
            self._write_manifest()
            for file in self.path.glob("manifest.rank*.json"):
                file.unlink()
        self.barrier()


def _text(array: np.ndarray) -> Any:
    return json.loads(array.tobytes().decode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there completely or not at all.

    Raises:
        RunError: the disk is full or the folder cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"{path} could not be written ({error.strerror or error}); what was finished is kept. "
            "Make room or give another --out, then run the same command again."
        ) from None
