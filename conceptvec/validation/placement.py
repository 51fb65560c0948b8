"""Where the subjects are damaged: the scan's text as a field, and each subject's positions in it.

A clean pass gives the activations of the subjects' neurons at every token, as many layers at a time
as memory allows; `positions` chooses by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from conceptvec.streams import rng
from conceptvec.validation.clean import CleanPass
from conceptvec.validation.evidence import Placed, example_positions
from conceptvec.validation.measure import Subject
from conceptvec.validation.positions import Field, Positions, choose_positions

if TYPE_CHECKING:
    from conceptvec.effects.scan_record import Scan
    from conceptvec.effects.use import Use

GIGABYTE = 2**30
ACTIVATION_BYTES = 1 * GIGABYTE  # of activations that are held at a time


def field_of(scan: Scan) -> Field:
    """The scan's text as flat arrays for the choice of positions."""
    passages, size = scan.passages, len(scan.passages.ids)
    position_in = np.arange(size) - passages.starts[scan.passage_of]
    following = position_in + 1  # of the token that a position predicts
    inside = following < passages.lengths[scan.passage_of]
    scored = inside & (following >= passages.scored_from[scan.passage_of])
    next_token = np.roll(passages.ids, -1)

    # Occurrences of words that the model knows, at the position that predicts them.
    target = np.full(size, -1, np.int32)
    known = scan.seen.known
    at = passages.starts[scan.seen.passage[known]] + scan.seen.position[known] - 1
    target[at] = scan.seen.word[known]
    return Field(
        passages.documents[scan.passage_of],
        scored,
        np.where(inside, scan.text.mentions[next_token], -1),
        target,
        scan.text.words.word_concept,
    )


def place(
    scan: Scan, text: Field, seed: int, subjects: Sequence[Subject], uses: Sequence[Use]
) -> list[Placed]:
    """Choose positions for every candidate, and for the controls that are used.

    Args:
        scan: text, first-order effects and their statistics.
        text: the scan's text as flat arrays.
        seed: of the run.
        subjects: candidates and controls.
        uses: what the scan says of each.
    """
    cut_off = scan.cut_off
    used = [use.p <= cut_off for use in uses]
    wanted = [
        index
        for index, subject in enumerate(subjects)
        if subject.role == "candidate" or used[index]
    ]
    nowhere = np.zeros(0, np.int64)
    no_positions = Positions(nowhere, nowhere, nowhere, nowhere, 0)
    placed = [
        Placed(subject, use, is_used, no_positions, nowhere, nowhere.astype(bool))
        for subject, use, is_used in zip(subjects, uses, used, strict=True)
    ]

    # As many layers at a time as memory for their activations is allowed for.
    of_subjects = [subjects[index].layer for index in wanted]
    for layers in _layer_groups(of_subjects, len(scan.passages.ids)):
        indices = [index for index in wanted if subjects[index].layer in layers]
        neurons = {
            layer: sorted({subjects[i].neuron for i in indices if subjects[i].layer == layer})
            for layer in sorted(layers)
        }
        clean = CleanPass(scan.model, scan.passages, neurons)
        clean.know(*_seen_log_p(scan))
        for index in indices:
            placed[index] = _with_positions(placed[index], text, seed, clean)
    return placed


def _layer_groups(layers: Sequence[int], tokens: int) -> list[set[int]]:
    """The layers in groups whose neurons' activations fit into `ACTIVATION_BYTES` together.

    Args:
        layers: of every neuron.
        tokens: of the text.
    """
    per_neuron = 5 * tokens  # an activation and a sign
    groups: list[set[int]] = []
    room = 0
    for layer in sorted(set(layers)):
        size = layers.count(layer) * per_neuron
        if not groups or size > room:
            groups.append(set())
            room = ACTIVATION_BYTES
        groups[-1].add(layer)
        room -= size
    return groups


def _with_positions(placed: Placed, text: Field, seed: int, clean: CleanPass) -> Placed:
    """The same subject with its positions, and its activations at the examples."""
    subject = placed.subject
    activation = clean.activation(subject.layer, subject.neuron)
    # Clean log-probabilities cost a product each, so only what is used is matched in them too.
    log_p = clean.log_p if placed.used else _no_log_p
    positions = choose_positions(
        text,
        activation * subject.sign,
        subject.concept,
        log_p,
        rng(seed, f"positions {subject.key}"),
    )
    at_examples = activation[example_positions(positions)]
    gates = clean.gate_is_positive(subject.layer, subject.neuron)[positions.of_concept]
    return replace(placed, positions=positions, example_activations=at_examples, gates=gates)


def _seen_log_p(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Positions whose next token's log-probability the scan has computed, and these."""
    at = scan.passages.starts[scan.seen.passage] + scan.seen.position - 1
    return at, scan.seen.log_p


def _no_log_p(positions: np.ndarray) -> np.ndarray:
    return np.zeros(len(positions))
