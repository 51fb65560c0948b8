"""Single operations of a run, on shapes that have gone wrong somewhere: device against CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from conceptvec.effects import activity
from conceptvec.extraction.agreement import READOUT
from conceptvec.extraction.projection import REDUCED, Projector
from conceptvec.model.network import Model

GEMMA_VOCABULARY = 262_144
WIDTH, MLP = 1152, 6912  # of Gemma 3 1B
SINGLE = 2e-5  # allowed difference of float32 operations, relative to the largest value
HALF = 2e-2  # the same of bfloat16
FIRST_NORMALS = (-1.1258398, -1.1523602, -0.2505786)  # what seed 0 gives on every machine


@dataclass(frozen=True)
class Check:
    """One thing to try.

    Attributes:
        name: what it is.
        shapes: on what.
        allowed: the largest difference from the CPU.
        measure: gives the difference.
    """

    name: str
    shapes: str
    allowed: float
    measure: Callable[[], float]


def operations(model: Model) -> list[Check]:
    """The operations of a run; differences are relative to the largest value."""
    device, dtype = model.device, model.dtype
    half = HALF if dtype == torch.bfloat16 else SINGLE
    longest = max(REDUCED, model.intermediate_size)
    left, right = _normal(WIDTH, 200), _normal(WIDTH, 4096)
    long_left, long_right = _normal(64, longest), _normal(longest, 64)
    many, vectors = _normal(16, 64, WIDTH), _normal(16, WIDTH, 1)
    state, weight = _normal(64, WIDTH).to(dtype), _normal(MLP, WIDTH).to(dtype)
    queries = _normal(3, 3, 4, 33, 16).to(dtype)
    line = torch.linspace(-1000, 1000, 200_001).to(dtype)

    def against(run: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable[[], float]:
        return lambda: _difference(run, inputs, device)

    return [
        Check(
            "matrix product",
            f"(200, {WIDTH}) @ ({WIDTH}, 4096)",
            SINGLE,
            against(torch.mm, left.T.contiguous(), right),
        ),
        Check(
            "transposed operand",
            f"({WIDTH}, 200)ᵀ @ ({WIDTH}, 4096)",
            SINGLE,
            against(lambda a, b: a.T @ b, left, right),
        ),
        Check(
            "longest reduction of a run",
            f"(64, {longest}) @ ({longest}, 64)",
            1e-4,
            against(torch.mm, long_left, long_right),
        ),
        Check(
            "batched product",
            f"(16, 64, {WIDTH}) @ (16, {WIDTH}, 1)",
            SINGLE,
            against(torch.bmm, many, vectors),
        ),
        Check(
            "layer in the model's precision",
            f"(64, {WIDTH}) to {MLP}",
            half,
            against(torch.nn.functional.linear, state, weight),
        ),
        Check("masked attention", "(3, 4, 33, 16)", half, against(_attention, *queries)),
        Check("GELU of large values", "(200001,) from -1000 to 1000", half, against(_gelu, line)),
        Check(
            "selection over the vocabulary",
            f"(3, {GEMMA_VOCABULARY})",
            0.0,
            lambda: _selection(device),
        ),
        Check("activation statistics", "(5, 33, 300)", 1e-5, lambda: _statistics(device)),
        Check("random numbers", "(100000,)", 1e-5, lambda: _random_numbers(device)),
        Check(
            "projection at Gemma's width",
            f"(4, 64) onto {GEMMA_VOCABULARY} tokens",
            READOUT,
            lambda: _wide_projection(device),
        ),
    ]


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _relative(measured: torch.Tensor, exact: torch.Tensor) -> float:
    return float((measured.cpu().double() - exact).abs().max() / exact.abs().max())


def _difference(
    run: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], device: torch.device
) -> float:
    """An operation on the device against the same in float64 on the CPU."""
    exact = run(*(x.cpu().double() for x in inputs))
    return _relative(run(*(x.to(device) for x in inputs)).cpu(), exact)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = (q @ k.transpose(2, 3) / 4).masked_fill(~seen, torch.finfo(q.dtype).min)
    return scores.softmax(-1) @ v


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def _selection(device: torch.device) -> float:
    z = _normal(3, GEMMA_VOCABULARY)
    moved = z.to(device)
    best, expected = moved.topk(64, 1), z.topk(64, 1)
    extremes = moved.view(3, -1, 256).amax(2).cpu()
    same = [
        torch.equal(best.indices.cpu(), expected.indices),
        torch.equal(extremes, z.view(3, -1, 256).amax(2)),
        torch.equal(moved.gather(1, best.indices).cpu(), expected.values),
    ]
    return 0.0 if all(same) else 1.0


def _random_numbers(device: torch.device) -> float:
    drawn = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    moved = float((drawn.to(device).cpu() - drawn).abs().max())
    return max(moved, float((drawn[:3] - torch.tensor(FIRST_NORMALS)).abs().max()))


def _wide_projection(device: torch.device) -> float:
    unembedding, directions = _normal(GEMMA_VOCABULARY, 64), _normal(4, 64)
    nothing = torch.zeros(GEMMA_VOCABULARY, dtype=torch.bool)
    top, values = (
        x.cpu() for x in Projector(unembedding.to(device), nothing, 50)(directions.to(device))[:2]
    )
    exact = directions.cpu().double() @ unembedding.cpu().double().T
    return max(
        _relative(values, exact.topk(50, 1).values),
        _relative(values, exact.gather(1, top.long())),
    )


def _statistics(device: torch.device) -> float:
    a, lengths = _normal(5, 33, 300), torch.full((5,), 33)
    both = [
        activity.of_batch([0], [a.to(place)], lengths.to(place), np.arange(5))
        for place in (torch.device("cpu"), device)
    ]
    pairs = [
        (getattr(both[0], name), getattr(both[1], name)) for name in ("total", "largest", "reached")
    ]
    return max(float(np.abs(x - y).max()) / max(float(np.abs(x).max()), 1) for x, y in pairs)
