"""A sample of the engine's own passes against ordinary ones in float64 on the CPU.

The reference (`model.reference`) shares nothing with the engine: a whole forward pass of unpadded
texts by transformers itself, with a really edited weight column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.model.reference import Edit, agreement, reference
from conceptvec.text import plain
from conceptvec.validation.damage import Damage, Damager
from conceptvec.validation.engine import Engine, Text

if TYPE_CHECKING:
    from conceptvec.model.network import Model

NATS = {torch.float32: 1e-3, torch.bfloat16: 0.5}  # allowed difference of a log-probability
TEXTS = 3


def damage_agreement(
    model: Model, texts: Sequence[Text], layers: Sequence[int], seed: int, batch_size: int
) -> dict[str, Any]:
    """Clean and damaged log-probabilities of three texts at three layers: engine and reference.

    Args:
        model: the model.
        texts: some of the run's own, among which texts of one length are looked for.
        layers: of the run, ascending.
        seed: of the damages.
        batch_size: rows of a forward pass.

    Raises:
        RunError: they differ by more than the precision of the forward pass explains.
    """
    sample, longest = _of_one_length(texts)
    engine = Engine(model, [*sample, longest], batch_size)  # the longest makes the others padded
    measured, edits = [], []
    for layer in sorted({layers[0], layers[len(layers) // 2], layers[-1]}):
        norms = torch.linalg.vector_norm(model.value_vectors(layer).float(), dim=1)
        neuron = int(norms.argmax())
        vector = model.value_vectors(layer)[neuron].float()
        turned = Damager(seed)("rotate", vector, (layer, neuron))[0]
        nothing = torch.zeros_like(vector)
        damages = [
            Damage(neuron, 0.0, 0.0, nothing),
            Damage(neuron, -1.0, 0.0, vector),
            turned,
        ]
        pairs = np.array([(d, t) for d in range(len(damages)) for t in range(len(sample))])
        log_p = engine.measure(engine.state(layer, [neuron]), damages, pairs).log_p
        measured.append(log_p.reshape(len(damages), -1))
        edits += [Edit(layer, neuron, x) for x in (nothing, -vector, turned.direction)]

    ours = np.concatenate(measured)  # (9, texts)
    exact = reference(model, [(list(text.ids), text.start) for text in sample], edits)
    difference = float(np.abs(ours - exact).max())
    drops = (ours[::3].repeat(3, 0) - ours) - (exact[::3].repeat(3, 0) - exact)
    return agreement(
        "damage", ours.size, difference, NATS[model.dtype], "nats per answer token", model.device
    ) | {"largest_difference_of_drops": plain(np.abs(drops).max())}


def _of_one_length(texts: Sequence[Text]) -> tuple[list[Text], Text]:
    """Up to three texts of the commonest length, and the longest of all."""
    lengths = [len(text.ids) for text in texts]
    common = Counter(lengths).most_common(1)[0][0]
    same = [text for text, length in zip(texts, lengths, strict=True) if length == common]
    return same[:: -(-len(same) // TEXTS)][:TEXTS], texts[int(np.argmax(lengths))]
