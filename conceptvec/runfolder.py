"""The run folder: finished parts on disk, atomic and checksummed, so that a run can be killed at any time.

A part is a dict of numpy arrays (and a little text) in one safetensors file. Its SHA-256 stands in ``manifest.json``
beside the configuration and the model's fingerprint. Reading checks the sum; a damaged part is computed again. Several
processes share a folder: each computes its share of the parts and lists them in a manifest of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from conceptvec.config import Config, corpus_file, is_file
from conceptvec.errors import RequestError, RunError, first_line
from conceptvec.version import __version__

logger = logging.getLogger(__name__)

SHARED_DISK_SECONDS = 60  # how long a finished part may take to appear on a shared disk
STALE_SECONDS = 3600  # a half-written file older than this belongs to a process that was killed
Arrays = dict[str, Any]
Task = tuple[str, Callable[[], Arrays]]


def part_name(stem: str, *content: Any) -> str:
    """A part's file name with a digest of what it is made for.

    What is measured follows from computed numbers, which another GPU or library may round otherwise: a part that was
    made for other neurons or prompts then has another name and is never taken for this one.
    """
    return f"{stem}_{hashlib.sha256(repr(content).encode()).hexdigest()[:8]}.safetensors"


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
        found = [self.load(name) for name, _ in tasks]
        todo = [i for i, arrays in enumerate(found) if arrays is None]
        mine = set(shard(range(len(tasks)), self.rank, self.world))
        with tqdm(
            total=len(tasks),
            initial=len(tasks) - len(todo),
            desc=desc,
            unit=unit,
            disable=self.rank > 0,
        ) as bar:
            for i in todo:
                if i in mine:
                    name, compute = tasks[i]
                    found[i] = made = compute()
                    self.save(name, made)
                bar.update(1)
        self.barrier()
        return [
            self.wait_for(name) if arrays is None else arrays
            for (name, _), arrays in zip(tasks, found, strict=True)
        ]

    def wait_for(self, name: str) -> Arrays:
        """A part that another process has just finished; a shared disk may show it late."""
        for attempt in range(SHARED_DISK_SECONDS):
            if (arrays := self.load(name)) is not None:
                return arrays
            time.sleep(min(1, 0.1 * attempt))
        raise RunError(
            f"{name} is missing: another process was lost. Run the same command again to resume."
        )


def shard(items: Sequence[Any], rank: int, world: int) -> list[Any]:
    """This process's share of the items, every `world`-th: the shares differ by at most one and lose nothing.

    It depends on the list alone, never on what is already done, so processes cannot disagree about it.
    """
    return list(items[rank::world])


def identity(config: Config) -> dict[str, Any]:
    """What a run folder belongs to, apart from the model: version, options, and the content of the user's files."""
    files = {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for name, path in (("concepts", config.concepts), ("corpus", corpus_file(config.corpus)))
        if path is not None and is_file(path)  # concepts given in place stand in the configuration
    }
    return {"conceptvec_version": __version__, "configuration": config.identity(), "files": files}


def manifests(path: Path) -> list[dict[str, Any]]:
    """The manifests of all processes in a folder; a damaged one is as good as none: its parts are made again.

    Raises:
        RequestError: another program wrote one of them.
    """
    found = []
    for file in sorted(path.glob("manifest*.json")):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            logger.warning("%s is damaged: what it lists is computed again", file)
            continue
        shape = {"configuration": dict, "files": dict, "model": dict, "parts": dict}
        if not isinstance(manifest, dict) or not all(
            isinstance(manifest.get(k), t) for k, t in shape.items()
        ):
            raise RequestError(f"--out: {file} was not written by conceptvec; give another --out")
        found.append(manifest)
    return found


def differences(
    manifest: dict[str, Any], config: Config, model: dict[str, Any] | None = None
) -> list[str]:
    """How the run in a folder differs from the one that is asked for, as phrases."""
    now = identity(config)
    if (written := manifest.get("conceptvec_version")) != now["conceptvec_version"]:
        return [f"it was written by conceptvec {written}, this is {now['conceptvec_version']}"]
    was = manifest["configuration"]
    out = [
        f"{k} was {was.get(k)!r}, is {v!r}"
        for k, v in now["configuration"].items()
        if was.get(k) != v
    ]
    out += [
        f"the content of the {k} file differs"
        for k, v in now["files"].items()
        if manifest["files"].get(k, v) != v
    ]
    if model is not None:
        for key in ("device", "dtype", "fingerprint"):
            if manifest["model"].get(key) != model[key]:
                phrase = f"the {key} was {manifest['model'].get(key)}, is {model[key]}"
                out.append("the model's weights differ" if key == "fingerprint" else phrase)
    return out


class RunFolder(Parts):
    """A folder that belongs to one configuration and one model.

    Args:
        path: the folder; it is made.
        config: the configuration.
        model: `Model.facts`.
        world: accelerate's PartialState where several processes share the folder.

    Raises:
        RequestError: the folder belongs to another configuration or model, or to another program.
        RunError: it cannot be written.
    """

    def __init__(
        self, path: Path, config: Config, model: dict[str, Any], world: Any = None
    ) -> None:
        self.path, self._world = path, world
        self.rank, self.world = (world.process_index, world.num_processes) if world else (0, 1)
        self._own = path / ("manifest.json" if self.rank == 0 else f"manifest.rank{self.rank}.json")
        kind = str(model["device"]).partition(":")[0]
        self.identity = identity(config) | {
            "model": {"fingerprint": model["fingerprint"], "dtype": model["dtype"], "device": kind}
        }
        earlier = manifests(path)
        if not config.overwrite:
            for manifest in earlier:
                if changes := differences(manifest, config, self.identity["model"]):
                    raise RequestError(
                        f"--out: {self.path} holds another run ({'; '.join(changes)}). "
                        "Give another --out, or --overwrite to start afresh."
                    )
        self.barrier()  # everyone has looked before anyone writes
        if self.rank == 0:
            self._clear(earlier if config.overwrite else [])
        self.barrier()
        self.parts: dict[str, str] = {}
        for manifest in [] if config.overwrite else earlier:
            self.parts |= manifest["parts"]
        self._write_manifest()
        self.barrier()

    def _clear(self, earlier: list[dict[str, Any]]) -> None:
        """Remove what an earlier run wrote and listed, nothing else, and what killed processes left half-written."""
        try:
            for manifest in earlier:
                for name in manifest["parts"]:
                    if (
                        name.endswith(".safetensors")
                        and ".." not in Path(name).parts
                        and name[0] != "/"
                    ):
                        (self.path / name).unlink(missing_ok=True)
            if earlier:
                for file in [
                    *self.path.glob("manifest*.json"),
                    *self.path.glob("concept_vector_results_*.json"),
                ]:
                    file.unlink(missing_ok=True)
                (self.path / "concept_vectors.safetensors").unlink(missing_ok=True)
            for file in self.path.glob("**/.*.tmp"):
                if time.time() - file.stat().st_mtime > STALE_SECONDS:
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def barrier(self) -> None:
        """Wait for the other processes.

        Raises:
            RunError: one of them was lost, or did not arrive within `PATIENCE`.
        """
        if self._world is None or self.world == 1:
            return
        try:
            self._world.wait_for_everyone()
        except RuntimeError as error:
            raise RunError(
                f"another process was lost ({first_line(error, 120)}); what was finished is kept. "
                "Run the same command again to resume."
            ) from None

    def _write_manifest(self) -> None:
        text = json.dumps(self.identity | {"parts": dict(sorted(self.parts.items()))}, indent=1)
        write_atomic(self._own, text.encode())

    def load(self, name: str) -> Arrays | None:
        """The part, if it is listed and its bytes are those that were written."""
        for digest in filter(None, self._digests(name)):
            if (arrays := read_part(self.path / name, digest)) is not None:
                self.parts[name] = digest
                return arrays
        if name in self.parts and (self.path / name).exists():
            logger.warning("%s is damaged or was changed: it is computed again", self.path / name)
        return None

    def _digests(self, name: str) -> Iterator[str | None]:
        """What this process listed, then what the others did, whose manifests are read only if it comes to that."""
        yield self.parts.get(name)
        if self.world > 1:
            yield from (manifest["parts"].get(name) for manifest in manifests(self.path))

    def save(self, name: str, arrays: Arrays) -> None:
        """Write the part and list it."""
        from safetensors.numpy import save

        plain = {
            k: np.frombuffer(json.dumps(v).encode(), np.uint8)
            if k.endswith("_json")
            else np.ascontiguousarray(v)
            for k, v in arrays.items()
        }
        content = save(plain)
        write_atomic(self.path / name, content)
        self.parts[name] = hashlib.sha256(content).hexdigest()
        self._write_manifest()

    def finish(self) -> None:
        """One manifest instead of several: every process has loaded, and so listed, all parts."""
        self.barrier()
        if self.rank == 0:
            self._write_manifest()
            for file in self.path.glob("manifest.rank*.json"):
                file.unlink(missing_ok=True)
        self.barrier()


def read_part(path: Path, digest: str) -> Arrays | None:
    """A part, if its bytes are those that were listed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            return None
        found: Arrays = load(content)
        return {
            k: json.loads(v.tobytes().decode()) if k.endswith("_json") else v
            for k, v in found.items()
        }
    except (OSError, SafetensorError, ValueError):
        return None


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
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path} could not be written ({error.strerror or error}); what was finished is kept. "
        "Make room or give another --out, then run the same command again."
    )
