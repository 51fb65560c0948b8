"""Vectors as Neuronpedia takes them: a list of bodies for ``POST /api/vector/new``.

The only hook it knows is the stream before a layer, so what is added after layer ℓ is named as
layer ℓ + 1, and vectors of the last layer have no place. A vector counts as a unit vector, as in
``cv.steer``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conceptvec.errors import RequestError
from conceptvec.export.choice import Taken
from conceptvec.model.weights import Weights
from conceptvec.runfolder import write_atomic

logger = logging.getLogger(__name__)

HOOK = "hook_resid_pre"
STRENGTH = 10.0  # Neuronpedia's own default


def before_a_layer(model: Weights, vectors: Sequence[Taken]) -> list[Taken]:
    """The vectors that some layer follows.

    Raises:
        RequestError: there are none, or one is not the model's.
    """
    for taken in vectors:
        model.check_place(taken.pole)
    last = model.n_layers - 1
    kept = [taken for taken in vectors if taken.pole.layer < last]
    if not kept:
        raise RequestError(
            f"--to neuronpedia: all of these vectors stand in the last layer, {last}, and "
            "Neuronpedia adds vectors before a layer only; choose others with --concept or --id"
        )
    if left_out := [taken.pole.id for taken in vectors if taken.pole.layer == last]:
        logger.warning("left out, since no layer follows theirs: %s", ", ".join(left_out))
    return kept


def save_uploads(model: Weights, vectors: Sequence[Taken], path: Path) -> None:
    """Write the JSON file."""
    bodies = [_body(model, taken) for taken in vectors]
    text = json.dumps(bodies, ensure_ascii=False, indent=1)
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def _body(model: Weights, taken: Taken) -> dict[str, Any]:
    return {
        "modelId": model.name.rstrip("/").rpartition("/")[2],
        "layerNumber": taken.pole.layer + 1,
        "hookType": HOOK,
        "vector": model.residual_direction(taken.pole).tolist(),
        "vectorDefaultSteerStrength": STRENGTH,
        "vectorLabel": taken.label,
    }
