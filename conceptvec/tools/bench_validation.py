"""Key `validation` of ``conceptvec bench``: exact damage in running text against the naive loop.

The naive loop does what published validations do: edit the column, run the whole model on all
passages, restore the column; one damage at a time. As they do, it computes the logits of every
token; a leaner one, beside it, unembeds the wanted positions alone. All measure the same positions
under the same damages (zero, three rotations, mean), in batches of passages of like length, and
their numbers are compared before a time is reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.effects.passages import Passages
from conceptvec.errors import RunError
from conceptvec.model.device import now
from conceptvec.runfolder import Arrays
from conceptvec.tools.bench_model import (
    GEMMA_270M,
    TOLERANCE,
    padded,
    random_model,
    random_passages,
)
from conceptvec.validation.damage import Damage, Damager
from conceptvec.validation.measure import (
    CLEAN,
    SUBJECTS_PER_UNIT,
    Request,
    Setting,
    Subject,
    damages,
    measure_unit,
    split_unit,
)
from conceptvec.validation.replay import Replay

if TYPE_CHECKING:
    from conceptvec.model.network import Model

KINDS = ("zero", "rotate", "mean")
POSITIONS = 64  # of a subject: about what a candidate has of all kinds together
BATCH = 64  # rows of the engine's forward passes
NAIVE_BATCH = 8  # passages of the naive ones, whose logits take a megabyte a token
REPEATS = 3


@dataclass(frozen=True)
class Case:
    """What both sides measure.

    Attributes:
        setting: model and text.
        layers: damaged layers.
        requests: layer → the subjects of one unit, each with its positions.
    """

    setting: Setting
    layers: list[int]
    requests: dict[int, list[Request]]

    @property
    def subjects(self) -> int:
        """How many there are in all."""
        return sum(len(requests) for requests in self.requests.values())


def bench_validation(
    device: str = "cpu",
    dtype: str = "float32",
    shape: Mapping[str, int] | None = None,
    positions: int = POSITIONS,
    subjects: int = SUBJECTS_PER_UNIT,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Seconds per vector of the damage engine and of the naive loop.

    Args:
        device: cpu, cuda, cuda:N or mps.
        dtype: float32 or bfloat16, for both sides.
        shape: changes of the shape of Gemma 3 270M.
        positions: of each vector, each in a passage of its own.
        subjects: vectors of a layer that are measured together, as in a run.
        repeats: turns of which the medians are taken.

    Returns:
        ``seconds_naive``, ``seconds_lean``, ``seconds_ours`` and the ratios ``speedup`` and
        ``speedup_over_lean``, all per vector, over three layers from the first to the last. The
        naive loops are timed on one vector, since their time does not depend on the layer.

    Raises:
        RunError: the two sides disagree.
    """
    model = random_model(device, getattr(torch, dtype), shape)
    case = _case(model, positions, subjects)
    difference = _largest_difference(case)

    # They take turns; each has been run once by then.
    layer = case.layers[0]
    request = case.requests[layer][0]
    seconds: dict[str, list[float]] = {"naive": [], "lean": [], "ours": []}
    for _ in range(repeats):
        for name in ("naive", "lean"):
            start = now(model.device)
            naive(case.setting, request, whole=name == "naive")
            seconds[name].append(now(model.device) - start)
        start = now(model.device)
        _ours(case)
        seconds["ours"].append((now(model.device) - start) / case.subjects)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds_naive": median["naive"],
        "seconds_lean": median["lean"],
        "seconds_ours": median["ours"],
        "speedup": median["naive"] / median["ours"],
        "speedup_over_lean": median["lean"] / median["ours"],
        "spread": max(max(times) / min(times) - 1 for times in seconds.values()),
        "repeats": repeats,
        "vectors": case.subjects,
        "layers": case.layers,
        "positions": positions,
        "damages": len(_damages_of(request.subject, case.setting)),
        "tokens": len(case.setting.passages.ids),
        "dtype": dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "shape": {**GEMMA_270M, **(shape or {})},
        "largest_difference": difference,
    }


def _case(model: Model, positions: int, subjects: int) -> Case:
    """Random neurons of three layers, each with one position in each of some passages."""
    passages = random_passages(positions, model.vocab_size)
    stream = np.random.default_rng(32)
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})
    means = {layer: stream.normal(0, 0.1, model.intermediate_size) for layer in layers}
    setting = Setting(
        model,
        passages,
        np.repeat(np.arange(positions), passages.lengths),
        Damager(0),
        means,
        BATCH,
        Replay(model),
    )
    requests: dict[int, list[Request]] = {}
    for layer in layers:
        neurons = stream.choice(model.intermediate_size, subjects, replace=False)
        requests[layer] = [_request(layer, int(j), passages, stream) for j in np.sort(neurons)]
    return Case(setting, layers, requests)


def _request(layer: int, neuron: int, passages: Passages, stream: np.random.Generator) -> Request:
    """One position in every passage, not in its first quarter."""
    at = stream.integers(passages.lengths // 4, passages.lengths - 1)
    subject = Subject("candidate", f"{layer}/{neuron}", layer, neuron, 1, 0, neuron)
    return Request(subject, passages.starts + at, (CLEAN, *KINDS))


def _ours(case: Case) -> dict[int, Arrays]:
    """Every layer's unit."""
    return {
        layer: measure_unit(requests, case.setting) for layer, requests in case.requests.items()
    }


def _largest_difference(case: Case) -> float:
    """Between both sides over one vector of every layer, in nats.

    Raises:
        RunError: it is more than rounding explains.
    """
    ours, differences = _ours(case), []
    for layer, requests in case.requests.items():
        measured = split_unit(requests, ours[layer])[0]
        rows = {whole: naive(case.setting, requests[0], whole=whole) for whole in (True, False)}
        for log_p in rows.values():
            expected = {CLEAN: log_p[0], "zero": log_p[1], "mean": log_p[-1]}
            expected["rotate"] = log_p[2:-1].mean(0)
            for kind, values in expected.items():
                by_engine = measured.log_p[kind].values
                differences.append(float(np.abs(by_engine - values).max()))
    largest = max(differences)
    if not largest <= TOLERANCE[case.setting.model.dtype]:
        raise RunError(
            f"bench: the engine and the naive loop differ by {largest:.3g} nats; run conceptvec "
            "selfcheck"
        )
    return largest


def _damages_of(subject: Subject, setting: Setting) -> list[Damage]:
    return [damage for kind in KINDS for damage in damages(subject, kind, setting)]


@torch.inference_mode()
def naive(setting: Setting, request: Request, whole: bool) -> np.ndarray:
    """Log-probabilities by real edits and whole forward passes: (1 + D, n), the clean ones first.

    Args:
        setting: model and text.
        request: a vector and its positions, one in each passage.
        whole: compute the logits of every token, not of the wanted ones alone.
    """
    model, passages = setting.model, setting.passages
    subject = request.subject
    down = model.layers[subject.layer].mlp.down_proj
    column = down.weight[:, subject.neuron].clone()
    order = np.argsort(passages.lengths, kind="stable")
    batches = [order[i : i + NAIVE_BATCH] for i in range(0, len(order), NAIVE_BATCH)]
    at = request.positions - passages.starts
    nothing = Damage(subject.neuron, 0.0, 0.0, torch.zeros_like(column))
    rows = []
    for damage in [nothing, *_damages_of(subject, setting)]:
        # scale·a·v goes into the column; what does not follow the activation is a bias.
        direction = damage.direction.clone()  # it may be a view of the column
        bias = (damage.shift * direction).to(column.dtype)
        changed = column.float() + damage.scale * direction
        down.weight[:, subject.neuron] = changed.to(column.dtype)
        down.bias = torch.nn.Parameter(bias, requires_grad=False)
        try:
            log_p = [_last_log_p(model, passages, batch, at, whole) for batch in batches]
        finally:
            down.weight[:, subject.neuron] = column
            down.bias = None
        rows.append(np.concatenate(log_p)[np.argsort(np.concatenate(batches))])
    return np.stack(rows)


def _last_log_p(
    model: Model, passages: Passages, batch: np.ndarray, at: np.ndarray, whole: bool
) -> np.ndarray:
    """Log-probability of the token after one position of each passage of a batch: (B,)."""
    ids = padded(passages, batch).to(model.device)
    position = torch.from_numpy(at[batch]).to(model.device)
    rows = torch.arange(len(batch), device=model.device)
    if whole:
        logits = model.hf(input_ids=ids, use_cache=False).logits[rows, position].float()
    else:
        hidden = model.decoder(input_ids=ids, use_cache=False).last_hidden_state
        logits = (hidden[rows, position] @ model.unembedding.T).float()
    of_word = logits.gather(1, ids[rows, position + 1][:, None])[:, 0]
    return (of_word - logits.logsumexp(1)).cpu().double().numpy()
