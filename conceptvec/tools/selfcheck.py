"""Whether a device computes correctly: its results against the CPU in float64.

Devices have returned wrong products without an error. `selfcheck` tries the operations of a run on the shapes that have
failed in the wild; `projection_agreement` and `damage_agreement` compare a sample of every run's own rows. The
reference shares nothing with the fast path: full readouts instead of block maxima, and for damage an ordinary forward
pass of the unpadded prompts by transformers itself, layer by layer in float64, with a really edited weight column.
(RMSNorm and softmax of transformers compute in float32 even then.)
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.concepts import Prompt, load_concepts
from conceptvec.config import Config
from conceptvec.errors import RunError
from conceptvec.extraction.activations import _Gather
from conceptvec.extraction.projection import REDUCED
from conceptvec.extraction.stage import (
    Candidates,
    Projections,
    Projector,
    make_projector,
    project_layer,
)
from conceptvec.text import DASH, plain, printable, table
from conceptvec.validation.damage import Damage, damages
from conceptvec.validation.engine import Engine, split_answer

if TYPE_CHECKING:
    from conceptvec.model.network import Model

READOUT = 1e-4  # allowed difference of readouts, relative to the largest of the row
NATS = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.5,
}  # allowed difference of a log-probability per answer token
GEMMA_VOCABULARY = 262_144
COLUMNS = 2**14  # vocabulary rows turned into float64 at a time


def projection_agreement(model: Model, candidates: Candidates, config: Config) -> dict[str, Any]:
    """One neuron per layer (32 layers at most): both kept poles against its full readout in float64 on the CPU.

    Raises:
        RunError: the values differ, or a token that belongs to a pole was left out.
    """
    some = candidates.layers[:: -(-len(candidates.layers) // 32)]
    rng = np.random.default_rng([config.seed, 21])
    rows = [(p, int(rng.integers(len(p.neurons)))) for p in some]
    shown = np.flatnonzero(~candidates.masked)
    difference = _readout_difference(model, rows, shown, config.fold)
    return _verdict(
        "projection",
        len(rows),
        difference,
        READOUT,
        "relative to the largest readout of the row",
        model,
    )


def _readout_difference(
    model: Model, rows: Sequence[tuple[Projections, int]], shown: np.ndarray, fold: str
) -> float:
    directions = torch.stack([
        model.value_vectors(p.layer)[int(p.neurons[i])].cpu().double() * model.fold_scale(p.layer, fold).cpu().double()
        for p, i in rows
    ])  # fmt: skip
    exact = _readouts(model, directions).numpy()  # (R, V)
    worst = 0.0
    for (p, i), readout in zip(rows, exact, strict=True):
        ordered = np.sort(readout[shown])
        for ids, values, best in (
            (p.top_ids[i], p.top_values[i], ordered[::-1]),
            (p.bottom_ids[i], p.bottom_values[i], ordered),
        ):
            wrong = max(
                np.abs(values - readout[ids]).max(), np.abs(values - best[: len(values)]).max()
            )
            worst = max(worst, float(wrong / max(np.abs(ordered[[0, -1]]).max(), 1e-30)))
    return worst


def _readouts(model: Model, x: torch.Tensor) -> torch.Tensor:
    """``x @ unembedding.T`` in float64 on the CPU, a chunk at a time: the whole in float64 takes gigabytes."""
    return torch.cat([x @ rows.cpu().double().T for rows in model.unembedding.split(COLUMNS)], 1)


def damage_agreement(model: Model, config: Config, layers: Sequence[int]) -> dict[str, Any]:
    """Clean and damaged log-probabilities of three prompts at three layers: the engine against `reference`.

    Raises:
        RunError: they differ by more than the precision of the forward pass explains.
    """
    everything = [p for group in load_concepts(config.concepts).prompts().values() for p in group]
    prompts, longest = _of_one_length(model, everything)
    engine = Engine(
        model, [*prompts, longest], config.batch_size
    )  # the longest makes the others padded
    layers = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    found, cases = [], []
    for layer in layers:
        neuron = int(torch.linalg.vector_norm(model.value_vectors(layer).float(), dim=1).argmax())
        vector = model.value_vectors(layer)[neuron].float()
        zero, noise = (
            damages(model, layer, neuron, k, 0.0, 1, 1.0, None, config.seed)[0]
            for k in ("zero", "noise")
        )
        rows = [Damage(neuron, 0.0, 0.0, torch.zeros_like(vector)), zero, noise]
        found.append(
            engine.measure(engine.state(layer, [neuron]), rows, range(len(prompts) + 1))[:, :-1]
        )
        cases += [(layer, neuron, c) for c in (torch.zeros_like(vector), -vector, noise.direction)]
    measured = np.concatenate(found)  # (9, 3)
    exact = reference(model, prompts, cases)
    drops = np.abs(
        (measured[::3].repeat(3, 0) - measured) - (exact[::3].repeat(3, 0) - exact)
    ).max()
    out = _verdict("damage", measured.size, float(np.abs(measured - exact).max()), NATS[model.dtype],
                   "nats per answer token", model)  # fmt: skip
    return out | {"largest_difference_of_drops": plain(drops)}


def _of_one_length(model: Model, prompts: Sequence[Prompt]) -> tuple[list[Prompt], Prompt]:
    """Up to three prompts of the commonest token length, and the longest of all."""
    lengths = [len(model.encode(p.prompt + p.answer)) for p in prompts]
    common = Counter(lengths).most_common(1)[0][0]
    same = [p for p, n in zip(prompts, lengths, strict=True) if n == common]
    return same[:: -(-len(same) // 3)][:3], prompts[int(np.argmax(lengths))]


@torch.inference_mode()
def reference(
    model: Model, prompts: Sequence[Prompt], cases: Sequence[tuple[int, int, torch.Tensor]]
) -> np.ndarray:
    """Mean log-probability of the answers by an ordinary forward pass on the CPU in float64: (cases, prompts).

    Args:
        model: the model; its layers are copied one at a time.
        prompts: prompts of equal token length.
        cases: (layer, neuron, what is added to the neuron's column of ``down_proj``).
    """
    encoded = [split_answer(model, p) for p in prompts]
    ids = torch.tensor([row for _ in cases for row, _ in encoded])  # (C·P, T), cases outermost
    used, small_ids = ids.unique(return_inverse=True)
    embed = copy.copy(
        model.decoder.embed_tokens
    )  # the same module over the few rows that are needed
    weight = model.decoder.embed_tokens.weight.detach()[used.to(model.device)].cpu().double()
    embed._parameters = {"weight": torch.nn.Parameter(weight, requires_grad=False)}
    embed._buffers = {
        k: b.cpu().to(model.dtype).double() for k, b in embed._buffers.items() if b is not None
    }
    embed.padding_idx = None
    layers = torch.nn.ModuleList(
        _OnCPU(block, [(i * len(prompts), len(prompts), n, c.cpu().double()) for i, (at, n, c) in enumerate(cases)
                       if at == layer]) for layer, block in enumerate(model.layers)
    )  # fmt: skip
    memo: dict[int, Any] = {id(model.decoder.embed_tokens): embed, id(model.layers): layers}
    decoder = copy.deepcopy(model.decoder, memo).cpu().double()  # in this order: MPS has no float64
    hidden = decoder(
        input_ids=small_ids, use_cache=False
    ).last_hidden_state  # (C·P, T, H), normalised
    rows = [
        (row, at)
        for row, (tokens, start) in enumerate(encoded * len(cases))
        for at in range(start, len(tokens))
    ]
    row, at = torch.tensor(rows).T
    states = hidden[row, at - 1]  # (N, H): they predict the answers' tokens
    logits = _readouts(model, states)
    logits = torch.tanh(logits / model.softcap) * model.softcap if model.softcap else logits
    found = logits.log_softmax(1).gather(1, ids[row, at][:, None])[:, 0].numpy()
    out = np.bincount(row, found) / np.bincount(row)
    return out.reshape(len(cases), len(prompts))


class _OnCPU(torch.nn.Module):
    """A layer that copies itself to the CPU in float64 when it is called, with edited columns for some rows."""

    def __init__(
        self, block: torch.nn.Module, edits: list[tuple[int, int, int, torch.Tensor]]
    ) -> None:
        super().__init__()
        self._source, self._edits = (block,), edits  # in a tuple, so that it is no submodule

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_source"][0], name)

    def __deepcopy__(self, memo: dict) -> _OnCPU:
        return self

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        block = copy.deepcopy(self._source[0]).cpu().double()
        first = lambda out: out[0] if isinstance(out, tuple) else out
        out = block(hidden, *args, **kwargs)
        for start, n, neuron, change in self._edits:
            weight: Any = block.mlp.down_proj.weight  # type: ignore[union-attr]
            kept = weight[:, neuron].clone()
            weight[:, neuron] += change
            first(out)[start : start + n] = first(block(hidden, *args, **kwargs))[start : start + n]
            weight[:, neuron] = kept
        return out


def _verdict(
    what: str, rows: int, difference: float, allowed: float, unit: str, model: Model
) -> dict[str, Any]:
    if not difference <= allowed:  # NaN fails too
        raise RunError(
            f"{model.device} computes wrongly: the {what} of a sample differs by {difference:.3g} ({unit}) from the "
            f"CPU, allowed are {allowed:g}. Nothing that this device computed can be trusted: run "
            "`conceptvec selfcheck --device …` to see which operation fails, then use --device cpu or another torch."
        )
    return {"rows": rows, "largest_difference": plain(difference), "allowed": allowed, "unit": unit}


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
        return _readout_difference(model, rows, np.flatnonzero(~masked.numpy()), config.fold)

    def damage() -> float:
        return damage_agreement(model, config, layers)["largest_difference"]

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


def checks_table(answer: dict[str, Any]) -> str:
    """The answer of `selfcheck` as text."""
    headers = ("check", "shapes", "difference", "allowed", "")
    rows = [_check_row(check) for check in answer["checks"]]
    conclusion = (
        "computes correctly"
        if answer["ok"]
        else "computes WRONGLY: use --device cpu, or another version of torch"
    )
    where = f"{answer['device']} in {answer['dtype']} ({answer['why']})"
    return f"{table(rows, headers)}\n\n{where} {conclusion}"


def _check_row(check: dict[str, Any]) -> list[str]:
    difference = check["largest_difference"]
    return [
        check["check"],
        check["shapes"],
        DASH if difference is None else f"{difference:.1e}",
        f"{check['allowed']:.0e}",
        "ok" if check["ok"] else f"WRONG {printable(check['problem'] or '')}",
    ]
