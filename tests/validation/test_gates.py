"""The signs of gate and up at own positions, against gate and up themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from conceptvec.model.network import Model
from conceptvec.records import Pole
from conceptvec.validation.clean import CleanPass
from conceptvec.validation.entries import gate_up
from tests.conftest import KNOWN
from tests.tools.test_planting import some_passages

LAYER, NEURONS = 2, [3, 7, 11]
FAMILIES = [family for family in KNOWN if family != "gemma3"]


@torch.inference_mode()
def gate_and_up(model: Model, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Gate and up of the neurons at every token of a text: (T, n) each, from the modules."""
    seen: dict[str, torch.Tensor] = {}
    mlp = model.layers[LAYER].mlp
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out[0]))
        for name, module in (("gate", mlp.gate_proj), ("up", mlp.up_proj))
    ]
    model.decoder(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen["gate"][:, NEURONS].numpy(), seen["up"][:, NEURONS].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_those_of_gate_and_up(family: str, tiny_of: Callable[[str], Model]) -> None:
    model, passages = tiny_of(family), some_passages()
    clean = CleanPass(model, passages, {LAYER: NEURONS, 0: [1]})
    texts = [gate_and_up(model, passages.passage(i).tolist()) for i in range(len(passages))]
    gate, up = (np.concatenate(part) for part in zip(*texts, strict=True))  # (tokens, n)
    mixed = 0
    for column, neuron in enumerate(NEURONS):
        gates, activation = clean.gate_is_positive(LAYER, neuron), clean.activation(LAYER, neuron)
        for sign, direction in (("+", 1), ("-", -1)):
            at = np.flatnonzero(direction * activation > 0)
            g, u = gate[at, column] > 0, up[at, column] > 0
            shares = gate_up(gates[at], Pole(LAYER, neuron, sign))
            assert shares == pytest.approx(
                {
                    "plus_plus": np.mean(g & u),
                    "plus_minus": np.mean(g & ~u),
                    "minus_plus": np.mean(~g & u),
                    "minus_minus": np.mean(~g & ~u),
                },
                abs=1e-5,
            )
            mixed += sum(value > 0 for value in shares.values()) == 2
    assert mixed > 2  # of six poles


def test_no_positions_have_no_shares() -> None:
    assert gate_up(np.zeros(0, bool), Pole(0, 0, "+")) is None
    assert gate_up(None, Pole(0, 0, "+")) is None
