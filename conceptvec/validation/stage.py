"""Stage 3: is a candidate's vector used for its concept, and what does removing it cost?

1. The scan (`effects`) says which candidates and which controls are used for their concept.
2. A clean pass gives the activations of their neurons at every token; positions are chosen by them.
3. What the scan lets through is damaged at its positions, first by zero ablation, then, where that
   reaches the floor, in the other ways. The rest is damaged at its examples alone.
4. One rule judges candidates and controls alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.runfolder import Arrays, Parts, Task, part_name
from conceptvec.streams import rng
from conceptvec.validation import controls
from conceptvec.validation.agreement import damage_agreement
from conceptvec.validation.damage import Damager
from conceptvec.validation.engine import Text
from conceptvec.validation.entries import entry_of, sort_key
from conceptvec.validation.evidence import (
    Drops,
    Placed,
    Tested,
    drops_of,
    evidence_of,
    interval_of,
)
from conceptvec.validation.further import Run, further_measurements
from conceptvec.validation.measure import (
    CLEAN,
    SUBJECTS_PER_UNIT,
    Measured,
    Request,
    Setting,
    Subject,
    measure_unit,
    split_unit,
)
from conceptvec.validation.placement import field_of, place
from conceptvec.validation.replay import Replay
from conceptvec.validation.rule import RULE, Judgement, judge

if TYPE_CHECKING:
    from conceptvec.concepts import Prompt
    from conceptvec.config import Config
    from conceptvec.effects.scan_record import Scan
    from conceptvec.effects.use import Use
    from conceptvec.records import Candidate

CHECKED_TEXTS = 200  # beginnings of passages among which the check on the engine chooses


@dataclass(frozen=True)
class Validation:
    """What Stage 3 found, as the results hold it.

    Attributes:
        entries: one for every candidate of Stage 2, best first.
        null_calibration: what each kind of control gave.
        sets: the concepts' best vectors removed together.
        known_words: concept → distinct known words in the text.
        agreement: of a sample of damaged passes with the CPU.
        cost: layer-tokens replayed, positions unembedded.
        seconds: that it took.
    """

    entries: list[dict[str, Any]]
    null_calibration: dict[str, Any]
    sets: list[dict[str, Any]]
    known_words: dict[str, int]
    agreement: dict[str, Any]
    cost: np.ndarray
    seconds: float


def damage_candidates(
    candidates: Sequence[Candidate],
    scan: Scan,
    config: Config,
    prompts: Mapping[str, Sequence[Prompt]],
    parts: Parts | None = None,
) -> Validation:
    """Stage 3 on every concept candidate.

    Args:
        candidates: of Stage 2, in the order in which they were scanned.
        scan: text, first-order effects and their statistics.
        config: damage kinds, noise, seed, batch_size.
        prompts: cloze prompts by concept, and neutral ones, for the transfer column.
        parts: keeps finished parts (a `runfolder.RunFolder`).

    Returns:
        the judged candidates and controls.

    Raises:
        RunError: a forward pass gives NaN or infinity, or a sample of damaged passes does not
            agree with the CPU.
    """
    start = time.perf_counter()
    run = run_on(scan, config, parts or Parts())
    agreement = damage_agreement(
        scan.model,
        _sample_texts(run.setting),
        scan.effects.layers,
        config.seed,
        config.batch_size,
    )
    judged, judged_controls = verdicts_on(run, candidates)
    extras = further_measurements(run, judged, prompts)
    entries = [
        extras.complete(entry_of(candidate, item, q, scan, run.text), item.subject)
        for candidate, item, q in zip(candidates, judged, scan.q_values, strict=True)
    ]
    return Validation(
        sorted(entries, key=sort_key),
        control_rates(judged_controls, scan.concepts),
        extras.sets,
        {scan.concepts[c]: run.text.known_words(c) for c in scan.text.run_concepts},
        agreement,
        run.cost,
        round(time.perf_counter() - start, 3),
    )


def run_on(scan: Scan, config: Config, parts: Parts) -> Run:
    """What all steps of Stage 3 share on one scan."""
    setting = Setting(
        scan.model,
        scan.passages,
        scan.passage_of,
        Damager(config.seed, config.noise_sigma),
        scan.means,
        config.batch_size,
        Replay(scan.model),
    )
    return Run(scan, setting, field_of(scan), config, parts, np.zeros(2))


def verdicts_on(run: Run, candidates: Sequence[Candidate]) -> tuple[list[Tested], list[Tested]]:
    """The verdicts on candidates, in their order, and on the controls that pass with them."""
    subjects = [
        controls.candidate_subject(candidate.pole, run.scan.concepts.index(candidate.concept))
        for candidate in candidates
    ]
    control_subjects, control_uses = _controls(run, subjects)
    uses = [*run.scan.candidate_uses, *control_uses]
    everyone = [*subjects, *control_subjects]
    placed = place(run.scan, run.text, run.config.seed, everyone, uses, run.parts)
    measured = _measure(run, placed)
    tested = [_judged(run, item, measured.get(item.subject.key)) for item in placed]
    return tested[: len(candidates)], tested[len(candidates) :]


def control_rates(tested: Sequence[Tested], concepts: Sequence[str]) -> dict[str, Any]:
    """The null neurons' rate, and beside it those of the other controls."""
    of_role = {
        role: controls.rate([item for item in tested if item.subject.role == role], concepts)
        for role in ("null", "wrong_concept", "moved")
    }
    return of_role.pop("null") | of_role


def _sample_texts(setting: Setting) -> list[Text]:
    """The beginnings of some passages, each with one token as its answer."""
    passages = setting.passages
    members = range(0, len(passages), max(1, len(passages) // CHECKED_TEXTS))
    return [
        setting.text(int(passages.starts[i] + max(passages.lengths[i] // 2, 1))) for i in members
    ]


def _controls(run: Run, candidates: Sequence[Subject]) -> tuple[list[Subject], list[Use]]:
    """Null neurons, candidates under a wrong concept, and moved vectors, with their uses."""
    seed, scan = run.config.seed, run.scan
    known = [
        concept
        for concept in range(len(scan.concepts))
        if run.text.known_words(concept) >= RULE.known_words
    ]
    nulls = controls.null_subjects(candidates, scan.likeness, rng(seed, "null neurons"))
    wrong = controls.wrong_concept_subjects(candidates, known, rng(seed, "wrong concepts"))
    unmoved = [*nulls, *wrong]
    uses = scan.uses(
        [(subject.layer, subject.neuron, subject.sign) for subject in unmoved],
        [subject.concept for subject in unmoved],
    )
    moved, concepts, moved_uses = scan.held_out_moved()
    moved_subjects = [
        controls.moved_subject(moved, index, int(concept)) for index, concept in enumerate(concepts)
    ]
    return [*unmoved, *moved_subjects], [*uses, *moved_uses]


def _measure(run: Run, placed: Sequence[Placed]) -> dict[str, Measured]:
    """Damage what may be validated at all its positions, other candidates at their examples."""
    primary, *rest = run.config.damage
    first, second = [], []
    for item in placed:
        is_candidate = item.subject.role == "candidate" and len(item.positions.of_concept)
        if item.worth_damaging or is_candidate:
            kinds = (CLEAN, primary)
            first.append(Request(item.subject, item.damaged_at, kinds, item.known_clean))
    measured = _measure_requests(run, first, "first damage")

    # The other kinds are needed only where the first one reaches the floor, and at own positions:
    # whether the loss is specific is the first one's question.
    by_key = {item.subject.key: item for item in placed}
    others = tuple(dict.fromkeys(kind for kind in (*rest, "rotate") if kind != primary))
    for request in first:
        item = by_key[request.subject.key]
        if not item.worth_damaging:
            continue
        drops = drops_of(measured[item.subject.key], item.positions, primary)
        if drops.of_concept >= RULE.drop:
            kinds = ("rotate",) if item.subject.moved else others
            second.append(Request(request.subject, item.positions.of_concept, kinds))
    for key, values in _measure_requests(run, second, "other damages").items():
        measured[key] = measured[key].with_kinds(values)
    return measured


def _measure_requests(run: Run, requests: Sequence[Request], what: str) -> dict[str, Measured]:
    """Measure unit by unit; a unit is a few subjects of one layer and one part of the run."""
    units: list[list[Request]] = []
    for layer in sorted({request.subject.layer for request in requests}):
        of_layer = [request for request in requests if request.subject.layer == layer]
        of_layer.sort(key=lambda request: request.subject.key)
        units += [
            of_layer[start : start + SUBJECTS_PER_UNIT]
            for start in range(0, len(of_layer), SUBJECTS_PER_UNIT)
        ]
    tasks: list[Task] = [
        (_part(unit, number), _task(run, unit)) for number, unit in enumerate(units)
    ]
    parts = run.parts.map(tasks, f"Stage 3: {what}", "unit") if tasks else []
    measured: dict[str, Measured] = {}
    for unit, arrays in zip(units, parts, strict=True):
        run.cost[:] += arrays["cost"]
        for request, values in zip(unit, split_unit(unit, arrays), strict=True):
            measured[request.subject.key] = values
    return measured


def _part(unit: Sequence[Request], number: int) -> str:
    """The name of a unit's part, which says what it is made for."""
    about = [(r.subject.key, r.positions.tolist(), r.kinds) for r in unit]
    layer = unit[0].subject.layer
    return part_name(f"validation/L{layer:02d}_{unit[0].kinds[-1]}_{number:03d}", about)


def _task(run: Run, unit: Sequence[Request]) -> Callable[[], Arrays]:
    return lambda: measure_unit(unit, run.setting)


def _judged(run: Run, placed: Placed, measured: Measured | None) -> Tested:
    """Apply the rule to one subject."""
    drops: dict[str, Drops] = {}
    interval = None
    if placed.worth_damaging and measured is not None:
        primary = run.config.damage[0]
        drops = {kind: drops_of(measured, placed.positions, kind) for kind in measured.damaged}
        stream = rng(run.config.seed, f"bootstrap {placed.subject.key}")
        interval = interval_of(measured, placed.positions, run.text, stream, primary)
    stopped = placed.subject.role != "candidate" and not placed.used
    if stopped:  # a control that is not used has no positions: nothing was looked for
        judgement = Judgement("no_effect", ("not used for the concept",))
    else:
        evidence = evidence_of(placed.use, placed.used, placed.positions, drops, interval)
        judgement = judge(evidence)
    return Tested(
        **vars(placed), judgement=judgement, drops=drops, interval=interval, measured=measured
    )
