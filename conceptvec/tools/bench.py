"""Benchmarks on random weights, made on the spot: nothing is downloaded.

The projection has the shape of Gemma 3 1B; damage, text and scan have that of Gemma 3 270M.

Compared variants take turns, and the medians are reported, with the relative spread between
repetitions, since a busy machine shows nothing else.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from conceptvec.errors import RequestError
from conceptvec.extraction.projection import Projector
from conceptvec.model.device import choose_device, choose_dtype, now
from conceptvec.model.memory import peak_memory
from conceptvec.text import table
from conceptvec.tools.bench_scan import bench_scan
from conceptvec.tools.bench_scoring import bench_scoring
from conceptvec.tools.bench_validation import bench_validation

logger = logging.getLogger(__name__)

PARTS = ("projection", "scoring", "scan", "validation")
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 26, 1152, 6912, 262_144  # Gemma 3 1B
TOP_K, BATCH, REPEATS = 50, 200, 7
NAIVE = 5  # vectors that the naive loop is timed on
Variant = Callable[[], Any]


def bench(device: str = "auto", vectors: int = 400, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Run the parts that are asked for: projection, scorer, text and scan, damage.

    Args:
        device: as in `Config`.
        vectors: value vectors that the projection is timed on.
        parts: of `PARTS`.

    Returns:
        part → its figures.

    Raises:
        RequestError: fewer vectors than one, or an unknown part.
    """
    if vectors < 1:
        raise RequestError(f"--vectors: got {vectors}, expected a whole number of at least 1")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise RequestError(f"--parts: got {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    chosen = choose_device(device)
    dtype = str(choose_dtype("auto", chosen)[0]).removeprefix("torch.")
    run = {
        "projection": lambda: bench_projection(chosen, vectors),
        "scoring": bench_scoring,
        "scan": lambda: bench_scan(str(chosen), dtype),
        "validation": lambda: bench_validation(str(chosen), dtype),
    }
    figures = {}
    for part in parts:
        logger.info("bench: %s", part)
        figures[part] = run[part]()
    return figures


@torch.inference_mode()
def bench_projection(device: torch.device, vectors: int) -> dict[str, Any]:
    """The projection of both poles against its bare matrix product, `topk`, and the naive loop.

    Returns:
        seconds_gemm: the bare product in the preselection's precision, batch by batch: the fastest
            of the whole vocabulary at once in either orientation, and chunk by chunk into memory
            that is used again.
        seconds_ours: both poles and the moments of the same vectors.
        seconds_naive: one vector at a time, unembedding times vector and a full sort (one pole),
            per vector.
        seconds_topk: the float32 product with `torch.topk` for both poles on the whole readout.
        ratio_to_gemm, speedup_over_naive: medians' ratios, the latter per readout, where one vector
            has two.
        spread: largest relative difference between a repetition and its median.
        peak_extra_bytes: memory beyond weights and directions.
        full_scale_seconds: extrapolated to all neurons of the model.
        compiled: whether the compiled kernels were used.
        float32: where the preselection is in bfloat16, the same ratios for one in float32, in the
            same run.
        plain: where the kernels were used, the same ratios without them, in the same run.
    """
    torch.manual_seed(0)
    stored = choose_dtype("auto", device)[0]
    unembedding = torch.empty(VOCABULARY, HIDDEN, device=device, dtype=stored).normal_()
    directions = torch.randn(vectors, HIDDEN).to(device)

    # What the first call takes beyond the weights; it also warms up.
    before = _memory(device)
    ours = Projector(unembedding, torch.zeros(VOCABULARY, dtype=torch.bool), TOP_K)
    _clock(lambda: ours(directions, BATCH), device)
    extra = _memory(device) - before

    projectors = {"ours": ours, **_rivals(unembedding, ours)}
    variants = _variants(unembedding, directions, projectors)
    seconds = _take_turns(variants, device)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    naive = median["naive"] / min(vectors, NAIVE)
    by_projector = {}
    for name, projector in projectors.items():
        gemm = _fastest_product(median, projector.precision)
        by_projector[name] = {
            "seconds_gemm": median[gemm],
            "seconds_ours": median[name],
            "ratio_to_gemm": median[name] / median[gemm],
            "speedup_over_naive": naive / (median[name] / vectors / 2),
            "spread": _spread(seconds[gemm], seconds[name]),
            "full_scale_seconds": median[name] / vectors * LAYERS * INTERMEDIATE,
        }
    topk = median["topk"] * vectors / min(vectors, BATCH)
    figures = by_projector.pop("ours")
    return {
        "device": _name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": str(ours.precision).removeprefix("torch."),
        "compiled": ours.compiled,
        "vectors": vectors,
        "repeats": REPEATS,
        **figures,
        "seconds_naive": naive,
        "seconds_topk": topk,
        "ratio_topk_to_gemm": topk / figures["seconds_gemm"],
        "peak_extra_bytes": extra,
        "fallbacks": ours.fallbacks.tolist(),
        **by_projector,
    }


def _rivals(unembedding: torch.Tensor, ours: Projector) -> dict[str, Projector]:
    """What ours is compared with: another precision, and the same without compiled kernels."""
    nothing = torch.zeros(VOCABULARY, dtype=torch.bool)
    rivals = {}
    if ours.precision is not torch.float32:
        rivals["float32"] = Projector(unembedding, nothing, TOP_K, precision=torch.float32)
    if ours.compiled:
        rivals["plain"] = Projector(unembedding, nothing, TOP_K, compiled=False)
    return rivals


def _variants(
    unembedding: torch.Tensor, directions: torch.Tensor, projectors: Mapping[str, Projector]
) -> dict[str, Variant]:
    """Everything that is timed, by name."""

    def topk() -> None:
        z = directions[:BATCH].float() @ unembedding.T.float()
        for largest in (True, False):
            z.topk(TOP_K, largest=largest)

    def naive() -> None:
        for direction in directions[:NAIVE]:
            (unembedding.float() @ direction).sort(descending=True)

    variants: dict[str, Variant] = {"topk": topk, "naive": naive}
    sizes = {projector.columns for projector in projectors.values()}
    for precision in {projector.precision for projector in projectors.values()}:
        variants |= _products(unembedding.to(precision), directions, sizes)
    for name, projector in projectors.items():
        variants[name] = lambda projector=projector: projector(directions, BATCH)
    return variants


def _products(
    rows: torch.Tensor, directions: torch.Tensor, sizes: Iterable[int]
) -> dict[str, Variant]:
    """The bare product of (V, H) rows with (n, H) directions, in several arrangements."""
    batches = directions.to(rows.dtype).split(BATCH)

    def whole(is_turned: bool) -> None:
        for batch in batches:
            _ = rows @ batch.T if is_turned else batch @ rows.T

    def chunks(size: int) -> None:
        for batch in batches:
            turned = batch.T.contiguous()
            into = rows.new_empty(size, len(batch))
            for chunk in rows.split(size):
                torch.mm(chunk, turned, out=into[: len(chunk)])

    name = f"gemm {rows.dtype}"
    by_chunks = {f"{name} by {size}": lambda size=size: chunks(size) for size in sizes}
    return {name: lambda: whole(False), f"{name} turned": lambda: whole(True), **by_chunks}


def _take_turns(variants: Mapping[str, Variant], device: torch.device) -> dict[str, list[float]]:
    """Seconds of every repetition of every variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(REPEATS):
        for name, variant in variants.items():
            seconds[name].append(_clock(variant, device))
    return seconds


def _fastest_product(median: Mapping[str, float], precision: torch.dtype) -> str:
    products = [name for name in median if name.startswith(f"gemm {precision}")]
    return min(products, key=median.__getitem__)


def _spread(*repetitions: Sequence[float]) -> float:
    """The largest relative difference between a repetition and the median of its variant."""
    return max(abs(t / statistics.median(times) - 1) for times in repetitions for t in times)


def _clock(work: Variant, device: torch.device) -> float:
    """Seconds that `work` takes, the device's queue included."""
    start = now(device)
    work()
    return now(device) - start


def _memory(device: torch.device) -> int:
    """The largest memory held so far, in bytes: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return peak_memory()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}"


def bench_table(figures: dict[str, Any]) -> str:
    """The answer of `bench` as text: a value per line under its dotted name."""
    return table(_flat(figures), ())


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, f"{value:.4g}" if isinstance(value, float) else value))
    return rows
