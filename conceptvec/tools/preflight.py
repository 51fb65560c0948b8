"""What a run will need and what is there, found out before anything is downloaded or loaded.

Memory and disk follow from the model's dimensions and what runs of these shapes were seen to take. Time follows from
two matrix products of the run's own shapes, timed on the device; it is an estimate, good within a factor of about
three.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from html import escape
from pathlib import Path
from typing import Any

from conceptvec.concepts import load_concepts
from conceptvec.config import Config, parse_layers
from conceptvec.errors import RequestError
from conceptvec.model.checkpoint import ITEMSIZE, Checkpoint, find
from conceptvec.validation.rule import MAX_Q

BASE_MEMORY = 700 * 2**20  # Python and torch themselves
PROMPT_TOKENS, CORPUS_TOKENS = 12, 40_000  # of a prompt with its answer, of the built-in corpus
OVERHEAD = 1.5  # attention, norms and selection beside the matrix products


class Plan(dict):
    """The answer of `preflight`: a plain dict that also shows as text and in a notebook cell."""

    def lines(self) -> list[tuple[str, str]]:
        """The plan as pairs of name and sentence."""
        model, device, work, needs, has = (
            self[k] for k in ("model", "device", "work", "needs", "has")
        )
        arrives = (
            f"{size(needs['download_bytes'])} to download"
            if needs["download_bytes"]
            else "all here"
        )
        low, high = (duration(s) for s in needs["seconds"])
        scoring = (
            f"; {work['null_neurons']} null neurons and the candidates are damaged"
            if 3 in work["stages"]
            else ""
        )
        return [
            ("model", f"{model['id']} ({model['type']}): {model['layers']} layers, hidden {model['hidden_size']}, MLP "
             f"{model['intermediate_size']}, vocabulary {model['vocab_size']:,}, ≈ {model['parameters'] / 1e6:,.1f} M "
             "parameters"),
            ("files", f"{arrives} ({model['source']}{', ' + model['revision'][:12] if model['revision'] else ''})"
             + (f"; gated, and access is granted: https://huggingface.co/{model['id']}" if model["gated"] else "")),
            ("device", f"{device['device']} ({device['name']}) in {device['dtype']}: {device['why']}"),
            ("work", f"stages {', '.join(map(str, work['stages']))}: {work['layers']} layers × {work['per_layer']:,} "
             f"neurons, both poles ({work['projection_flops'] / 1e12:.3g} TFLOP){scoring}"),
            ("memory", f"≈ {size(needs['memory_bytes'])} needed, {size(has['memory_bytes'])} free on the device"),
            ("disk", f"≈ {size(needs['disk_bytes'] + needs['download_bytes'])} needed, {size(has['disk_bytes'])} free"),
            ("time", f"≈ {low} to {high}" + (" and the download" if needs["download_bytes"] else "")),
            ("folder", f"{self['run_folder']['path']}: {self['run_folder']['state']}"),
            *(("note", w) for w in self["warnings"]),
            *(("problem", p) for p in self["problems"]),
            ("ready", "yes" if self["ok"] else "no"),
        ]  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(f"{name:8} {text}" for name, text in self.lines())

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"
            for name, text in self.lines()
        )
        return f"<table>{body}</table>"


def preflight(config: Config) -> Plan:
    """Look at model, device, memory, disk, network and run folder; nothing is downloaded, loaded or written.

    Returns:
        a dict with ``model``, ``device``, ``work``, ``needs``, ``has``, ``run_folder``, ``warnings`` (the run may go
        on), ``problems`` (it cannot) and ``ok``.

    Raises:
        RequestError: there is no such model, no access to it, its files cannot be used, or a file that the
            configuration names is bad.
    """
    concepts = load_concepts(config.concepts)
    from conceptvec.extraction.activations import read_corpus
    from conceptvec.model.device import choose_device, choose_dtype

    for _ in read_corpus(config.corpus) if config.stages != (1,) else ():
        pass  # to the end: it may stop being text anywhere
    checkpoint = find(config)
    device = choose_device(config.device)
    dtype, why = choose_dtype(config.dtype, device)
    name = str(dtype).removeprefix("torch.")
    d = dimensions(checkpoint)
    layers = parse_layers(config.layers, d["layers"])
    per_layer = min(config.max_vectors or d["intermediate_size"], d["intermediate_size"])
    neurons, nulls = (
        per_layer * len(layers),
        min(config.nulls, len(layers) * d["intermediate_size"]),
    )
    prompts = sum(len(group) for group in concepts.prompts().values())
    shown = d["vocab_size"] * d["hidden_size"]
    folder = config.folder(device.type)
    plan = Plan(
        model={"id": config.model, "source": checkpoint.source, "revision": checkpoint.revision,
               "gated": checkpoint.gated, "type": checkpoint.config["model_type"],
               "parameters": checkpoint.parameters, **d},
        device={"device": str(device), "name": device_name(device), "dtype": name, "why": why},
        work={"stages": list(config.stages), "layers": len(layers), "per_layer": per_layer, "neurons": neurons,
              "null_neurons": nulls, "prompts": prompts, "projection_flops": 2 * shown * neurons},
        needs={
            "memory_bytes": BASE_MEMORY * (device.type == "cpu") + memory(config, checkpoint, d, neurons, name),
            "disk_bytes": neurons * (16 * config.top_k + 32) + len(layers) * d["intermediate_size"] * 80
            + (3 in config.stages) * (2 * nulls * prompts * 8 + 2_000_000),
            "download_bytes": sum(n for _, n in checkpoint.download),
            "seconds": seconds(config, d, neurons, nulls, prompts, device, dtype),
        },
        has={"memory_bytes": device_memory(device), "disk_bytes": free_disk(folder)},
        run_folder={"path": str(folder), "state": "new"},
    )  # fmt: skip
    _judge(plan, config, folder)
    return plan


def _judge(plan: Plan, config: Config, folder: Path) -> None:
    """Fill in the state of the run folder, the warnings and the problems."""
    needs, has = plan["needs"], plan["has"]
    warnings, problems = [], []
    if needs["memory_bytes"] > has["memory_bytes"]:
        warnings.append(
            "memory may not do: a smaller --batch-size, --dtype bfloat16 or another --device needs less; a batch that "
            "does not fit is halved"
        )
    if needs["disk_bytes"] > has["disk_bytes"]:
        problems.append(f"--out: {folder} has room for {size(has['disk_bytes'])}, a run needs about "
                        f"{size(needs['disk_bytes'])}; make room or give another --out")  # fmt: skip
    cache = hub_cache()
    if needs["download_bytes"] > free_disk(cache):
        problems.append(f"the download of {size(needs['download_bytes'])} does not fit into {cache} "
                        f"({size(free_disk(cache))} free); make room or set HF_HOME to a larger disk")  # fmt: skip
    if (folder.exists() and not folder.is_dir()) or not os.access(
        _existing(folder), os.W_OK | os.X_OK
    ):
        problems.append(f"--out: {folder} cannot be written; give another folder")
    from conceptvec.runfolder import differences, manifests

    if 3 in config.stages and config.nulls < 1 / MAX_Q - 1:
        warnings.append(
            f"--nulls {config.nulls}: with fewer than {1 / MAX_Q - 1:.0f} null neurons no p can reach {MAX_Q}, so "
            "nothing can be validated"
        )
    for manifest in manifests(folder):
        changes = [] if config.overwrite else differences(manifest, config)
        plan["run_folder"]["state"] = f"resumed, {len(manifest['parts'])} parts are done"
        if config.overwrite:
            plan["run_folder"]["state"] = "started afresh"
        if changes:
            plan["run_folder"]["state"] = "of another run"
            problems.append(
                f"--out: {folder} holds another run ({'; '.join(changes)}). Give another --out, or --overwrite "
                "to start afresh."
            )
            break
    for path in (
        folder.glob("concept_vector_results_*.json") if not (config.overwrite or problems) else ()
    ):
        if len(stages := _stages_of(path)) > len(config.stages):
            problems.append(
                f"--stages: {path} holds the results of stages {', '.join(map(str, stages))}, and a shorter run would "
                "replace them. Give the same --stages, another --out, or --overwrite."
            )
    plan |= {"warnings": warnings, "problems": problems, "ok": not problems}


def _stages_of(path: Path) -> list[int]:
    """The stages of a results file; none where it is no such file."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["configuration"]["stages"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def dimensions(checkpoint: Checkpoint) -> dict[str, int]:
    """Layers, hidden size, MLP size and vocabulary, as transformers reads them from config.json."""
    from transformers import AutoConfig

    try:
        kind, rest = (
            checkpoint.config["model_type"],
            {k: v for k, v in checkpoint.config.items() if k != "model_type"},
        )
        text = AutoConfig.for_model(kind, **rest).get_text_config()
        found = {"layers": text.num_hidden_layers, "hidden_size": text.hidden_size,
                 "intermediate_size": text.intermediate_size, "vocab_size": text.vocab_size}  # fmt: skip
    except Exception as error:  # a configuration can be wrong in as many ways as it has fields
        raise RequestError(
            f"--model: the config.json of {checkpoint.name} cannot be used ({' '.join(str(error).split())[:200]}); "
            "fetch it again"
        ) from None
    if bad := [
        f"{k} {v!r}"
        for k, v in found.items()
        if not isinstance(v, int) or isinstance(v, bool) or v < 1
    ]:
        raise RequestError(
            f"--model: the config.json of {checkpoint.name} says {bad[0]}, expected a whole number ≥ 1"
        )
    return found


def memory(
    config: Config, checkpoint: Checkpoint, d: dict[str, int], neurons: int, dtype: str
) -> int:
    """Bytes for weights, copies of the unembedding, tables over the vocabulary, and the lists that are kept."""
    shown, kept = d["vocab_size"] * d["hidden_size"], neurons * (16 * config.top_k + 32)
    weights = checkpoint.parameters * ITEMSIZE[dtype] + 4 * shown
    if config.stages == (1,):  # read tensor by tensor, in the file's precision
        stored = checkpoint.weight_bytes // max(checkpoint.parameters, 1)
        weights = (
            shown * (stored if stored == 2 else stored + 2)
            + 8 * d["hidden_size"] * d["intermediate_size"]
        )
    return weights + 2048 * d["vocab_size"] + kept


def seconds(
    config: Config,
    d: dict[str, int],
    neurons: int,
    nulls: int,
    prompts: int,
    device: Any,
    dtype: Any,
) -> list[float]:
    """Low and high estimate of the run's seconds: floating-point operations over speeds timed here."""
    import torch

    from conceptvec.extraction.projection import LARGE, preselection

    hidden, mlp, vocabulary = d["hidden_size"], d["intermediate_size"], d["vocab_size"]
    precision = preselection(device) if vocabulary * hidden >= LARGE else torch.float32
    readout = _speed(min(vocabulary, 2**14), hidden, min(config.batch_size, 200), device, precision)
    total = 2.0 * neurons * hidden * vocabulary / readout
    if config.stages != (1,):
        forward = _speed(min(config.batch_size * PROMPT_TOKENS, 2400), hidden, mlp, device, dtype)
        whole = 2.0 * d["layers"] * (3 * hidden * mlp + 4 * hidden * hidden)  # operations per token
        passed = whole * (CORPUS_TOKENS + 3 * PROMPT_TOKENS * prompts)
        if 3 in config.stages:
            damaged = nulls * prompts * (config.draws if config.damage[0] == "noise" else 1)
            passed += damaged * (PROMPT_TOKENS * whole / 2 + 2.0 * hidden * vocabulary)
        total += passed / forward
    return [round(total * OVERHEAD * f, 1) for f in (0.5, 3.0)]


def _speed(n: int, inner: int, m: int, device: Any, dtype: Any) -> float:
    """Operations per second of (n, inner) @ (inner, m) products."""
    import torch

    a, b = (
        torch.ones(n, inner, dtype=dtype, device=device),
        torch.ones(inner, m, dtype=dtype, device=device),
    )
    float((a @ b)[0, 0])
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < 0.05:
        float((a @ b)[0, 0])  # reading a value waits for the device
        runs += 1
    return runs * 2.0 * n * inner * m / (time.perf_counter() - start)


def device_memory(device: Any) -> int:
    """Free bytes of the device's memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    from conceptvec.model.memory import available_memory

    return available_memory()


def device_name(device: Any) -> str:
    """What the device calls itself."""
    import platform

    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def hub_cache() -> Path:
    """Where the Hub's files are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _existing(path: Path) -> Path:
    return next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())


def free_disk(path: Path) -> int:
    """Free bytes where a path is, or will be."""
    return shutil.disk_usage(_existing(path)).free


def size(n: float) -> str:
    """Bytes for people."""
    return (
        f"{n / 1e9:.1f} GB"
        if n >= 1e9
        else f"{n / 1e6:.0f} MB"
        if n >= 1e6
        else f"{n / 1e3:.0f} kB"
    )


def duration(s: float) -> str:
    """Seconds for people."""
    return (
        f"{s / 3600:.1f} h"
        if s >= 5400
        else f"{s / 60:.0f} min"
        if s >= 90
        else f"{max(s, 1):.0f} s"
    )
