"""What a run of given shapes will take: memory, disk and time.

Memory and disk follow from the model's dimensions and what runs of these shapes were seen to take.
Time follows from two matrix products of the run's own shapes, timed on the device, and from how
often each stage goes through the model, as it does on Gemma 3 270M. What is no product, the
programme around them, takes its time for every token and layer; on a large GPU it takes the most.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig

from conceptvec.config import Config, parse_layers
from conceptvec.effects.coverage import tokens_of_run
from conceptvec.effects.rows import parts_of
from conceptvec.effects.sampling import proposes
from conceptvec.effects.stage import PASSAGES_A_PART
from conceptvec.errors import RequestError
from conceptvec.extraction.projection import LARGE, preselection
from conceptvec.model.checkpoint import ITEMSIZE, Checkpoint
from conceptvec.validation.measure import clean_repeats

BASE_MEMORY = 700 * 2**20  # Python and torch themselves
TABLES = 2048  # bytes per token of the vocabulary
KEPT_PER_NEURON, KEPT_PER_TOKEN = 32, 16  # bytes of a layer file
RESULTS = 2_000_000  # bytes of results, figures and vectors
# Of the matrix products of the text: writing it, with bfloat16 proposals and without; the scan; the
# clean pass; logits where positions are matched.
PROPOSED, WRITTEN, SCANNED, PASSED, MATCHED = 0.8, 1.3, 2.7, 0.9, 0.8
SUMS = 20  # bytes of the scan per word and neuron
WORDS = 800  # distinct words of twelve concepts in a text
PASSAGE_TOKENS = 40
CANDIDATES, USED = 0.034, 0.2  # candidates per neuron, and the share of them that is damaged fully
FULL_TEXTS, EXAMPLES = 160, 8  # texts of such a vector, and of any other candidate
REPEATED, REPEATED_TEXTS = 80, 110  # candidates and texts of the exact repeats
# Passes of these three kinds of texts through all layers; half a pass more where clean rows are
# measured beside the damaged ones (`measure.clean_repeats`).
FULL_PASSES, EXAMPLE_PASSES, REPEAT_PASSES, CLEAN_PASSES = 1.5, 1.0, 1.2, 0.5
# What the products of Stage 3 take in a run, for each second at the speed that is timed here: on
# two cores at 91 GFLOP/s each Gemma 3 270M with 250 neurons a layer took 35 minutes in all.
BESIDE_PRODUCTS = 1.2
SETS, SET_TEXTS = 240, 32  # sets damaged together, and texts of each
# Seconds beside the products per token of text and layer, all stages together: with an H100, whose
# products take none, the demo took 10 s and Gemma 3 270M 150.
HOST_SECONDS = 7.5e-5
OVERHEAD = 1.2  # selection beside the product of Stage 1
LOW, HIGH = 0.7, 1.5  # the estimate's range
TIMED_SECONDS = 0.3


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model."""

    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int

    @property
    def unembedding(self) -> int:
        """Numbers in the unembedding."""
        return self.vocab_size * self.hidden_size

    @property
    def operations_per_token(self) -> float:
        """Floating-point operations of all layers on one token."""
        mlp = 3 * self.hidden_size * self.intermediate_size
        attention = 4 * self.hidden_size * self.hidden_size
        return 2.0 * self.layers * (mlp + attention)


@dataclass(frozen=True)
class Work:
    """How much a run does."""

    stages: tuple[int, ...]
    layers: int
    per_layer: int
    neurons: int
    text_tokens: int
    projection_flops: int


@dataclass(frozen=True)
class Needs:
    """What a run takes; seconds are the low and the high estimate, None where nothing was timed."""

    memory_bytes: int
    disk_bytes: int
    download_bytes: int
    seconds: tuple[float, float] | None = None


def shape_of(checkpoint: Checkpoint) -> Shape:
    """The dimensions, as transformers reads them from config.json.

    Raises:
        RequestError: the file cannot be used.
    """
    where = f"--model: the config.json of {checkpoint.name}"
    settings = dict(checkpoint.config)
    known: Any = AutoConfig
    try:
        text = known.for_model(settings.pop("model_type"), **settings).get_text_config()
        shape = Shape(
            layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            vocab_size=text.vocab_size,
        )
    except Exception as error:  # a configuration can be wrong in as many ways as it has fields
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{where} cannot be used ({reason}); fetch it again") from None
    for name, size in asdict(shape).items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise RequestError(f"{where} says {name} {size!r}, expected a whole number ≥ 1")
    return shape


def work_of(config: Config, shape: Shape, device: str) -> Work:
    """How much a configuration does on a model of this shape.

    Args:
        config: stages, layers, max_vectors, corpus_tokens.
        shape: the model's.
        device: its type.
    """
    layers = len(parse_layers(config.layers, shape.layers))
    per_layer = min(config.max_vectors or shape.intermediate_size, shape.intermediate_size)
    neurons = layers * per_layer
    return Work(
        stages=config.stages,
        layers=layers,
        per_layer=per_layer,
        neurons=neurons,
        text_tokens=_text_tokens(config, shape, device) if 3 in config.stages else 0,
        projection_flops=2 * shape.unembedding * neurons,
    )


def needs_of(
    config: Config,
    checkpoint: Checkpoint,
    shape: Shape,
    work: Work,
    on: torch.device,
    dtype: torch.dtype,
) -> Needs:
    """What the work takes on a device in a precision, time apart (`seconds_of`)."""
    return Needs(
        memory_bytes=_memory(config, checkpoint, shape, work, dtype)
        + (BASE_MEMORY if on.type == "cpu" else 0),
        disk_bytes=_disk(config, shape, work),
        download_bytes=sum(size for _, size in checkpoint.download),
    )


def _kept(config: Config, work: Work, shape: Shape) -> int:
    """Bytes of the token lists that are kept."""
    tokens = min(config.top_k, shape.vocab_size)
    return work.neurons * (KEPT_PER_TOKEN * tokens + KEPT_PER_NEURON)


def _memory(
    config: Config, checkpoint: Checkpoint, shape: Shape, work: Work, dtype: torch.dtype
) -> int:
    """Bytes for weights, copies of the unembedding, tables over the vocabulary, kept lists."""
    itemsize = ITEMSIZE[str(dtype).removeprefix("torch.")]
    weights = checkpoint.parameters * itemsize + 4 * shape.unembedding
    if config.stages == (1,):  # read tensor by tensor, in the file's precision
        stored = checkpoint.weight_bytes // max(checkpoint.parameters, 1)
        one_layer = 8 * shape.hidden_size * shape.intermediate_size
        weights = shape.unembedding * (stored if stored == 2 else stored + 2) + one_layer
    return weights + TABLES * shape.vocab_size + _kept(config, work, shape)


def _text_tokens(config: Config, shape: Shape, device: str) -> int:
    return config.corpus_tokens or tokens_of_run(
        int(shape.operations_per_token / 2), shape.unembedding, device
    )


def _disk(config: Config, shape: Shape, work: Work) -> int:
    if 3 not in config.stages:
        return _kept(config, work, shape)
    parts = sum(1 for _ in parts_of(work.text_tokens // PASSAGE_TOKENS, PASSAGES_A_PART))
    sums = SUMS * WORDS / 2 * work.layers * shape.intermediate_size * max(parts, 1)
    return _kept(config, work, shape) + int(sums) + RESULTS


def seconds_of(
    config: Config, shape: Shape, work: Work, on: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Low and high estimate of the run's seconds: operations over speeds that are timed here."""
    # Stage 1: one product of the neurons with the unembedding, in the precision of the
    # preselection.
    precision = preselection(on) if shape.unembedding >= LARGE else torch.float32
    columns = min(shape.vocab_size, 2**14)
    rows = min(config.batch_size, 200)
    readout_speed = _speed((columns, shape.hidden_size, rows), on, precision)
    total = OVERHEAD * 2.0 * work.neurons * shape.unembedding / readout_speed
    if 3 in config.stages:
        forward_speed = _speed((1024, shape.hidden_size, shape.intermediate_size), on, dtype)
        is_proposed = proposes(on)
        clean_passes = 0 if clean_repeats(dtype) else CLEAN_PASSES
        operations = _stage_3(config, shape, work, is_proposed, clean_passes)
        total += BESIDE_PRODUCTS * operations / forward_speed
        total += HOST_SECONDS * work.text_tokens * shape.layers
    return round(total * LOW, 1), round(total * HIGH, 1)


def _stage_3(
    config: Config, shape: Shape, work: Work, is_proposed: bool, clean_passes: float
) -> float:
    """Operations of Stage 3: the text is written, scanned and passed; what is used is damaged."""
    per_token, logits = shape.operations_per_token, 2.0 * shape.unembedding
    writing = PROPOSED if is_proposed else WRITTEN
    is_written = config.corpus == "self"
    per_text_token = (SCANNED + PASSED) * per_token + MATCHED * logits
    per_text_token += writing * (per_token + logits) * is_written

    # A text that is damaged ends at the word: half a passage in the mean.
    candidates = work.neurons * CANDIDATES
    full = candidates * USED
    texts = full * FULL_TEXTS * (FULL_PASSES + clean_passes)
    texts += candidates * EXAMPLES * (EXAMPLE_PASSES + clean_passes)
    texts += min(REPEATED, candidates) * REPEATED_TEXTS * (REPEAT_PASSES + clean_passes)
    texts += SETS * SET_TEXTS
    return work.text_tokens * per_text_token + texts * (PASSAGE_TOKENS / 2 * per_token + logits)


def _speed(product: tuple[int, int, int], on: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of (rows, inner) @ (inner, columns) products, by their median."""
    rows, inner, columns = product
    left = torch.ones(rows, inner, dtype=dtype, device=on)
    right = torch.ones(inner, columns, dtype=dtype, device=on)
    float((left @ right)[0, 0])
    start = time.perf_counter()
    seconds: list[float] = []
    while not seconds or time.perf_counter() - start < TIMED_SECONDS:
        begin = time.perf_counter()
        float((left @ right)[0, 0])  # reading a value waits for the device
        seconds.append(time.perf_counter() - begin)
    return 2.0 * rows * inner * columns / median(seconds)
