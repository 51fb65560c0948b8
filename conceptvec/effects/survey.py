"""The scan's statistics over all poles and concepts, kept as ``scan.safetensors``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.effects.everywhere import (
    PRIOR,
    Everywhere,
    Nulls,
    measure,
    moved_vectors,
    permuted_words,
)
from conceptvec.effects.named import ByScan, Lists, effect_only_entries, named_poles, promoted
from conceptvec.effects.overview import MovedEffects, overview
from conceptvec.effects.significance import Columns, statistic
from conceptvec.effects.statistics import studentised
from conceptvec.errors import RequestError
from conceptvec.extraction.projection import Projector
from conceptvec.holdings import listed_part
from conceptvec.records import Pole
from conceptvec.runfolder import Parts
from conceptvec.streams import rng
from conceptvec.text import plain

if TYPE_CHECKING:
    from conceptvec.effects.scan_record import Scan
    from conceptvec.scoring.stage import Scored

FILE = "scan.safetensors"


def survey(scan: Scan, parts: Parts) -> Everywhere:
    """Every pole under every concept of the run; read where the run folder holds it already."""
    identity = identity_of(scan)
    kept = _kept(parts, identity)
    if kept is None and parts.rank == 0:
        kept = surveyed(scan, identity)
        parts.save(FILE, kept.arrays())
    # The first of several processes computes, the others read.
    parts.barrier()
    if kept is None:
        kept = Everywhere.of_arrays(parts.wait_for(FILE))
    return kept


def _kept(parts: Parts, identity: dict[str, Any]) -> Everywhere | None:
    """What the run folder holds, if it was made of the same text, weights and moved vectors."""
    arrays = parts.load(FILE)
    if arrays is None or arrays["about_json"].get("identity") != identity:
        return None
    return Everywhere.of_arrays(arrays)


def identity_of(scan: Scan) -> dict[str, Any]:
    """What the statistics follow from."""
    moved = hashlib.sha256()
    for field in fields(scan.moved):
        moved.update(np.ascontiguousarray(getattr(scan.moved, field.name), "<i8").tobytes())
    words = hashlib.sha256(json.dumps(scan.text.words.words).encode())
    return {
        "fingerprint": scan.model.fingerprint,
        "fold": scan.fold,
        "text": scan.passages.digest,
        "layers": list(scan.effects.layers),
        "concepts": own_concepts(scan),
        "words": words.hexdigest()[:16],
        "moved": moved.hexdigest()[:16],
        "seed": scan.seed,
    }


def own_concepts(scan: Scan) -> list[str]:
    """The run's own concepts, without those that serve for contrast alone."""
    return [scan.concepts[number] for number in scan.text.run_concepts]


def surveyed(scan: Scan, identity: dict[str, Any]) -> Everywhere:
    """The statistics of every pole, computed layer by layer."""
    neurons = np.arange(scan.model.intermediate_size)

    def columns_of(layer: int, sign: int) -> Columns:
        return scan.columns(layer, neurons, np.full(len(neurons), sign))

    concepts = list(zip(own_concepts(scan), scan.text.run_concepts, strict=True))
    nulls = nulls_of(scan)
    everywhere = measure(scan.effects.layers, columns_of, scan.contrast, concepts, nulls)
    known = scan.contrast.sizes[list(scan.text.run_concepts)]
    about = {
        "identity": identity,
        "known_words": dict(zip(everywhere.concepts, known.tolist(), strict=True)),
        "controls": controls_of(scan, nulls, everywhere.cut_off),
    }
    return replace(everywhere, about=about)


def sampled(scan: Scan) -> Columns:
    """Mean effects per word of the random poles."""
    moved = scan.moved.take(np.flatnonzero(scan.is_sampled & scan.is_held_out))
    return scan.columns_of(list(zip(moved.layer, moved.source, moved.source_sign, strict=True)))


def nulls_of(scan: Scan) -> Nulls:
    """What a pole and a concept give where nothing is there: both nulls from random poles."""
    in_null = np.flatnonzero(scan.is_sampled & ~scan.is_held_out)
    return Nulls(
        permuted_words(sampled(scan), scan.contrast, rng(scan.seed, "permuted words everywhere")),
        moved_vectors(scan.moved_columns.take(in_null), scan.contrast),
    )


def controls_of(scan: Scan, nulls: Nulls, cut_off: float) -> dict[str, dict[str, Any]]:
    """How often a pole and a concept that go together by chance reach the cut-off of p.

    * permuted_words: random poles, with the words' labels shuffled once more.
    * moved: vectors of random poles under neurons that are not in the null.
    * moved_candidates: the same of Stage 2's candidates, each under its own concept alone.
    """
    run_concepts = list(scan.text.run_concepts)
    shuffled = scan.contrast.shuffled(rng(scan.seed, "controls everywhere"))
    permuted = statistic(sampled(scan), shuffled, PRIOR)[run_concepts]
    held_out = np.flatnonzero(scan.is_held_out & scan.is_sampled)
    moved = statistic(scan.moved_columns.take(held_out), scan.contrast, PRIOR)[run_concepts]
    controls = {
        "permuted_words": _control(permuted, run_concepts, nulls, cut_off),
        "moved": _control(moved, run_concepts, nulls, cut_off),
    }
    of_candidates = np.flatnonzero(scan.is_held_out & ~scan.is_sampled)
    if len(of_candidates):
        t = statistic(scan.moved_columns.take(of_candidates), scan.contrast, PRIOR)
        concepts = scan.candidate_concepts[scan.moved.pole[of_candidates]]
        t = t[concepts, np.arange(len(concepts))]
        p = np.array([_p(value, c, nulls) for value, c in zip(t, concepts, strict=True)])
        controls["moved_candidates"] = _rate(p, cut_off)
    return controls


def _control(t: np.ndarray, concepts: list[int], nulls: Nulls, cut_off: float) -> dict[str, Any]:
    p = np.stack([_p(row, concept, nulls) for row, concept in zip(t, concepts, strict=True)])
    return _rate(p, cut_off)


def _p(t: np.ndarray, concept: int, nulls: Nulls) -> np.ndarray:
    return np.maximum(nulls.words.p(t, concept), nulls.moved.p(t, concept)).astype(np.float32)


def _rate(p: np.ndarray, cut_off: float) -> dict[str, Any]:
    used = int((p <= cut_off).sum())
    return {"n": p.size, "used": used, "share": plain(used / max(p.size, 1))}


def read_survey(run: str | Path, fingerprint: str | None = None) -> Everywhere:
    """The statistics that a run folder holds.

    Args:
        run: the folder.
        fingerprint: of the model that they must belong to, such as
            ``results["model"]["fingerprint"]``.

    Raises:
        RequestError: the folder holds none, they are damaged, or belong to other weights.
    """
    folder = Path(run)
    is_listed, arrays = listed_part(folder, FILE)
    if not is_listed:
        raise RequestError(
            f"{folder}: expected a run folder with {FILE}; `conceptvec scan` writes one"
        )
    if arrays is None:
        raise RequestError(f"{folder / FILE} is damaged; the same run or scan makes it anew")
    everywhere = Everywhere.of_arrays(arrays)
    made_of = everywhere.about["identity"]["fingerprint"]
    if fingerprint not in (None, made_of):
        raise RequestError(
            f"{folder / FILE} was made from weights {made_of[:12]}…, expected {fingerprint[:12]}…; "
            "scan that model with another --out"
        )
    return everywhere


def by_scan(scan: Scan, everywhere: Everywhere, scored: Scored, top_k: int) -> ByScan:
    """What the scan over all poles and concepts adds to the results of a run.

    Args:
        scan: effects per word.
        everywhere: every pole and concept.
        scored: Stage 2.
        top_k: tokens listed of each pole that Stage 2 did not name.
    """
    model, candidates = scan.model, scored.candidates
    named = named_poles(scan, everywhere)
    by_projection = {(entry["id"], entry["concept"]) for entry in scored.entries}
    projector = Projector(model.unembedding, torch.as_tensor(candidates.masked), top_k)

    def lists(poles: Sequence[Pole]) -> Lists:
        return promoted(poles, model, scan.fold, projector, candidates.tokens)

    return ByScan(
        scan,
        frozenset((item.pole.id, item.concept) for item in named),
        effect_only_entries(named, by_projection, lists),
        overview(
            everywhere,
            scored.pole_scores,
            moved_effects(scan, scored),
        ),
    )


def moved_effects(scan: Scan, scored: Scored) -> MovedEffects:
    """The candidates' vectors under neurons that are in no null, each for its own concept."""
    at = np.flatnonzero(scan.is_held_out & ~scan.is_sampled)
    columns, candidate = scan.moved_columns.take(at), scan.moved.pole[at]
    concept, row = scan.candidate_concepts[candidate], np.arange(len(at))
    tested = studentised(columns.mean, columns.readout, scan.contrast, prior=PRIOR)
    nulls = nulls_of(scan)
    p = np.array([_p(t, c, nulls) for t, c in zip(tested.t[concept, row], concept, strict=True)])
    scores = np.array([entry["score"] for entry in scored.entries], float)
    return MovedEffects(scores[candidate], tested.mean[concept, row], p)
