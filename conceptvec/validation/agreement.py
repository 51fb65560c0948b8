"""A sample of a run's damaged passes against the reference in float64 on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from conceptvec.concepts import Prompt
from conceptvec.config import Config
from conceptvec.model.network import Model
from conceptvec.model.reference import Edit, agreement, reference
from conceptvec.text import plain
from conceptvec.validation.damage import Damage, damages
from conceptvec.validation.engine import Engine, split_answer

# Allowed difference of a log-probability per answer token.
NATS = {torch.float32: 1e-3, torch.bfloat16: 0.5}


def damage_agreement(
    model: Model, config: Config, layers: Sequence[int], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Clean and damaged log-probabilities of three prompts at three layers: engine, `reference`.

    Args:
        model: the model.
        config: batch_size, seed.
        layers: the run's; the first, the middle and the last are checked.
        prompts: the run's, all concepts and the neutral ones.

    Raises:
        RunError: they differ by more than the precision of the forward pass explains.
    """
    sample, longest = _of_one_length(model, prompts)
    # The longest prompt makes the others padded.
    engine = Engine(model, [*sample, longest], config.batch_size)
    layers = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    parts, edits = [], []
    for layer in layers:
        norms = torch.linalg.vector_norm(model.value_vectors(layer).float(), dim=1)
        neuron = int(norms.argmax())
        vector = model.value_vectors(layer)[neuron].float()
        zero, noise = (
            damages(model, layer, neuron, kind, 0.0, 1, 1.0, None, config.seed)[0]
            for kind in ("zero", "noise")
        )
        nothing = torch.zeros_like(vector)
        rows = [Damage(neuron, 0.0, 0.0, nothing), zero, noise]
        state = engine.state(layer, [neuron])
        parts.append(engine.measure(state, rows, range(len(sample) + 1))[:, :-1])
        edits += [Edit(layer, neuron, change) for change in (nothing, -vector, noise.direction)]

    measured = np.concatenate(parts)  # (9, 3)
    exact = reference(model, [split_answer(model, prompt) for prompt in sample], edits)
    difference = float(np.abs(measured - exact).max())
    unit = "nats per answer token"
    record = agreement("damage", measured.size, difference, NATS[model.dtype], unit, model.device)
    # Every third row is a clean pass, that of the layer's other two rows.
    drops = measured[::3].repeat(3, 0) - measured
    exact_drops = exact[::3].repeat(3, 0) - exact
    return record | {"largest_difference_of_drops": plain(np.abs(drops - exact_drops).max())}


def _of_one_length(model: Model, prompts: Sequence[Prompt]) -> tuple[list[Prompt], Prompt]:
    """Up to three prompts of the commonest token length, and the longest of all."""
    lengths = [len(model.encode(prompt.prompt + prompt.answer)) for prompt in prompts]
    common = Counter(lengths).most_common(1)[0][0]
    same = [p for p, length in zip(prompts, lengths, strict=True) if length == common]
    return same[:: -(-len(same) // 3)][:3], prompts[int(np.argmax(lengths))]
