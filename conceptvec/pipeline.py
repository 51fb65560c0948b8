"""The whole job: configuration → model → extraction → scoring → validation → results → figures, in a run folder."""

from __future__ import annotations

import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

from conceptvec.concepts import load_concepts
from conceptvec.config import Config, parse_layers
from conceptvec.results import Results, load_results
from conceptvec.store import RunFolder

logger = logging.getLogger(__name__)


def run(config: Config) -> Results:
    """Run all stages that `config.stages` asks for; an interrupted run of the same configuration is resumed.

    Returns:
        the results; also in the run folder, with the validated vectors and the figures.

    Raises:
        RequestError: the request is bad (nothing was changed).
        RunError: the run failed; what was finished is kept.
    """
    load_concepts(config.concepts)  # a bad file should fail before a model is loaded
    import torch

    from conceptvec.extraction import extract
    from conceptvec.models import choose_device, load_model
    from conceptvec.scoring import score
    from conceptvec.validation import validate
    from conceptvec.weights import load_weights

    watch = Watch()
    model = (
        load_weights(config) if config.stages == (1,) else load_model(config)
    )  # the projection needs no forward pass
    parse_layers(config.layers, model.n_layers)
    folder = config.folder(model.device.type)
    parts = RunFolder(folder, config, model.facts(), processes(choose_device(config.device)))
    watch.lap("load")
    candidates = extract(model, config, parts)
    watch.lap("extraction")
    scored = score(candidates, model, config) if 2 in config.stages else None
    watch.lap("scoring")
    if scored is not None and 3 in config.stages:
        results = validate(scored, model, config, parts)
        watch.lap("validation")
    else:
        results = Results.partial(model, config, candidates, scored)
    parts.finish()
    results.document["timings"] = watch.laps
    repeated, full = (sum(int(p.fallbacks[i]) for p in candidates.layers) for i in (0, 1))
    results.document["resources"] = {
        "peak_memory_bytes": peak_memory(), "readouts_repeated": repeated, "readouts_ranked_in_full": full,
    }  # fmt: skip
    if model.device.type == "cuda":
        results.document["resources"]["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    if parts.rank == 0:
        results.save(results_path(folder, model.device.type))
        export_vectors(model, config, results, folder / "concept_vectors.safetensors")
        from conceptvec.figures import save_figures

        save_figures(results, folder / "figures")
    parts.barrier()
    return results


def results_path(folder: Path, device: str) -> Path:
    """Where a run on this kind of device keeps its results."""
    return folder / f"concept_vector_results_{device}.json"


def export_vectors(model: Any, config: Config, results: Results, path: Path) -> None:
    """Write the validated vectors, sign of the pole applied, and their readout directions (n, H) as safetensors."""
    import json

    import torch
    from safetensors.torch import save

    from conceptvec.store import write_atomic

    vectors = torch.zeros(len(results.validated), model.hidden_size)
    directions = torch.zeros_like(vectors)
    for i, e in enumerate(results.validated):
        vector = model.value_vectors(e["layer"])[e["neuron"]].float() * (1 if e["pole"] == "+" else -1)
        vectors[i] = vector.cpu()
        directions[i] = (vector * model.fold_scale(e["layer"], config.fold)).cpu()
    metadata = {
        "ids": json.dumps([e["id"] for e in results.validated]),
        "concepts": json.dumps([e["concept"] for e in results.validated]),
        "model": model.name, "fingerprint": model.fingerprint, "fold": config.fold,
    }  # fmt: skip
    write_atomic(path, save({"vectors": vectors, "readout_directions": directions}, metadata))


def processes(device: Any) -> Any:
    """The other processes of a `torchrun` or `accelerate launch`, or None where this one is alone."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu")


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Watch:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under a name."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


__all__ = ["load_results", "results_path", "run"]
