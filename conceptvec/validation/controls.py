"""Controls that pass through the same door as the candidates, and what they give.

* **null**: neurons of the same layers, near in norm and activation, that are no candidates; a pole
  at random, tested for the concept of the candidate that they are near to.
* **wrong_concept**: the candidates themselves under a concept that is not theirs.
* **moved**: a candidate's vector in the column of another neuron (`measure.Subject.moved`).

A control is *used* if its p is at most the candidates' cut-off, never by a correction of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.records import Pole
from conceptvec.text import plain
from conceptvec.validation.measure import Subject
from conceptvec.validation.statistics import wilson

if TYPE_CHECKING:
    from conceptvec.effects.moved import Moved
    from conceptvec.validation.evidence import Tested

NULL_NEURONS = 300


def candidate_subject(pole: Pole, concept: int) -> Subject:
    """A candidate as what is tested."""
    sign = pole.direction
    return Subject("candidate", pole.id, pole.layer, pole.neuron, sign, concept, pole.neuron)


def moved_subject(moved: Moved, index: int, concept: int) -> Subject:
    """A vector in another neuron's column.

    When the receiver's pole fires, it writes the source's pole: their signs multiply.
    """
    layer, source, receiver = (
        int(values[index]) for values in (moved.layer, moved.source, moved.receiver)
    )
    source_sign, receiver_sign = int(moved.source_sign[index]), int(moved.receiver_sign[index])
    pole = Pole(layer, source, "+" if source_sign > 0 else "-")
    in_column = source_sign * receiver_sign
    return Subject("moved", pole.id, layer, receiver, receiver_sign, concept, source, in_column)


def null_subjects(
    candidates: Sequence[Subject],
    likeness: Mapping[int, np.ndarray],
    rng: np.random.Generator,
    n: int = NULL_NEURONS,
) -> list[Subject]:
    """Null neurons: each candidate's nearest in its layer, in turn, until there are `n`.

    Args:
        candidates: what they are matched to.
        likeness: layer → features (I, F) on comparable scales, such as log norm and log activation.
        rng: draws the poles.
        n: how many are wanted; fewer where the layers have no more neurons.
    """
    taken = {(subject.layer, subject.neuron) for subject in candidates}
    queues = []
    for subject in candidates:
        features = likeness[subject.layer]
        distance = np.linalg.norm(features - features[subject.neuron], axis=1)
        order = np.argsort(distance, kind="stable")
        queues.append([j for j in order.tolist() if (subject.layer, j) not in taken])

    chosen: dict[tuple[int, int], int] = {}  # (layer, neuron) → concept
    for turn in range(max(map(len, queues), default=0)):
        for subject, queue in zip(candidates, queues, strict=True):
            if turn < len(queue) and len(chosen) < n:
                chosen.setdefault((subject.layer, queue[turn]), subject.concept)

    nulls = []
    for (layer, neuron), concept in sorted(chosen.items()):
        pole = Pole(layer, neuron, "+" if rng.random() < 0.5 else "-")
        nulls.append(Subject("null", pole.id, layer, neuron, pole.direction, concept, neuron))
    return nulls


def wrong_concept_subjects(
    candidates: Sequence[Subject], concepts: Sequence[int], rng: np.random.Generator
) -> list[Subject]:
    """Every candidate under a concept, drawn among `concepts`, that is none of its neuron's."""
    concepts_of: dict[tuple[int, int], set[int]] = {}
    for subject in candidates:
        concepts_of.setdefault((subject.layer, subject.neuron), set()).add(subject.concept)
    wrong = []
    for subject in candidates:
        free = [c for c in concepts if c not in concepts_of[subject.layer, subject.neuron]]
        if free:
            concept = int(rng.choice(free))
            wrong.append(
                Subject(
                    "wrong_concept",
                    subject.id,
                    subject.layer,
                    subject.neuron,
                    subject.sign,
                    concept,
                    subject.source,
                )
            )
    return wrong


def rate(tested: Sequence[Tested], concepts: Sequence[str]) -> dict[str, Any]:
    """What one kind of control gave: numbers, the false-validation rate with its interval."""
    passed = [control for control in tested if control.judgement.validated]
    low, high = wilson(len(passed), len(tested))
    return {
        "n": len(tested),
        "used": sum(control.used for control in tested),
        "false_validations": len(passed),
        "false_validation_rate": plain(len(passed) / len(tested)) if tested else None,
        "ci95": [plain(low), plain(high)],
        "points": [_point(control, concepts) for control in tested if control.drops],
    }


def _point(control: Tested, concepts: Sequence[str]) -> dict[str, Any]:
    subject, primary = control.subject, next(iter(control.drops.values()))
    return {
        "id": subject.id,
        "in_place_of": f"L{subject.layer:02d}_N{subject.neuron:04d}" if subject.moved else None,
        "concept": concepts[subject.concept],
        "concept_drop": plain(primary.of_concept),
        "unrelated_drop": None if primary.unrelated is None else plain(primary.unrelated),
        "verdict": control.judgement.verdict,
    }
