"""The first-order effect of a pole on every concept, beside the one that it is tested for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.effects.statistics import studentised
from conceptvec.records import Pole, pole_of
from conceptvec.text import plain

if TYPE_CHECKING:
    from conceptvec.effects.scan_record import Scan

AT_ONCE = 2048  # poles whose effects per word are held together


def with_effects(entries: Sequence[Mapping[str, Any]], scan: Scan) -> list[dict[str, Any]]:
    """Entries of the results whose `scan` also holds the effect on every concept of the run."""
    effects = effects_by_concept(scan, [pole_of(entry["id"]) for entry in entries])
    return [
        {**entry, "scan": entry["scan"] | {"by_concept": of_entry}}
        for entry, of_entry in zip(entries, effects, strict=True)
    ]


def effects_by_concept(scan: Scan, poles: Sequence[Pole]) -> list[dict[str, float | None]]:
    """Mean ablation's effect of each pole on the words of each concept that it promotes most.

    Returns:
        concept → nats, of every pole; null where the text holds no word of the concept.
    """
    sizes = scan.contrast.sizes
    effects: list[dict[str, float | None]] = []
    for start in range(0, len(poles), AT_ONCE):
        batch = poles[start : start + AT_ONCE]
        columns = scan.columns_of([(p.layer, p.neuron, p.direction) for p in batch])
        means = studentised(columns.mean, columns.readout, scan.contrast).mean  # (C, P)
        means = np.where(sizes[:, None] > 0, means, np.nan)
        for row in range(len(batch)):
            effects.append({scan.concepts[c]: plain(means[c, row]) for c in scan.text.run_concepts})
    return effects
