"""``conceptvec selfcheck``: whether a device computes correctly, against the CPU.

Devices have returned wrong products without an error. Here the operations of a run are tried on the
shapes that have failed in the wild, then the stages themselves on the model at hand. Every run
compares a sample of its own rows besides (`extraction.agreement`, `validation.agreement`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from conceptvec.concepts import load_concepts
from conceptvec.config import Config
from conceptvec.effects import rows
from conceptvec.effects.gradients import Gradients
from conceptvec.effects.moved import draw_moved
from conceptvec.extraction.agreement import READOUT, readout_difference
from conceptvec.extraction.poles import make_projector
from conceptvec.extraction.stage import project_layer
from conceptvec.model.ambient import set_aside
from conceptvec.model.device import environment
from conceptvec.model.network import Model, load_model
from conceptvec.text import plain, printable, table
from conceptvec.tools.operations import Check, operations
from conceptvec.validation.agreement import NATS, damage_agreement
from conceptvec.validation.transfer import split_answer

GRADIENTS = {torch.float32: 1e-2, torch.bfloat16: 0.5}  # of effects, relative to the largest
GRADIENT_TOKENS = 12
STEP = 0.02  # of the scalings that gradients are compared with


@dataclass(frozen=True)
class Outcome:
    """What a check gave; `problem` is the error of an operation that refused to work."""

    check: str
    shapes: str
    largest_difference: float | None
    allowed: float
    ok: bool
    problem: str | None


@set_aside
def selfcheck(config: Config) -> dict[str, Any]:
    """Try the operations of a run on the configured device.

    Returns:
        ``device``, ``dtype``, ``why``, ``ok`` and ``checks``: each with name, shapes, the largest
        difference from the CPU, what is allowed, and whether it passed.
    """
    model = load_model(config)
    checks = [*operations(model), *stages(model, config)]
    outcomes = [outcome_of(check) for check in checks]
    return {
        "ok": all(outcome.ok for outcome in outcomes),
        "device": str(model.device),
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "why": model.why,
        "checks": [asdict(outcome) for outcome in outcomes],
        "environment": environment(str(model.device)),
    }


def outcome_of(check: Check) -> Outcome:
    """Try one check; an operation may also refuse to work."""
    problem = None
    try:
        difference = check.measure()
    except (RuntimeError, TypeError) as error:  # includes RunError
        difference, problem = float("nan"), " ".join(str(error).split())[:300]
    return Outcome(
        check.name,
        check.shapes,
        plain(difference),
        check.allowed,
        bool(difference <= check.allowed),
        problem,
    )


def checks_table(answer: dict[str, Any]) -> str:
    """The answer as text."""
    body = []
    for check in answer["checks"]:
        difference = check["largest_difference"]
        body.append(
            [
                check["check"],
                check["shapes"],
                "–" if difference is None else f"{difference:.1e}",
                f"{check['allowed']:.0e}",
                "ok" if check["ok"] else f"WRONG {printable(check['problem'] or '')}",
            ]
        )
    verdict = "computes correctly"
    if not answer["ok"]:
        verdict = "computes WRONGLY: use --device cpu, or another version of torch"
    headers = ("check", "shapes", "difference", "allowed", "")
    closing = f"{answer['device']} in {answer['dtype']} ({answer['why']}) {verdict}"
    return f"{table(body, headers)}\n\n{closing}"


def stages(model: Model, config: Config) -> list[Check]:
    """The stages themselves."""
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})
    return [
        Check(
            "projection of value vectors",
            f"{model.hidden_size} → {model.vocab_size}, both poles",
            READOUT,
            lambda: _projection(model, config, layers),
        ),
        Check(
            "clean and damaged forward pass",
            f"layers {', '.join(map(str, layers))}; nats",
            NATS[model.dtype],
            lambda: _damage(model, config, layers),
        ),
        Check(
            "gradients of log-probabilities",
            f"one text of {GRADIENT_TOKENS} tokens, all {model.n_layers} layers",
            GRADIENTS[model.dtype],
            lambda: gradient_difference(model, config.seed),
        ),
    ]


def _projection(model: Model, config: Config, layers: list[int]) -> float:
    projector, _, masked = make_projector(model, config.top_k)
    small = Config(
        max_vectors=config.batch_size,
        batch_size=config.batch_size,
        fold=config.fold,
        seed=config.seed,
    )
    projections = [project_layer(model, projector, layer, small) for layer in layers]
    ends = [(of_layer, row) for of_layer in projections for row in (0, -1)]
    return readout_difference(model, ends, np.flatnonzero(~masked.numpy()), config.fold)


def _damage(model: Model, config: Config, layers: list[int]) -> float:
    groups = load_concepts(config.concepts).prompts().values()
    texts = [split_answer(model, prompt) for group in groups for prompt in group]
    agreement = damage_agreement(model, texts, layers, config.seed, config.batch_size)
    return agreement["largest_difference"]


def gradient_difference(model: Model, seed: int) -> float:
    """First-order effects by the scan's backward pass against differences of real passes.

    The scan's Σ a·g of a neuron must be what a small scaling of its activation changes. The word is
    the likeliest after some random tokens. The difference is relative to the largest effect.
    """
    text = _likely_text(model, seed)
    one, last = np.zeros(1, np.int64), np.array([len(text) - 1])
    targets = rows.targets_of(one, last, one, seed)
    nothing = draw_moved([], 0, model.intermediate_size, set(), seed)
    everything = torch.zeros(model.vocab_size, dtype=torch.bool)
    gradients = Gradients(model, range(model.n_layers), everything, nothing)
    effects, _ = gradients.part([text], one, targets)
    zero = effects.zero.sum(1)[:, 0]  # (L, I), both poles

    largest = max(float(np.abs(zero).max()), 1e-9)
    differences = []
    for layer in range(model.n_layers):
        neuron = int(np.abs(zero[layer]).argmax())
        exact = _scaling_effect(model, text, layer, neuron)
        differences.append(abs(exact - float(zero[layer, neuron])) / largest)
    return max(differences)


@torch.inference_mode()
def _likely_text(model: Model, seed: int) -> np.ndarray:
    """Random tokens and the likeliest after them: int64 (T,)."""
    stream = np.random.default_rng(seed)
    ids = stream.integers(10, model.vocab_size, GRADIENT_TOKENS - 1)
    ids[0] = ids[0] if model.bos_id is None else model.bos_id
    row = torch.tensor(ids[None], device=model.device)
    likeliest = int(model.hf(input_ids=row, use_cache=False).logits[0, -1].argmax())
    return np.append(ids, likeliest)


@torch.inference_mode()
def _scaling_effect(model: Model, text: np.ndarray, layer: int, neuron: int) -> float:
    """∂ log p(last token) / ∂ factor of a neuron's activations from the second token on."""
    row = torch.tensor(text[None], device=model.device)
    log_p = []
    for factor in (1 + STEP, 1 - STEP):

        def scale(
            _: Any, args: tuple[torch.Tensor, ...], factor: float = factor
        ) -> tuple[torch.Tensor, ...]:
            a = args[0].clone()
            a[:, 1:, neuron] *= factor
            return (a, *args[1:])

        handle = model.layers[layer].mlp.down_proj.register_forward_pre_hook(scale)
        try:
            logits = model.hf(input_ids=row, use_cache=False).logits[0, -2].float()
        finally:
            handle.remove()
        log_p.append(float(logits.cpu().double().log_softmax(0)[int(row[0, -1])]))
    return (log_p[0] - log_p[1]) / (2 * STEP)
