"""What stands beside the verdicts and never decides them.

* the scan's figures by real damage, for the validated and a sample of the others (`exact`);
* the cloze prompts, for the validated (`transfer`);
* the concepts' best vectors removed together, and the model's own text without a vector (`sets`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.concepts import Prompt
from conceptvec.runfolder import Arrays, Parts, Task, part_name
from conceptvec.streams import rng
from conceptvec.validation import sets
from conceptvec.validation.evidence import Tested
from conceptvec.validation.exact import concepts_with_words, exact_entries, measure_exact
from conceptvec.validation.measure import Setting, Subject
from conceptvec.validation.positions import Field
from conceptvec.validation.transfer import (
    MEASURED,
    PromptTable,
    measure_transfer,
    transfer_entry,
)

if TYPE_CHECKING:
    from conceptvec.config import Config
    from conceptvec.effects.scan_record import Scan

REPEATED_VALIDATED, REPEATED_OTHERS = 60, 20  # candidates measured exactly, at most
REPEATED_TOGETHER = 4  # of one concept
SHOWN_TEXTS = 12  # validated vectors whose continuations are written


@dataclass(frozen=True)
class Run:
    """What all steps of a run share.

    Attributes:
        scan: text, effects and their statistics.
        setting: of every unit of measurement.
        text: the scan's text as flat arrays.
        config: the options.
        parts: keeps finished parts.
        cost: layer-tokens replayed, positions unembedded; added to unit by unit.
    """

    scan: Scan
    setting: Setting
    text: Field
    config: Config
    parts: Parts
    cost: np.ndarray


@dataclass(frozen=True)
class Further:
    """The measurements by the candidates' keys, and the sets."""

    exact: dict[str, dict[str, float | None]]
    transfer: dict[str, dict[str, Any] | None]
    continuations: dict[str, list[dict[str, str]]]
    sets: list[dict[str, Any]]

    def complete(self, entry: dict[str, Any], subject: Subject) -> dict[str, Any]:
        """An entry with what was measured further of its subject."""
        key = subject.key
        return entry | {
            "scan": entry["scan"] | self.exact.get(key, {}),
            "prompts": self.transfer.get(key),
            "continuations": self.continuations.get(key, []),
        }


def further_measurements(
    run: Run, tested: Sequence[Tested], prompts: Mapping[str, Sequence[Prompt]]
) -> Further:
    """All of them, each kept as parts of the run."""
    validated = [item for item in tested if item.judgement.validated]
    validated.sort(key=lambda item: (-item.use.mean, item.subject.id))
    return Further(
        _exact(run, tested, validated[:REPEATED_VALIDATED]),
        _transfer(run, validated, prompts),
        _continuations(run, validated),
        _sets(run, tested),
    )


def _exact(
    run: Run, tested: Sequence[Tested], validated: Sequence[Tested]
) -> dict[str, dict[str, float | None]]:
    present = concepts_with_words(run.scan)
    others = [
        item for item in tested if not item.judgement.validated and item.subject.concept in present
    ]
    stream = rng(run.config.seed, "repeated exactly")
    drawn = stream.permutation(len(others))[:REPEATED_OTHERS]
    subjects = [item.subject for item in [*validated, *(others[i] for i in sorted(drawn))]]
    subjects.sort(key=lambda subject: (subject.concept, subject.layer, subject.key))

    # A few vectors of a concept are one part: they share its words, and the layers below them. The
    # largest parts come first, which makes the shares of processes about equal.
    of_concepts = [[s for s in subjects if s.concept == concept] for concept in sorted(present)]
    units = [
        of_concept[start : start + REPEATED_TOGETHER]
        for of_concept in of_concepts
        for start in range(0, len(of_concept), REPEATED_TOGETHER)
    ]
    units.sort(key=len, reverse=True)
    tasks = [_exact_task(run, unit) for unit in units]
    done = run.parts.map(tasks, "Stage 3: exact", "part") if tasks else []
    return {
        subject.key: entry
        for unit, arrays in zip(units, done, strict=True)
        for subject, entry in zip(unit, exact_entries(unit, arrays, run.scan), strict=True)
    }


def _exact_task(run: Run, subjects: Sequence[Subject]) -> Task:
    """The part of a few vectors of one concept."""
    keys = [subject.key for subject in subjects]
    stem = f"validation/exact_{subjects[0].concept:02d}"
    name = part_name(stem, keys, run.scan.passages.digest)
    return name, lambda: measure_exact(subjects, run.scan, run.setting)


def _transfer(
    run: Run, validated: Sequence[Tested], prompts: Mapping[str, Sequence[Prompt]]
) -> dict[str, dict[str, Any] | None]:
    setting, names = run.setting, run.scan.concepts
    subjects = [item.subject for item in validated if prompts.get(names[item.subject.concept])]
    if not subjects:
        return {}
    table = PromptTable.build(
        setting.model, prompts, setting.batch_size, run.config.chat_template, setting.replay
    )
    if table is None:
        return {}
    # The vectors of a layer share its clean state, so they are one part.
    layers = sorted({subject.layer for subject in subjects})
    of_layers = [[s for s in subjects if s.layer == layer] for layer in layers]
    tasks = [_transfer_task(run, table, of_layer) for of_layer in of_layers]
    done = run.parts.map(tasks, "Stage 3: transfer", "layer")
    return {
        subject.key: transfer_entry({name: arrays[f"{name}.{i}"] for name in MEASURED})
        for of_layer, arrays in zip(of_layers, done, strict=True)
        for i, subject in enumerate(of_layer)
    }


def _transfer_task(run: Run, table: PromptTable, subjects: Sequence[Subject]) -> Task:
    """The part of one layer's vectors."""
    concepts = [run.scan.concepts[subject.concept] for subject in subjects]

    def measure() -> Arrays:
        measured = measure_transfer(table, subjects, concepts, run.setting, run.config.seed)
        return {f"{name}.{i}": one[name] for i, one in enumerate(measured) for name in one}

    keys = [subject.key for subject in subjects]
    stem = f"validation/transfer_L{subjects[0].layer:02d}"
    return part_name(stem, keys, run.scan.passages.digest), measure


def _continuations(run: Run, validated: Sequence[Tested]) -> dict[str, list[dict[str, str]]]:
    """The best of every concept in turn, after the text before their strongest own position."""
    by_concept: dict[int, list[Tested]] = {}
    for item in validated:
        by_concept.setdefault(item.subject.concept, []).append(item)
    in_turn = [
        items[turn]
        for turn in range(SHOWN_TEXTS)
        for items in by_concept.values()
        if turn < len(items)
    ][:SHOWN_TEXTS]
    strongest = {item.subject.key: int(item.positions.of_concept[0]) for item in in_turn}

    def task(subject: Subject) -> Task:
        ids = list(run.setting.text(strongest[subject.key]).ids)[:-1]
        name = part_name(
            f"validation/continuation_{subject.id}", subject.key, run.scan.passages.digest
        )

        def write() -> Arrays:
            text = sets.continuations(subject, ids, run.setting, run.scan.decode)
            return {"continuations_json": [text]}

        return name, write

    subjects = [item.subject for item in in_turn]
    tasks = [task(subject) for subject in subjects]
    done = run.parts.map(tasks, "Stage 3: continuation", "vector") if tasks else []
    return {
        subject.key: arrays["continuations_json"]
        for subject, arrays in zip(subjects, done, strict=True)
    }


def _sets(run: Run, tested: Sequence[Tested]) -> list[dict[str, Any]]:
    taken = {(item.subject.layer, item.subject.neuron) for item in tested}
    tasks: list[Task] = []
    about = []
    for concept in run.scan.text.run_concepts:
        name = run.scan.concepts[concept]
        best = sets.best_of(concept, tested)
        stream = rng(run.config.seed, f"sets of {name}")
        of_concept, others = sets.set_positions(run.text, concept, stream)
        if len(best) < 2 or len(of_concept) < 4 or len(others) < 4:
            continue
        random = [
            sets.random_set(best, taken, run.scan.likeness, stream) for _ in range(sets.RANDOM_SETS)
        ]
        members = [best, *random]
        stem = f"validation/set_{concept:02d}"
        part = part_name(stem, members, of_concept.tolist(), others.tolist())
        tasks.append((part, _set_task(run, members, of_concept, others)))
        about.append((name, best, len(of_concept)))
    done = run.parts.map(tasks, "Stage 3: sets", "concept") if tasks else []
    return [
        sets.set_entry(name, best, n_own, arrays)
        for (name, best, n_own), arrays in zip(about, done, strict=True)
    ]


def _set_task(
    run: Run, members: Sequence[Sequence[sets.Place]], of_concept: np.ndarray, others: np.ndarray
) -> Callable[[], Arrays]:
    return lambda: sets.measure_sets(members, of_concept, others, run.setting)
