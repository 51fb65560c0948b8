"""Whether a device computes correctly: its results against the CPU in float64.

Devices have returned wrong products without an error. `selfcheck` tries the operations of a run on
the shapes that have failed in the wild, and the stages on the model at hand against
`model.reference`, as every run does with a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.concepts import load_concepts
from conceptvec.config import Config
from conceptvec.extraction.agreement import READOUT, readout_difference
from conceptvec.extraction.poles import make_projector
from conceptvec.extraction.projection import REDUCED
from conceptvec.extraction.stage import project_layer
from conceptvec.text import DASH, plain, printable, table
from conceptvec.tools.operations import Check, operations
from conceptvec.validation.agreement import NATS, damage_agreement

if TYPE_CHECKING:
    from conceptvec.model.network import Model


def selfcheck(config: Config) -> dict[str, Any]:
    """Try the operations of a run, and its stages, on the configured device.

    Returns:
        ``device``, ``dtype``, ``why``, ``ok`` and ``checks``: each with name, shapes, the largest
        difference from the CPU, what is allowed, and whether it passed.
    """
    from conceptvec.model.device import environment
    from conceptvec.model.network import load_model

    model = load_model(config)
    longest = max(REDUCED, model.intermediate_size)
    checks = [*operations(model.device, model.dtype, longest), *_stages(model, config)]
    outcomes = [_try(check) for check in checks]
    return {
        "ok": all(outcome["ok"] for outcome in outcomes),
        "device": str(model.device),
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "why": model.why,
        "checks": outcomes,
        "environment": environment(str(model.device)),
    }


def _try(check: Check) -> dict[str, Any]:
    """What a check gives; an operation may also refuse to work."""
    problem = None
    try:
        difference = check.measure()
    except (RuntimeError, TypeError) as error:  # RunError is one
        difference, problem = float("nan"), " ".join(str(error).split())[:300]
    return {
        "check": check.name,
        "shapes": check.shapes,
        "largest_difference": plain(difference),
        "allowed": check.allowed,
        "ok": bool(difference <= check.allowed),
        "problem": problem,
    }


def _stages(model: Model, config: Config) -> list[Check]:
    """The stages themselves on the model at hand."""
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})
    return [
        Check(
            name="projection of value vectors",
            shapes=f"{model.hidden_size} → {model.vocab_size}, both poles",
            allowed=READOUT,
            measure=partial(_projection, model, config, layers),
        ),
        Check(
            name="clean and damaged forward pass",
            shapes=f"layers {', '.join(map(str, layers))}; nats",
            allowed=NATS[model.dtype],
            measure=partial(_damage, model, config, layers),
        ),
    ]


def _projection(model: Model, config: Config, layers: Sequence[int]) -> float:
    """Two neurons of every layer against full readouts."""
    projector, _, masked = make_projector(model, config.top_k)
    size = config.batch_size
    few = Config(max_vectors=size, batch_size=size, fold=config.fold, seed=config.seed)
    projected = [project_layer(model, projector, layer, few) for layer in layers]
    rows = [(projections, row) for projections in projected for row in (0, -1)]
    return readout_difference(model, rows, np.flatnonzero(~masked.numpy()), config.fold)


def _damage(model: Model, config: Config, layers: Sequence[int]) -> float:
    groups = load_concepts(config.concepts).prompts().values()
    prompts = [prompt for group in groups for prompt in group]
    return damage_agreement(model, config, layers, prompts)["largest_difference"]


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
