"""Where the subjects are damaged: the scan's text as a field, and each subject's positions in it.

A clean pass gives the activations of the subjects' neurons at every token, as many layers at a time
as memory allows; `positions` chooses by them. What it chose for a layer is one part of the run: the
pass is made only where such a part is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from conceptvec.runfolder import Arrays, Parts, Task, part_name
from conceptvec.streams import rng
from conceptvec.validation.clean import CleanPass
from conceptvec.validation.evidence import Placed, example_positions
from conceptvec.validation.measure import LogP, Subject, clean_repeats
from conceptvec.validation.positions import Field, Positions, choose_positions

if TYPE_CHECKING:
    from conceptvec.effects.scan_record import Scan
    from conceptvec.effects.use import Use
    from conceptvec.model.network import Model

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
    scan: Scan,
    text: Field,
    seed: int,
    subjects: Sequence[Subject],
    uses: Sequence[Use],
    parts: Parts,
) -> list[Placed]:
    """Choose positions for every candidate, and for the controls that are used.

    Args:
        scan: text, first-order effects and their statistics.
        text: the scan's text as flat arrays.
        seed: of the run.
        subjects: candidates and controls.
        uses: what the scan says of each.
        parts: keeps what was chosen, a part for each layer.
    """
    cut_off = scan.cut_off
    nowhere = np.zeros(0, np.int64)
    no_positions = Positions(nowhere, nowhere, nowhere, nowhere, 0)
    placed = [
        Placed(subject, use, use.p <= cut_off, no_positions, nowhere, nowhere.astype(bool), None)
        for subject, use in zip(subjects, uses, strict=True)
    ]

    # Which subjects of each layer have positions at all.
    of_layer: dict[int, list[int]] = {}
    for index, item in enumerate(placed):
        if item.subject.role == "candidate" or item.used:
            of_layer.setdefault(item.subject.layer, []).append(index)
    neurons = {
        layer: sorted({placed[index].subject.neuron for index in of_layer[layer]})
        for layer in sorted(of_layer)
    }

    # As many layers together as one clean pass may hold.
    for group in _layer_groups(neurons, len(scan.passages.ids)):
        wanted = {layer: [placed[index] for index in of_layer[layer]] for layer in group}
        of_group = {layer: neurons[layer] for layer in group}
        for layer, of_subjects in _place_group(wanted, of_group, text, seed, scan, parts):
            for index, item in zip(of_layer[layer], of_subjects, strict=True):
                placed[index] = item
    return placed


def _place_group(
    wanted_of: Mapping[int, Sequence[Placed]],
    neurons: Mapping[int, Sequence[int]],
    text: Field,
    seed: int,
    scan: Scan,
    parts: Parts,
) -> list[tuple[int, list[Placed]]]:
    """Positions for the subjects of some layers: layer by layer."""
    digest, with_log_p = scan.passages.digest, clean_repeats(scan.model.dtype)
    names: list[str] = []
    for layer, wanted in wanted_of.items():
        about = [(item.subject.key, item.used) for item in wanted]
        names.append(part_name(f"validation/placed_L{layer:02d}", about, digest, with_log_p))

    # All processes make the pass together, where any of them misses a part.
    is_missing = any(parts.load(name) is None for name in names)
    clean = None
    if any(parts.gathered(is_missing)):
        clean = CleanPass(scan.model, scan.passages, neurons, parts)

    def choose(wanted: Sequence[Placed]) -> Arrays:
        assert clean is not None
        # So a layer's part does not depend on those that this process chose for before.
        clean.know_only(*_seen_log_p(scan))
        return _chosen(wanted, text, seed, clean, scan)

    tasks: list[Task] = [
        (name, partial(choose, wanted))
        for name, wanted in zip(names, wanted_of.values(), strict=True)
    ]
    done = parts.map(tasks, "Stage 3: positions", "layer")
    return [
        (layer, _read(wanted, arrays, scan.model))
        for (layer, wanted), arrays in zip(wanted_of.items(), done, strict=True)
    ]


def _layer_groups(neurons: Mapping[int, Sequence[int]], tokens: int) -> list[list[int]]:
    """The layers in groups whose neurons' activations fit into `ACTIVATION_BYTES` together.

    Args:
        neurons: layer → neurons.
        tokens: of the text.
    """
    per_neuron = 5 * tokens  # an activation and a sign
    groups: list[list[int]] = []
    room = 0
    for layer in sorted(neurons):
        size = len(neurons[layer]) * per_neuron
        if not groups or size > room:
            groups.append([])
            room = ACTIVATION_BYTES
        groups[-1].append(layer)
        room -= size
    return groups


# ---- a layer's part ----


def _chosen(
    wanted: Sequence[Placed], text: Field, seed: int, clean: CleanPass, scan: Scan
) -> Arrays:
    """Positions of a layer's subjects, one after the other.

    Returns:
        ``sizes`` (n, 5), the lengths of their own, elsewhere, other and silent positions and how
        many were not matched; ``positions``, in this order; ``activations`` at the examples;
        ``gates`` at the own positions; ``clean_log_p`` at the `clean_positions` of those that have
        any.
    """
    subjects = [item.subject for item in wanted]
    words = scan.promoted_words(
        [(subject.layer, subject.source, subject.written_sign) for subject in subjects],
        [subject.concept for subject in subjects],
    )
    placed = [
        _placed(item, of_item, text, seed, clean)
        for item, of_item in zip(wanted, words, strict=True)
    ]
    kinds = [
        (one.of_concept, one.elsewhere, one.others, one.silent)
        for one in (item.positions for item in placed)
    ]
    has_clean = [item for item in placed if _has_clean(item.subject, scan.model)]
    clean_at = [item.clean_positions for item in has_clean]
    return {
        "sizes": np.array(
            [
                [*map(len, of_one), item.positions.unmatched]
                for of_one, item in zip(kinds, placed, strict=True)
            ]
        ),
        "positions": np.concatenate([at for of_one in kinds for at in of_one]),
        "activations": np.concatenate([item.example_activations for item in placed]),
        "gates": np.concatenate([item.gates for item in placed]),
        "clean_log_p": clean.log_p(np.concatenate([np.zeros(0, np.int64), *clean_at])),
    }


def _placed(item: Placed, words: np.ndarray, text: Field, seed: int, clean: CleanPass) -> Placed:
    """One subject with its positions and what the clean pass says of them."""
    subject = item.subject
    activation = clean.activation(subject.layer, subject.neuron)
    # Clean log-probabilities cost a product each, so only what is used is matched in them too.
    log_p = clean.log_p if item.used else _no_log_p
    positions = choose_positions(
        text,
        activation * subject.sign,
        subject.concept,
        words,
        log_p,
        rng(seed, f"positions {subject.key}"),
    )
    return replace(
        item,
        positions=positions,
        example_activations=activation[example_positions(positions)],
        gates=clean.gate_is_positive(subject.layer, subject.neuron)[positions.of_concept],
    )


def _has_clean(subject: Subject, model: Model) -> bool:
    """Whether the clean pass says what the damages of a subject are compared with.

    Those of a moved vector are compared with the model that has it.
    """
    return clean_repeats(model.dtype) and not subject.moved


def _read(wanted: Sequence[Placed], arrays: Arrays, model: Model) -> list[Placed]:
    """The layer's subjects with what its part holds of each."""
    sizes = arrays["sizes"]
    edges = np.cumsum(sizes[:, :4].ravel())[:-1]
    kinds = np.split(arrays["positions"], edges)
    positions = [
        Positions(*kinds[4 * i : 4 * i + 4], unmatched=int(sizes[i, 4])) for i in range(len(wanted))
    ]
    examples = [len(example_positions(one)) for one in positions]
    activations = np.split(arrays["activations"], np.cumsum(examples)[:-1])
    gates = np.split(arrays["gates"], np.cumsum(sizes[:, 0])[:-1])
    placed = [
        replace(item, positions=of_item, example_activations=a, gates=gate)
        for item, of_item, a, gate in zip(wanted, positions, activations, gates, strict=True)
    ]

    is_known = [_has_clean(item.subject, model) for item in placed]
    values_of = [
        len(item.clean_positions) * known for item, known in zip(placed, is_known, strict=True)
    ]
    log_p = np.split(arrays["clean_log_p"], np.cumsum(values_of)[:-1])
    return [
        replace(item, clean=LogP(item.clean_positions, values)) if known else item
        for item, values, known in zip(placed, log_p, is_known, strict=True)
    ]


def _seen_log_p(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Positions whose next token's log-probability the scan has computed, and these."""
    at = scan.passages.starts[scan.seen.passage] + scan.seen.position - 1
    return at, scan.seen.log_p


def _no_log_p(positions: np.ndarray) -> np.ndarray:
    return np.zeros(len(positions))
