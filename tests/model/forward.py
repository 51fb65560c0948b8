"""Plain forward passes, to hold others against."""

from __future__ import annotations

from typing import Any

import torch

TEXTS = ["w1 w2 w3 dog", "w4 w5 w6 cat", "w9 w8 w7 zoo"]


@torch.inference_mode()
def end_log_probability(hf: Any, ids: list[int], start: int) -> float:
    """Mean log-probability of ``ids[start:]`` by an ordinary pass of one sequence."""
    logits = hf(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(logits[range(start - 1, len(ids) - 1), ids[start:]].mean())
