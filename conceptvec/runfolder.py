"""The run folder: finished parts on disk, atomic and checksummed, so that a run can be killed.

A part is a dict of numpy arrays (and a little text) in one safetensors file. Its SHA-256 stands in
``manifest.json`` beside the configuration and the model's fingerprint. Reading checks the sum; a
damaged part is computed again. Several processes share a folder: each computes its share of the
parts and lists them in a manifest of its own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from tqdm.auto import tqdm

from conceptvec.config import Config, corpus_file, is_file
from conceptvec.errors import RequestError, RunError, first_line
from conceptvec.files import Arrays, cannot_write, digest, pack
from conceptvec.files import read_part as read_part
from conceptvec.files import write_atomic as write_atomic
from conceptvec.version import __version__

logger = logging.getLogger(__name__)

SHARED_DISK_SECONDS = 60  # how long a finished part may take to appear on a shared disk
STALE_SECONDS = 3600  # a half-written file older than this belongs to a process that was killed
MANIFESTS, RESULTS = "manifest*.json", "concept_vector_results_*.json"
VECTORS = "concept_vectors.safetensors"
MANIFEST_KEYS = ("configuration", "files", "model", "parts")  # an object each
Task = tuple[str, Callable[[], Arrays]]
Item = TypeVar("Item")


def part_name(stem: str, *content: Any) -> str:
    """A part's file name with a digest of what it is made for.

    What is measured follows from computed numbers, which another GPU or library may round
    otherwise: a part that was made for other neurons or prompts then has another name and is never
    taken for this one.
    """
    return f"{stem}_{digest(repr(content).encode())[:8]}.safetensors"


def shard(items: Sequence[Item], rank: int, world: int) -> list[Item]:
    """This process's share of the items, every `world`-th.

    The shares differ by at most one and lose nothing. They depend on the list alone, never on what
    is already done, so processes cannot disagree about them.
    """
    return list(items[rank::world])


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
        """Every task's part, in order: loaded where it is on disk, computed where it is not."""
        parts = [self.load(name) for name, _ in tasks]
        missing = [i for i, arrays in enumerate(parts) if arrays is None]
        share = set(shard(range(len(tasks)), self.rank, self.world))
        done = len(tasks) - len(missing)
        silent = self.rank > 0
        with tqdm(total=len(tasks), initial=done, desc=desc, unit=unit, disable=silent) as bar:
            for i in missing:
                if i in share:
                    name, compute = tasks[i]
                    parts[i] = arrays = compute()
                    self.save(name, arrays)
                bar.update(1)
        self.barrier()
        return [
            self.wait_for(name) if arrays is None else arrays
            for (name, _), arrays in zip(tasks, parts, strict=True)
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


def identity(config: Config) -> dict[str, Any]:
    """What a run folder belongs to, apart from the model.

    That is the version, the options, and the content of the user's files.
    """
    files = {"concepts": config.concepts, "corpus": corpus_file(config.corpus)}
    return {
        "conceptvec_version": __version__,
        "configuration": config.identity(),
        "files": {
            name: digest(Path(path).read_bytes())
            for name, path in files.items()
            if path is not None and is_file(path)  # else it stands in the configuration
        },
    }


def manifests(path: Path) -> list[dict[str, Any]]:
    """The manifests of all processes in a folder.

    A damaged one is as good as none: its parts are made again.

    Raises:
        RequestError: another program wrote one of them.
    """
    sound: list[dict[str, Any]] = []
    for file in sorted(path.glob(MANIFESTS)):
        try:
            manifest: Any = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            logger.warning("%s is damaged: what it lists is computed again", file)
            continue
        if not _is_manifest(manifest):
            raise RequestError(f"--out: {file} was not written by conceptvec; give another --out")
        sound.append(manifest)
    return sound


def _is_manifest(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    entries = cast("dict[str, Any]", document)
    return all(isinstance(entries.get(key), dict) for key in MANIFEST_KEYS)


def differences(
    manifest: dict[str, Any], config: Config, model: dict[str, Any] | None = None
) -> list[str]:
    """How the run in a folder differs from the one that is asked for, as phrases."""
    asked = identity(config)
    version = manifest.get("conceptvec_version")
    if version != asked["conceptvec_version"]:
        return [f"it was written by conceptvec {version}, this is {asked['conceptvec_version']}"]
    options, files = manifest["configuration"], manifest["files"]
    phrases = [
        f"{name} was {options.get(name)!r}, is {value!r}"
        for name, value in asked["configuration"].items()
        if options.get(name) != value
    ]
    phrases += [
        f"the content of the {name} file differs"
        for name, content in asked["files"].items()
        if files.get(name, content) != content
    ]
    return phrases + (_model_differences(manifest["model"], model) if model else [])


def _model_differences(written: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    phrases = [
        f"the {key} was {written.get(key)}, is {model[key]}"
        for key in ("device", "dtype")
        if written.get(key) != model[key]
    ]
    if written.get("fingerprint") != model["fingerprint"]:
        phrases.append("the model's weights differ")
    return phrases


class RunFolder(Parts):
    """A folder that belongs to one configuration and one model.

    Args:
        path: the folder; it is made.
        config: the configuration.
        model: `Weights.facts`.
        processes: accelerate's PartialState where several processes share the folder.

    Raises:
        RequestError: the folder belongs to another configuration or model, or to another program.
        RunError: it cannot be written.

    Attributes:
        parts: the finished parts' names and digests.
    """

    def __init__(
        self, path: Path, config: Config, model: dict[str, Any], processes: Any = None
    ) -> None:
        self.path, self._processes = path, processes
        if processes:
            self.rank, self.world = processes.process_index, processes.num_processes
        name = "manifest.json" if self.rank == 0 else f"manifest.rank{self.rank}.json"
        self._manifest = path / name
        facts = {key: model[key] for key in ("fingerprint", "dtype")}
        facts["device"] = str(model["device"]).partition(":")[0]
        self.identity = identity(config) | {"model": facts}

        earlier = manifests(path)
        if not config.overwrite:
            self._refuse_another_run(earlier, config)
        self.barrier()  # everyone has looked before anyone writes
        if self.rank == 0:
            self._clear(earlier if config.overwrite else [])
        self.barrier()
        self.parts: dict[str, str] = {}
        for manifest in [] if config.overwrite else earlier:
            self.parts |= manifest["parts"]
        self._write_manifest()
        self.barrier()

    def _refuse_another_run(self, earlier: Iterable[dict[str, Any]], config: Config) -> None:
        for manifest in earlier:
            if changes := differences(manifest, config, self.identity["model"]):
                raise RequestError(
                    f"--out: {self.path} holds another run ({'; '.join(changes)}). "
                    "Give another --out, or --overwrite to start afresh."
                )

    def _clear(self, earlier: Sequence[dict[str, Any]]) -> None:
        """Remove what an earlier run wrote and listed, and what killed processes left half-written.

        Nothing else is touched.
        """
        try:
            for manifest in earlier:
                for name in filter(_is_part_name, manifest["parts"]):
                    (self.path / name).unlink(missing_ok=True)
            if earlier:
                for file in [*self.path.glob(MANIFESTS), *self.path.glob(RESULTS)]:
                    file.unlink(missing_ok=True)
                (self.path / VECTORS).unlink(missing_ok=True)
            for file in self.path.glob("**/.*.tmp"):
                if time.time() - file.stat().st_mtime > STALE_SECONDS:
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def barrier(self) -> None:
        """Wait for the other processes.

        Raises:
            RunError: one of them was lost, or did not arrive in time.
        """
        if self._processes is None or self.world == 1:
            return
        try:
            self._processes.wait_for_everyone()
        except RuntimeError as error:
            raise RunError(
                f"another process was lost ({first_line(error, 120)}); what was finished is kept. "
                "Run the same command again to resume."
            ) from None

    def _write_manifest(self) -> None:
        document = self.identity | {"parts": dict(sorted(self.parts.items()))}
        write_atomic(self._manifest, json.dumps(document, indent=1).encode())

    def load(self, name: str) -> Arrays | None:
        """The part, if it is listed and its bytes are those that were written."""
        for listed in self._digests(name):
            if (arrays := read_part(self.path / name, listed)) is not None:
                self.parts[name] = listed
                return arrays
        if name in self.parts and (self.path / name).exists():
            logger.warning("%s is damaged or was changed: it is computed again", self.path / name)
        return None

    def _digests(self, name: str) -> Iterator[str]:
        """What this process listed, then what the others did.

        Their manifests are read only if it comes to that.
        """
        if name in self.parts:
            yield self.parts[name]
        if self.world > 1:
            for manifest in manifests(self.path):
                if name in manifest["parts"]:
                    yield manifest["parts"][name]

    def save(self, name: str, arrays: Arrays) -> None:
        """Write the part and list it."""
        content = pack(arrays)
        write_atomic(self.path / name, content)
        self.parts[name] = digest(content)
        self._write_manifest()

    def finish(self) -> None:
        """One manifest instead of several: every process has loaded, and so listed, all parts."""
        self.barrier()
        if self.rank == 0:
            self._write_manifest()
            for file in self.path.glob("manifest.rank*.json"):
                file.unlink(missing_ok=True)
        self.barrier()


def _is_part_name(name: str) -> bool:
    """Whether a name in a manifest can be a part's, inside the folder."""
    is_inside = ".." not in Path(name).parts and not name.startswith("/")
    return name.endswith(".safetensors") and is_inside
