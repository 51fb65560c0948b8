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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

from conceptvec.concepts import ConceptSet, load_concepts, read_source
from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError, first_line
from conceptvec.files import Arrays, digest, pack
from conceptvec.files import read_part as read_part
from conceptvec.files import write_atomic as write_atomic
from conceptvec.holdings import MANIFEST, clear, conflicts, holds_another, named
from conceptvec.holdings import VECTORS as VECTORS
from conceptvec.holdings import manifests as manifests
from conceptvec.identity import Record, as_read, differences, narrowed, record

logger = logging.getLogger(__name__)

SHARED_DISK_SECONDS = 60  # how long a finished part may take to appear on a shared disk
Task = tuple[str, Callable[[], Arrays]]
Item = TypeVar("Item")
Value = TypeVar("Value")


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
    identity: Record = MappingProxyType({})

    def bind(
        self,
        config: Config,
        model: Mapping[str, Any],
        names: Collection[str],
        *earlier: Record,
    ) -> dict[str, Any]:
        """The record of a stage, after a look at what it builds on.

        Args:
            config: the options that the stage is called with.
            model: `Weights.facts`.
            names: the options that decide the stage's result.
            earlier: the records of what it takes up.

        Raises:
            RequestError: the run folder or an earlier stage was made with other options or another
                model.
        """
        made_with = [was for was in (self.identity, *earlier) if was]
        now = record(config, model, None if self.identity else names, made_with)
        for was in made_with:
            if changes := differences(was, now):
                raise RequestError(
                    f"this stage is asked for something else than those before "
                    f"({'; '.join(changes)}); give all of them the same configuration, model and "
                    "run folder, or start again from the first one that changes"
                )
        return narrowed(now, names)

    def concepts(self, config: Config, with_prompts: bool = True) -> ConceptSet:
        """The concepts of a configuration; a run folder has them from when it was opened."""
        return load_concepts(config.concepts, with_prompts)

    def barrier(self) -> None:
        """Wait for the other processes."""

    def gathered(self, value: Value) -> list[Value]:
        """What each process has in this place, by its rank; all of them must come here."""
        return [value]

    def shared(self, values: np.ndarray, rank: int) -> np.ndarray:  # noqa: ARG002
        """The values of one process, in all of them.

        The others give an array of the same shape and type, which takes them up.
        """
        return values

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
        # The user's concepts are read once; what was read is what all stages get.
        self._concepts = read_source(config.concepts)
        content = None if self._concepts is None else digest(self._concepts)
        self.identity = record(config, model, known=[as_read(config.concepts, content)])

        self._refuse_other_requests(config)
        earlier = manifests(path)
        if not config.overwrite and (changes := conflicts(path, self.identity)):
            raise RequestError(holds_another(path, changes))
        self.barrier()  # everyone has looked before anyone writes
        if self.rank == 0:
            clear(path, earlier if config.overwrite else [])
        self.barrier()
        self.parts: dict[str, str] = {}
        for manifest in [] if config.overwrite else earlier:
            self.parts |= manifest["parts"]
        self._write_manifest()
        self._keep_concepts()
        self.barrier()

    def _refuse_other_requests(self, config: Config) -> None:
        """All processes of a launch must be asked for the same, in the same folder."""
        where = {"out": str(self.path.resolve()), "overwrite": config.overwrite}
        request = {**self.identity, "configuration": self.identity["configuration"] | where}
        request["configuration"]["stages"] = list(config.stages)
        for other in self.gathered(request):
            if changes := differences(other, request):
                raise RequestError(
                    f"the processes of this launch are asked for different runs "
                    f"({'; '.join(changes)}); start all of them with the same options"
                )

    def gathered(self, value: Value) -> list[Value]:
        """What each process has in this place, by its rank; all of them must come here.

        Raises:
            RunError: one of them was lost, or did not arrive in time.
        """
        if self.world == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world
        gather: Any = distributed
        self._with_all(lambda: gather.all_gather_object(values, value))
        return values

    def shared(self, values: np.ndarray, rank: int) -> np.ndarray:
        """The values of one process, in all of them.

        Raises:
            RunError: one of them was lost, or did not arrive in time.
        """
        if self.world > 1 and values.size:
            import torch

            whole: Any = np.ascontiguousarray(values)
            of_bytes = torch.as_tensor(whole.reshape(-1).view(np.uint8))  # not every type is sent
            send: Any = torch.distributed.broadcast
            self._with_all(lambda: send(of_bytes, rank))
            return whole
        return values

    def _keep_concepts(self) -> None:
        """Keep the user's file with the run, as it was read."""
        if self._concepts is None or self.rank > 0:
            return
        name = part_name("concepts", self.identity["files"]["concepts"])
        if name not in self.parts:
            self.save(name, {"file": np.frombuffer(self._concepts, np.uint8)})

    def concepts(self, config: Config, with_prompts: bool = True) -> ConceptSet:
        """The concepts as they were when the folder was opened."""
        is_held = config.concepts == self.identity["configuration"]["concepts"]
        return load_concepts(config.concepts, with_prompts, self._concepts if is_held else None)

    def barrier(self) -> None:
        """Wait for the other processes.

        Raises:
            RunError: one of them was lost, or did not arrive in time.
        """
        if self._processes is not None and self.world > 1:
            self._with_all(self._processes.wait_for_everyone)

    def _with_all(self, meet: Callable[[], Any]) -> None:
        """Do what all processes have to do together."""
        try:
            meet()
        except RuntimeError as error:
            raise RunError(
                f"another process was lost ({first_line(error, 120)}); what was finished is kept. "
                "Run the same command again to resume."
            ) from None

    def _write_manifest(self) -> None:
        document = {**self.identity, "parts": dict(sorted(self.parts.items()))}
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
            for file in named(self.path, MANIFEST):
                if file == self._manifest:
                    continue
                file.unlink(missing_ok=True)
        self.barrier()
