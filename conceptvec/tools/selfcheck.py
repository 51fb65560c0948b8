"""Whether a device computes correctly: its results against the CPU in float64.

Devices have returned wrong products without an error. `selfcheck` tries the operations of a run on the shapes that have
failed in the wild, and the stages on the model at hand against `model.reference`, as every run does with a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.concepts import load_concepts
from conceptvec.config import Config
from conceptvec.extraction.agreement import READOUT, readout_difference
from conceptvec.extraction.poles import make_projector
from conceptvec.extraction.projection import REDUCED, Projector
from conceptvec.extraction.stage import project_layer
from conceptvec.text import plain
from conceptvec.validation.agreement import NATS, damage_agreement

if TYPE_CHECKING:
    from conceptvec.model.network import Model

GEMMA_VOCABULARY = 262_144


def selfcheck(config: Config) -> dict[str, Any]:
    """Try the operations of a run on the configured device.

    Returns:
        ``device``, ``dtype``, ``why``, ``ok`` and ``checks``: each with name, shapes, the largest difference from the
        CPU, what is allowed, and whether it passed.
    """
    from conceptvec.model.device import environment
    from conceptvec.model.network import load_model

    model = load_model(config)
    operations = _operations(model.device, model.dtype, max(REDUCED, model.intermediate_size))
    checks = [_try(*check) for check in [*operations, *_stages(model, config)]]
    return {
        "ok": all(c["ok"] for c in checks), "device": str(model.device), "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."), "why": model.why, "checks": checks,
        "environment": environment(str(model.device)),
    }  # fmt: skip


Check = tuple[str, str, float, Callable[[], float]]


def _try(name: str, shapes: str, allowed: float, measure: Callable[[], float]) -> dict[str, Any]:
    try:
        difference, problem = measure(), None
    except (
        RuntimeError,
        TypeError,
    ) as error:  # includes RunError: an operation may also refuse to work
        difference, problem = float("nan"), " ".join(str(error).split())[:300]
    return {"check": name, "shapes": shapes, "largest_difference": plain(difference), "allowed": allowed,
            "ok": bool(difference <= allowed), "problem": problem}  # fmt: skip


def _operations(device: torch.device, dtype: torch.dtype, longest: int) -> list[Check]:
    """Single operations on shapes that have gone wrong somewhere; differences are relative to the largest value."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))

    def against(run: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> float:
        exact = run(*(x.double() for x in inputs))
        return _relative(run(*(x.to(device) for x in inputs)).cpu().double(), exact)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
        weights = (q @ k.transpose(2, 3) / 4).masked_fill(~seen, torch.finfo(q.dtype).min)
        return weights.softmax(-1) @ v

    def selection() -> float:
        z = draw(3, GEMMA_VOCABULARY)
        there = z.to(device)
        found, expected = there.topk(64, 1), z.topk(64, 1)
        tiles = there.view(3, -1, 256).amax(2).cpu()
        same = torch.equal(found.indices.cpu(), expected.indices) and torch.equal(
            tiles, z.view(3, -1, 256).amax(2)
        )
        return (
            0.0
            if same and torch.equal(there.gather(1, found.indices).cpu(), expected.values)
            else 1.0
        )

    def random_numbers() -> float:
        drawn = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        known = torch.tensor(
            [-1.1258398, -1.1523602, -0.2505786]
        )  # what seed 0 gives on every machine
        moved = float((drawn.to(device).cpu() - drawn).abs().max())
        return max(
            moved, 0.0 if torch.equal(drawn[:3], known) else float((drawn[:3] - known).abs().max())
        )

    def wide() -> float:
        rows, x = draw(GEMMA_VOCABULARY, 64), draw(4, 64)
        projector = Projector(rows.to(device), torch.zeros(GEMMA_VOCABULARY, dtype=torch.bool), 50)
        top, values = (t.cpu() for t in projector(x.to(device))[:2])
        exact = x.double() @ rows.double().T
        return max(
            _relative(values, exact.topk(50, 1).values),
            _relative(values, exact.gather(1, top.long())),
        )

    def statistics() -> float:
        a, gathers = draw(5, 33, 300), [_Gather(300, torch.device("cpu")), _Gather(300, device)]
        for gather in gathers:
            gather.add(a.to(gather.largest.device), list(range(5)))
        pairs = zip(*(gather.result() for gather in gathers), strict=True)
        return max(float(np.abs(x - y).max()) for x, y in pairs)

    linear, attend = torch.nn.functional.linear, lambda *qkv: against(attention, *qkv)
    gelu = lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    some = 2e-5
    half = 2e-2 if dtype == torch.bfloat16 else some
    left, right = draw(1152, 200), draw(1152, 4096)
    many, vectors = draw(16, 64, 1152), draw(16, 1152, 1)
    state, weight = draw(64, 1152).to(dtype), draw(6912, 1152).to(dtype)
    values = torch.linspace(-1000, 1000, 200_001).to(dtype)
    return [
        ("matrix product", "(200, 1152) @ (1152, 4096)", some, lambda: against(torch.mm, left.T.contiguous(), right)),
        ("transposed operand", "(1152, 200)ᵀ @ (1152, 4096)", some, lambda: against(lambda a, b: a.T @ b, left, right)),
        ("longest reduction of a run", f"(64, {longest}) @ ({longest}, 64)", 1e-4,
         lambda: against(torch.mm, draw(64, longest), draw(longest, 64))),
        ("batched product", "(16, 64, 1152) @ (16, 1152, 1)", some, lambda: against(torch.bmm, many, vectors)),
        ("layer in the model's precision", "(64, 1152) to 6912", half, lambda: against(linear, state, weight)),
        ("masked attention", "(3, 4, 33, 16)", half, lambda: attend(*draw(3, 3, 4, 33, 16).to(dtype))),
        ("GELU of large values", "(200001,) from -1000 to 1000", half, lambda: against(gelu, values)),
        ("selection over the vocabulary", f"(3, {GEMMA_VOCABULARY})", 0.0, selection),
        ("activation statistics", "(5, 33, 300)", 1e-5, statistics),
        ("random numbers", "(100000,)", 1e-5, random_numbers),
        ("projection at Gemma's width", f"(4, 64) onto {GEMMA_VOCABULARY} tokens", READOUT, wide),
    ]  # fmt: skip


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def _stages(model: Model, config: Config) -> list[Check]:
    """The stages themselves on the model at hand."""
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})

    def projection() -> float:
        projector, _, masked = make_projector(model, config.top_k)
        small = Config(
            max_vectors=config.batch_size,
            batch_size=config.batch_size,
            fold=config.fold,
            seed=config.seed,
        )
        rows = [
            (p, i)
            for p in (project_layer(model, projector, n, small) for n in layers)
            for i in (0, -1)
        ]
        return readout_difference(model, rows, np.flatnonzero(~masked.numpy()), config.fold)

    def damage() -> float:
        groups = load_concepts(config.concepts).prompts().values()
        prompts = [prompt for group in groups for prompt in group]
        return damage_agreement(model, config, layers, prompts)["largest_difference"]

    return [
        (
            "projection of value vectors",
            f"{model.hidden_size} → {model.vocab_size}, both poles",
            READOUT,
            projection,
        ),
        (
            "clean and damaged forward pass",
            f"layers {', '.join(map(str, layers))}; nats",
            NATS[model.dtype],
            damage,
        ),
    ]
