"""The clean pass, alone and by several processes together."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from conceptvec.model.network import Model
from conceptvec.runfolder import Parts
from conceptvec.validation import clean
from conceptvec.validation.clean import CleanPass
from tests.tools.test_planting import some_passages

NEURONS = {0: [1, 5], 2: [3], 3: [0, 2, 9]}


class Together(Parts):
    """Processes as threads, which wait for each other where they exchange something."""

    def __init__(self, rank: int, values: list[Any], barrier: Barrier) -> None:
        self.rank, self.world = rank, len(values)
        self.values, self.met = values, barrier

    def shared(self, values: np.ndarray, rank: int) -> np.ndarray:
        if rank == self.rank:
            self.values[rank] = values
        self.met.wait(timeout=30)
        sent = self.values[rank]
        assert (sent.shape, sent.dtype) == (values.shape, values.dtype)
        self.met.wait(timeout=30)
        return sent


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_the_pass(world: int, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is read by one of them, and all end with what one alone reads, to the last bit."""
    monkeypatch.setitem(clean.TOKENS, "cpu", 24)  # two passages at a time
    passages = some_passages()
    alone = CleanPass(tiny, passages, NEURONS)

    models = [copy.deepcopy(tiny) for _ in range(world)]  # each process has its own
    read: dict[int, list[int]] = {id(model): [] for model in models}
    read_batch = CleanPass._read

    def counted(made: CleanPass, members: np.ndarray) -> None:
        read[id(made.model)].extend(members.tolist())
        read_batch(made, members)

    monkeypatch.setattr(CleanPass, "_read", counted)
    values, barrier = [None] * world, Barrier(world)

    def process(rank: int) -> CleanPass:
        return CleanPass(models[rank], passages, NEURONS, Together(rank, values, barrier))

    with ThreadPoolExecutor(world) as pool:
        shared = list(pool.map(process, range(world)))
    assert sorted(sum(read.values(), [])) == list(range(len(passages)))
    assert max(map(len, read.values())) <= 2 * math.ceil(len(passages) / 2 / world)
    everywhere = np.arange(len(passages.ids) - 1)
    for made in shared:
        for layer, neurons in NEURONS.items():
            for neuron in neurons:
                activation = made.activation(layer, neuron)
                assert (activation == alone.activation(layer, neuron)).all()
                assert np.abs(activation).min() > 0
                gates = made.gate_is_positive(layer, neuron)
                assert (gates == alone.gate_is_positive(layer, neuron)).all()
        assert (made.log_p(everywhere) == alone.log_p(everywhere)).all()
