"""A control vector as llama.cpp and repeng read it: what is added to the stream after each layer.

A GGUF file of the architecture ``controlvector``. ``direction.N`` is added to the output of the
block N, counted from 0, at every position, times the strength that the user gives; block 0 has
none, and llama.cpp refuses one. repeng wants a direction for every other block, so those without a
vector hold zeros. A vector counts as a unit vector (`Weights.residual_direction`): a strength of 4
here is one of 4 in ``cv.steer``.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conceptvec.errors import RequestError
from conceptvec.export.choice import Taken
from conceptvec.model.weights import Weights
from conceptvec.runfolder import write_atomic
from conceptvec.text import printable

logger = logging.getLogger(__name__)

ARCHITECTURE = "controlvector"


def one_concept(vectors: Sequence[Taken]) -> list[Taken]:
    """The vectors of the concept that has most of them, where nobody chose one."""
    concepts = [taken.concept for taken in vectors]
    best = max(dict.fromkeys(concepts), key=concepts.count)
    if len(set(concepts)) > 1:
        shown = printable(str(best))
        logger.warning("a control vector holds one concept: %s; --concept takes another", shown)
    return [taken for taken in vectors if taken.concept == best]


def without_layer_0(vectors: Sequence[Taken]) -> list[Taken]:
    """The vectors that a control vector can hold.

    Raises:
        RequestError: there are none.
    """
    kept = [taken for taken in vectors if taken.pole.layer > 0]
    if not kept:
        raise RequestError(
            "--to gguf: all of these vectors stand in layer 0, which llama.cpp refuses; "
            "choose others with --concept or --id"
        )
    if left_out := [taken.pole.id for taken in vectors if taken.pole.layer == 0]:
        logger.warning("left out, since llama.cpp refuses layer 0: %s", ", ".join(left_out))
    return kept


def directions(model: Weights, vectors: Sequence[Taken]) -> np.ndarray:
    """The sum of unit vectors after each layer: float32 (layers, H)."""
    sums = np.zeros((model.n_layers, model.hidden_size), np.float32)
    for taken in vectors:
        direction = model.residual_direction(taken.pole).cpu().numpy()
        sums[taken.pole.layer] += direction
    return sums


def save_control_vector(model: Weights, vectors: Sequence[Taken], path: Path) -> None:
    """Write the GGUF file.

    Raises:
        RequestError: the package gguf is not installed.
    """
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise RequestError(
            "--to gguf: the package gguf is not installed; pip install 'conceptvec[gguf]'"
        ) from None
    sums = directions(model, vectors)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "control.gguf"
        writer = GGUFWriter(file, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model.family.name)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", model.n_layers - 1)
        writer.add_description("; ".join(taken.label for taken in vectors))
        for layer in range(1, model.n_layers):
            writer.add_tensor(f"direction.{layer}", sums[layer])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_atomic(path, file.read_bytes())
