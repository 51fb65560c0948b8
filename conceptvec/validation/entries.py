"""The entries of the results document that Stage 3 writes: one for every candidate of Stage 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.text import plain
from conceptvec.validation.evidence import Tested, examples, words_lost
from conceptvec.validation.rule import VERDICTS

if TYPE_CHECKING:
    from conceptvec.effects.stage import Scan
    from conceptvec.records import Candidate
    from conceptvec.validation.positions import Field

SHOWN_WORDS = 20

NO_DROPS: dict[str, float | None] = dict.fromkeys(
    (
        "concept_drop",
        "unrelated_drop",
        "elsewhere_drop",
        "others_drop",
        "silent_drop",
        "selectivity",
    )
)


def entry_of(
    candidate: Candidate, tested: Tested, q_value: float, scan: Scan, text: Field
) -> dict[str, Any]:
    """One entry, all of it in one place."""
    drops, positions, use = tested.drops, tested.positions, tested.use
    primary = next(iter(drops.values()), None)
    judgement = tested.judgement
    return {
        **candidate.entry(),
        "verdict": judgement.verdict,
        "validated": judgement.validated,
        "failed": list(judgement.failed),
        **(primary.entry() if primary else NO_DROPS),
        "ci95": [plain(x) for x in tested.interval] if tested.interval else [None, None],
        "p_value": plain(use.p),
        "q_value": plain(q_value),
        "n_concept_positions": len(positions.own),
        "n_unrelated_positions": positions.matched,
        "n_silent_positions": len(positions.silent),
        "n_unmatched_positions": positions.unmatched,
        "answers_in_top_tokens": _in_top_tokens(candidate, tested, scan),
        "damage": {kind: of_kind.entry() for kind, of_kind in drops.items()},
        "scan": use.entry() | {"exact_zero": None, "exact_mean": None},
        "firing": {"ratio": plain(use.firing_ratio), "p": plain(use.firing_p)},
        "words": _words(tested, scan, text),
        "examples": examples(tested, scan.passages, scan.passage_of, scan.decode),
        "prompts": None,
        "activation": scan.activation_of(candidate.pole),
    }


def _in_top_tokens(candidate: Candidate, tested: Tested, scan: Scan) -> float | None:
    """The share of own positions whose word is among the pole's top tokens."""
    own = tested.positions.own
    if not len(own):
        return None
    top = {token.strip().casefold() for token, _ in candidate.top_tokens}
    words = [scan.decode([int(scan.passages.ids[position + 1])]) for position in own]
    return plain(np.mean([word.strip().casefold() in top for word in words]))


def _words(tested: Tested, scan: Scan, text: Field) -> list[list[Any]]:
    """Which words lose most: [word, mean drop, positions]."""
    if tested.measured is None or not tested.drops:
        return []
    rows = words_lost(tested.measured, tested.positions, text)[:SHOWN_WORDS]
    return [[scan.words[word], plain(drop), n] for word, drop, n in rows]


def sort_key(entry: dict[str, Any]) -> tuple[int, float, str]:
    """Best first: by verdict, then by selectivity."""
    return VERDICTS.index(entry["verdict"]), -(entry["selectivity"] or 0.0), entry["id"]
