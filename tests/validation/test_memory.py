"""Memory that runs out in the middle of Stage 3 changes no result."""

from __future__ import annotations

import numpy as np
import torch

from conceptvec.validation.damage import damages
from conceptvec.validation.engine import Engine
from tests.validation.test_damage import PROMPTS


def failing_once(function, calls: int):
    """The function, but for the call of that number."""
    left = [calls]

    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(*args, **kwargs)

    return wrapped


def test_stage_3_goes_on_with_half_a_batch(tiny, monkeypatch, caplog) -> None:
    def measured() -> np.ndarray:
        engine = Engine(tiny, PROMPTS * 2, 4)
        rows = damages(tiny, 1, 3, "noise", 0.0, 3, 2.0, None, 0)
        return engine.measure(engine.state(1, [3]), rows, range(12))[0]

    expected = measured()
    decoder = type(tiny.decoder)
    # In the middle of Engine.state, and of the replay.
    monkeypatch.setattr(decoder, "forward", failing_once(decoder.forward, 2))
    monkeypatch.setattr(Engine, "_answers", failing_once(Engine._answers, 2))
    assert np.abs(measured() - expected).max() < 1e-5
    assert caplog.text.count("out of memory: going on with") == 2
