"""Single operations of a run, on shapes that have gone wrong on some device, against the CPU.

Each check is a function of the device that returns the largest difference, relative to the largest
value where the results are real numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from conceptvec.extraction.activations import _Gather
from conceptvec.extraction.projection import Projector

GEMMA_HIDDEN, GEMMA_MLP, GEMMA_VOCABULARY = 1152, 6912, 262_144
EXACT, ROUNDED = 2e-5, 2e-2  # allowed: in float32, in bfloat16
LONG_SUM = 1e-4  # allowed over thousands of terms
READOUTS = 1e-4  # allowed of a readout that decides what is kept
FIRST_NORMALS = (-1.1258398, -1.1523602, -0.2505786)  # of seed 0, on every machine


@dataclass(frozen=True)
class Check:
    """Something that a device must compute.

    Attributes:
        allowed: the largest difference from the CPU that passes.
        measure: gives the difference.
    """

    name: str
    shapes: str
    allowed: float
    measure: Callable[[], float]


def operations(device: torch.device, dtype: torch.dtype, longest: int) -> list[Check]:
    """The checks of single operations.

    Args:
        device: where they are tried.
        dtype: the precision of the forward pass.
        longest: terms of the longest sum that a run takes.
    """
    allowed = ROUNDED if dtype == torch.bfloat16 else EXACT
    width = f"{GEMMA_HIDDEN}"
    rows: list[tuple[str, str, float, Callable[[], float]]] = [
        ("matrix product", f"(200, {width}) @ ({width}, 4096)", EXACT, partial(product, device)),
        (
            "transposed operand",
            f"({width}, 200)ᵀ @ ({width}, 4096)",
            EXACT,
            partial(transposed_operand, device),
        ),
        (
            "longest reduction of a run",
            f"(64, {longest}) @ ({longest}, 64)",
            LONG_SUM,
            partial(long_reduction, device, longest),
        ),
        (
            "batched product",
            f"(16, 64, {width}) @ (16, {width}, 1)",
            EXACT,
            partial(batched_product, device),
        ),
        (
            "layer in the model's precision",
            f"(64, {width}) to {GEMMA_MLP}",
            allowed,
            partial(layer, device, dtype),
        ),
        ("masked attention", "(3, 4, 33, 16)", allowed, partial(attention, device, dtype)),
        (
            "GELU of large values",
            "(200001,) from -1000 to 1000",
            allowed,
            partial(gelu, device, dtype),
        ),
        (
            "selection over the vocabulary",
            f"(3, {GEMMA_VOCABULARY})",
            0.0,
            partial(selection, device),
        ),
        ("activation statistics", "(5, 33, 300)", 1e-5, partial(statistics, device)),
        ("random numbers", "(100000,)", 1e-5, partial(random_numbers, device)),
        (
            "projection at Gemma's width",
            f"(4, 64) onto {GEMMA_VOCABULARY} tokens",
            READOUTS,
            partial(wide_projection, device),
        ),
    ]
    return [Check(*row) for row in rows]


def product(device: torch.device) -> float:
    """A product of ordinary matrices."""
    left = _draw(GEMMA_HIDDEN, 200).T.contiguous()
    return _against_cpu(torch.mm, device, left, _draw(GEMMA_HIDDEN, 4096))


def transposed_operand(device: torch.device) -> float:
    """A product whose left operand is a transposed view."""
    left, right = _draw(GEMMA_HIDDEN, 200), _draw(GEMMA_HIDDEN, 4096)
    return _against_cpu(lambda a, b: a.T @ b, device, left, right)


def long_reduction(device: torch.device, longest: int) -> float:
    """A product with very many terms."""
    return _against_cpu(torch.mm, device, _draw(64, longest), _draw(longest, 64))


def batched_product(device: torch.device) -> float:
    """Many small products at once."""
    return _against_cpu(torch.bmm, device, _draw(16, 64, GEMMA_HIDDEN), _draw(16, GEMMA_HIDDEN, 1))


def layer(device: torch.device, dtype: torch.dtype) -> float:
    """A linear layer in the precision of the forward pass."""
    state = _draw(64, GEMMA_HIDDEN).to(dtype)
    weight = _draw(GEMMA_MLP, GEMMA_HIDDEN).to(dtype)
    return _against_cpu(torch.nn.functional.linear, device, state, weight)


def attention(device: torch.device, dtype: torch.dtype) -> float:
    """Masked attention, written out."""
    query, key, value = _draw(3, 3, 4, 33, 16).to(dtype)
    return _against_cpu(_attend, device, query, key, value)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    length = query.shape[2]
    visible = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    weights = query @ key.transpose(2, 3) / 4
    weights = weights.masked_fill(~visible, torch.finfo(query.dtype).min)
    return weights.softmax(-1) @ value


def gelu(device: torch.device, dtype: torch.dtype) -> float:
    """The activation function far from zero, where an exponential overflows."""
    values = torch.linspace(-1000, 1000, 200_001).to(dtype)
    return _against_cpu(_gelu_tanh, device, values)


def _gelu_tanh(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(values, approximate="tanh")


def selection(device: torch.device) -> float:
    """The largest of a row, of its blocks, and gathered by id: 0 where all are right, else 1."""
    z = _draw(3, GEMMA_VOCABULARY)
    on_device = z.to(device)
    top, expected = on_device.topk(64, 1), z.topk(64, 1)
    blocks = on_device.view(3, -1, 256).amax(2).cpu()
    gathered = on_device.gather(1, top.indices).cpu()
    is_right = (
        torch.equal(top.indices.cpu(), expected.indices)
        and torch.equal(blocks, z.view(3, -1, 256).amax(2))
        and torch.equal(gathered, expected.values)
    )
    return 0.0 if is_right else 1.0


def statistics(device: torch.device) -> float:
    """The statistics of activations that are gathered while a corpus is read."""
    activations = _draw(5, 33, 300)
    results = []
    for place in (torch.device("cpu"), device):
        gather = _Gather(300, place)
        gather.add(activations.to(place), list(range(5)))
        results.append(gather.result())
    pairs = zip(*results, strict=True)
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)


def random_numbers(device: torch.device) -> float:
    """Numbers of a seed: the known ones, and the same after a visit to the device."""
    drawn = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    known = torch.tensor(FIRST_NORMALS)
    visited = (drawn.to(device).cpu() - drawn).abs().max()
    unlike = 0.0 if torch.equal(drawn[:3], known) else float((drawn[:3] - known).abs().max())
    return max(float(visited), unlike)


def wide_projection(device: torch.device) -> float:
    """The projection onto a vocabulary of Gemma's size: values, and values under the kept ids."""
    rows, x = _draw(GEMMA_VOCABULARY, 64), _draw(4, 64)
    nothing = torch.zeros(GEMMA_VOCABULARY, dtype=torch.bool)
    projected = Projector(rows.to(device), nothing, 50)(x.to(device))
    ids, values = (kept.cpu() for kept in projected[:2])
    exact = x.double() @ rows.double().T
    of_rank = _relative(values, exact.topk(50, 1).values)
    return max(of_rank, _relative(values, exact.gather(1, ids.long())))


def _draw(*shape: int) -> torch.Tensor:
    """Normal numbers, the same for a shape on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _against_cpu(
    run: Callable[..., torch.Tensor], device: torch.device, *inputs: torch.Tensor
) -> float:
    """The difference of a computation on the device from that in float64 on the CPU."""
    exact = run(*(x.double() for x in inputs))
    computed = run(*(x.to(device) for x in inputs)).cpu().double()
    return _relative(computed, exact)


def _relative(computed: torch.Tensor, exact: torch.Tensor) -> float:
    return float((computed.double() - exact).abs().max() / exact.abs().max())
