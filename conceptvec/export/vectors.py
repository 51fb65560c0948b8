"""Vectors of a run as safetensors: the columns of ``down_proj``, and what they are in the readout.

The signs of the poles are applied to both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from conceptvec.model.weights import Weights
from conceptvec.records import pole_of
from conceptvec.runfolder import write_atomic


def save_vectors(
    model: Weights, fold: str, entries: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Write the vectors (n, H) of some entries, with their readout directions (n, H)."""
    from safetensors.torch import save

    vectors = torch.zeros(len(entries), model.hidden_size)
    directions = torch.zeros_like(vectors)
    for row, entry in enumerate(entries):
        pole = pole_of(entry["id"])
        vector = model.value_vectors(pole.layer)[pole.neuron].float() * pole.direction
        vectors[row] = vector
        directions[row] = model.folded(vector, pole.layer, fold)
    metadata = {
        "ids": json.dumps([entry["id"] for entry in entries]),
        "concepts": json.dumps([entry["concept"] for entry in entries]),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "fold": fold,
    }
    tensors = {"vectors": vectors, "readout_directions": directions}
    write_atomic(path, save(tensors, metadata))
