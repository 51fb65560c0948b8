"""What a run will need and what is there, found out before anything is downloaded or loaded."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptvec.concepts import load_concepts
from conceptvec.config import Config
from conceptvec.holdings import RESULTS, conflicts, holds_another, manifests, named
from conceptvec.identity import Record, record
from conceptvec.model.checkpoint import Checkpoint, find
from conceptvec.text import notebook_html
from conceptvec.tools.disk import free_disk, held_bytes, unwritable

if TYPE_CHECKING:
    import torch

    from conceptvec.tools.estimates import Needs, Shape, Work

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class ModelFacts:
    """What the checkpoint says of itself, its dimensions apart."""

    id: str
    source: str
    revision: str | None
    gated: bool
    type: str
    parameters: int


@dataclass(frozen=True)
class DeviceFacts:
    """The device and the precision of the forward pass, with the reason for it."""

    device: str
    name: str
    dtype: str
    why: str


@dataclass(frozen=True)
class Has:
    """What is free: memory of the device, disk where the run folder will be."""

    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class FolderState:
    """The run folder as a run would find it."""

    path: str
    state: str


@dataclass(frozen=True)
class Plan:
    """The answer of `preflight`.

    Attributes:
        warnings: the run may go on.
        problems: it cannot.
    """

    model: ModelFacts
    shape: Shape
    device: DeviceFacts
    work: Work
    needs: Needs
    has: Has
    run_folder: FolderState
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems

    def document(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        whole = asdict(self)
        whole["model"] |= whole.pop("shape")
        return whole | {"ok": self.ok}

    def lines(self) -> list[tuple[str, str]]:
        """The plan as pairs of name and sentence."""
        return [
            ("model", self._model_line()),
            ("files", self._files_line()),
            ("device", f"{self._device_name()} in {self.device.dtype}: {self.device.why}"),
            ("work", self._work_line()),
            ("memory", self._memory_line()),
            ("disk", self._disk_line()),
            ("time", self._time_line()),
            ("folder", f"{self.run_folder.path}: {self.run_folder.state}"),
            *(("note", warning) for warning in self.warnings),
            *(("problem", problem) for problem in self.problems),
            ("ready", "yes" if self.ok else "no"),
        ]

    def _model_line(self) -> str:
        shape = self.shape
        return (
            f"{self.model.id} ({self.model.type}): {shape.layers} layers, "
            f"hidden {shape.hidden_size}, MLP {shape.intermediate_size}, "
            f"vocabulary {shape.vocab_size:,}, ≈ {self.model.parameters / 1e6:,.1f} M parameters"
        )

    def _files_line(self) -> str:
        missing = self.needs.download_bytes
        arrives = f"{size(missing)} to download" if missing else "all here"
        revision = f", {self.model.revision[:12]}" if self.model.revision else ""
        granted = f"; gated, and access is granted: {HUB}/{self.model.id}"
        return f"{arrives} ({self.model.source}{revision}){granted if self.model.gated else ''}"

    def _device_name(self) -> str:
        return f"{self.device.device} ({self.device.name})"

    def _work_line(self) -> str:
        work = self.work
        damaged = f"; {work.text_tokens:,} tokens of text, and damage of what is used"
        return (
            f"stages {', '.join(map(str, work.stages))}: {work.layers} layers × "
            f"{work.per_layer:,} neurons, both poles "
            f"({work.projection_flops / 1e12:.3g} TFLOP){damaged if 3 in work.stages else ''}"
        )

    def _memory_line(self) -> str:
        needed, free = size(self.needs.memory_bytes), size(self.has.memory_bytes)
        return f"≈ {needed} needed, {free} free on the device"

    def _disk_line(self) -> str:
        needed = size(self.needs.disk_bytes + self.needs.download_bytes)
        return f"≈ {needed} needed, {size(self.has.disk_bytes)} free"

    def _time_line(self) -> str:
        if self.needs.seconds is None:
            return "not estimated"
        low, high = (duration(seconds) for seconds in self.needs.seconds)
        return f"≈ {low} to {high}{' and the download' if self.needs.download_bytes else ''}"

    def __str__(self) -> str:
        return "\n".join(f"{name:8} {text}" for name, text in self.lines())

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"
            for name, text in self.lines()
        )
        return notebook_html(f"<table>{''.join(rows)}</table>")


def preflight(config: Config, is_timed: bool = True) -> Plan:
    """Look at model, device, memory, disk and run folder; nothing is downloaded, loaded or written.

    Args:
        config: of the run.
        is_timed: whether the plan says how long it will take; half a second goes by for it.

    Raises:
        RequestError: there is no such model, no access to it, its files cannot be used, or a file
            that the configuration names is bad.
    """
    # The user's own files come first: they are quick to read, and torch is not.
    load_concepts(config.concepts)
    from conceptvec.effects.corpora import TextFile, parse_corpus
    from conceptvec.model.device import choose_device, choose_dtype
    from conceptvec.tools.estimates import needs_of, seconds_of, shape_of, work_of

    if 3 in config.stages:
        source = parse_corpus(config.corpus)
        for _ in source.documents() if isinstance(source, TextFile) else ():
            pass  # to the end: it may stop being text anywhere

    # What would run, and where.
    checkpoint = find(config)
    device = choose_device(config.device)
    dtype, why = choose_dtype(config.dtype, device)
    precision = str(dtype).removeprefix("torch.")
    shape = shape_of(checkpoint)
    work = work_of(config, shape, device.type)

    # What that takes, what is there, and whether the one fits into the other.
    folder = config.folder(device.type)
    needs = needs_of(config, checkpoint, shape, work, device, dtype)
    if is_timed:
        needs = replace(needs, seconds=seconds_of(config, shape, work, device, dtype))
    has = Has(memory_bytes=device_memory(device), disk_bytes=free_disk(folder))
    # The weights are not loaded: what is known of the model is its shape.
    facts = {
        "device": str(device),
        "dtype": precision,
        "layers": shape.layers,
        "intermediate_size": shape.intermediate_size,
    }
    state, taken = _folder_state(folder, config, record(config, facts))
    return Plan(
        model=_model_facts(config, checkpoint),
        shape=shape,
        device=DeviceFacts(
            device=str(device),
            name=device_name(device),
            dtype=precision,
            why=why,
        ),
        work=work,
        needs=needs,
        has=has,
        run_folder=FolderState(path=str(folder), state=state),
        warnings=tuple(_warnings(needs, has)),
        problems=(*_space_problems(folder, needs, has), *taken),
    )


def _model_facts(config: Config, checkpoint: Checkpoint) -> ModelFacts:
    return ModelFacts(
        id=config.model,
        source=checkpoint.source,
        revision=checkpoint.revision,
        gated=checkpoint.gated,
        type=checkpoint.config["model_type"],
        parameters=checkpoint.parameters,
    )


def _warnings(needs: Needs, has: Has) -> list[str]:
    warnings: list[str] = []
    if needs.memory_bytes > has.memory_bytes:
        warnings.append(
            "memory may not do: a smaller --batch-size, --dtype bfloat16 or another --device "
            "needs less; a batch that does not fit is halved"
        )
    return warnings


def _space_problems(folder: Path, needs: Needs, has: Has) -> list[str]:
    """What disks and rights forbid."""
    problems: list[str] = []
    missing = max(needs.disk_bytes - held_bytes(folder), 0)
    if missing > has.disk_bytes:
        problems.append(
            f"--out: {folder} has room for {size(has.disk_bytes)}, a run needs about "
            f"{size(missing)}; make room or give another --out"
        )
    cache = hub_cache()
    if needs.download_bytes > free_disk(cache):
        problems.append(
            f"the download of {size(needs.download_bytes)} does not fit into {cache} "
            f"({size(free_disk(cache))} free); make room or set HF_HOME to a larger disk"
        )
    return problems + unwritable(folder)


def _folder_state(folder: Path, config: Config, asked: Record) -> tuple[str, list[str]]:
    """What a run finds in its folder, and the problems with that."""
    earlier = manifests(folder)
    if config.overwrite:
        return ("started afresh" if earlier else "new"), []
    if changes := conflicts(folder, asked):
        return "of another run", [holds_another(folder, changes)]
    state = f"resumed, {len(earlier[-1]['parts'])} parts are done" if earlier else "new"
    return state, _longer_runs(folder, config)


def _longer_runs(folder: Path, config: Config) -> list[str]:
    """A finished run of more stages is no less than this one: it is not replaced."""
    problems: list[str] = []
    for path in named(folder, RESULTS):
        stages = _stages_of(path)
        if len(stages) > len(config.stages):
            problems.append(
                f"--stages: {path} holds the results of stages {', '.join(map(str, stages))}, "
                "and a shorter run would replace them. Give the same --stages, another --out, "
                "or --overwrite."
            )
    return problems


def _stages_of(path: Path) -> list[int]:
    """The stages of a results file; none where it is no such file."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["configuration"]["stages"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def device_memory(device: torch.device) -> int:
    """Free bytes of the device's memory."""
    import torch

    from conceptvec.model.memory import available_memory

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return available_memory()


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def hub_cache() -> Path:
    """Where the Hub's files are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def size(count: float) -> str:
    """Bytes for people."""
    for unit, name, digits in ((1e9, "GB", 1), (1e6, "MB", 0)):
        if count >= unit:
            return f"{count / unit:.{digits}f} {name}"
    return f"{count / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{max(seconds, 1):.0f} s"
