"""The entries of the results document that Stage 3 writes: one for every candidate of Stage 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.text import plain
from conceptvec.validation.evidence import Tested, examples, words_lost
from conceptvec.validation.rule import VERDICTS

if TYPE_CHECKING:
    from conceptvec.effects.scan_record import Scan
    from conceptvec.records import Candidate, Pole
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
        "n_concept_positions": len(positions.of_concept),
        "n_unrelated_positions": positions.matched,
        "n_silent_positions": len(positions.silent),
        "n_unmatched_positions": positions.unmatched,
        "answers_in_top_tokens": _in_top_tokens(candidate, tested, scan),
        "damage": {kind: of_kind.entry() for kind, of_kind in drops.items()},
        "scan": use.entry() | {"exact_zero": None, "exact_mean": None},
        "firing": {"ratio": plain(use.firing_ratio), "p": plain(use.firing_p)},
        "gate_up": gate_up(tested.gates, candidate.pole),
        "words": _words(tested, scan, text),
        "examples": examples(tested, scan.passages, scan.passage_of, scan.decode),
        "prompts": None,
        "continuations": [],
        "activation": activation_entry(scan, candidate.pole),
    }


def gate_up(gates: np.ndarray | None, pole: Pole) -> dict[str, float | None] | None:
    """The shares of own positions by the signs of gate and up.

    GELU and SiLU keep the gate's sign, so the activation has that of gate times up: the pole, which
    is the activation's sign, and the gate say the sign of up.

    Args:
        gates: whether the gate is positive at each own position, bool (n,).
        pole: which fires there.
    """
    if gates is None or not len(gates):
        return None
    up = gates if pole.sign == "+" else ~gates
    return {
        "plus_plus": plain((gates & up).mean()),
        "plus_minus": plain((gates & ~up).mean()),
        "minus_plus": plain((~gates & up).mean()),
        "minus_minus": plain((~gates & ~up).mean()),
    }


def _in_top_tokens(candidate: Candidate, tested: Tested, scan: Scan) -> float | None:
    """The share of own positions whose word is among the pole's top tokens."""
    of_concept = tested.positions.of_concept
    if not len(of_concept):
        return None
    top = {token.strip().casefold() for token, _ in candidate.top_tokens}
    words = [scan.decode([int(scan.passages.ids[position + 1])]) for position in of_concept]
    return plain(np.mean([word.strip().casefold() in top for word in words]))


def _words(tested: Tested, scan: Scan, text: Field) -> list[list[Any]]:
    """Which words lose most: [word, mean drop, positions]."""
    if tested.measured is None or not tested.drops:
        return []
    rows = words_lost(tested.measured, tested.positions, text)[:SHOWN_WORDS]
    return [[scan.text.words.words[word], plain(drop), n] for word, drop, n in rows]


def activation_entry(scan: Scan, pole: Pole) -> dict[str, Any]:
    """Activation statistics of a pole's neuron over the text, with its strongest contexts."""
    layer = scan.effects.layers.index(pole.layer)
    statistics = scan.activity
    contexts = []
    values = statistics.context_values[layer, pole.neuron]
    for value, (passage, at) in zip(
        values, statistics.context_at[layer, pole.neuron].tolist(), strict=True
    ):
        if passage >= 0 and value:
            contexts.append([_context(scan, passage, at), plain(value)])
    return {
        "mean": plain(statistics.pole_means()[layer, :, pole.neuron].sum()),
        "max_abs": plain(statistics.largest[layer, pole.neuron]),
        "firing_rate": plain(statistics.firing_rate()[layer, pole.neuron]),
        "positive_share": plain(
            statistics.positive[layer, pole.neuron] / max(statistics.positions, 1)
        ),
        "contexts": contexts,
    }


def _context(scan: Scan, passage: int, at: int, width: int = 12) -> str:
    """The text around a token, which stands between » and «."""
    ids = scan.passages.passage(passage).tolist()
    before, token, after = ids[max(0, at - width) : at], ids[at : at + 1], ids[at + 1 :]
    show = scan.decode
    return f"{show(before)}»{show(token)}«{show(after[:width])}".strip()


def sort_key(entry: dict[str, Any]) -> tuple[int, float, str]:
    """Best first: by verdict, then by selectivity."""
    return VERDICTS.index(entry["verdict"]), -(entry["selectivity"] or 0.0), entry["id"]
