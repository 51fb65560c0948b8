"""How far a drop repeats on another text: a run's damaged candidates, removed once more there.

    python scripts/another_text.py RESULTS.json RUN [CORPUS [TOKENS]]

RESULTS.json holds the drops; RUN is the folder of another run of the same model, on its text. With
CORPUS, a file as for ``--corpus``, this is read in place of the run's text. Every candidate that
was damaged at all its positions is removed at its own positions in the other text, chosen by the
same rule, whether or not it is used there. What is not needed for them, the scan's gradients above
all, is not computed.

It prints Spearman's rank correlation of the drops, its interval by bootstrap over vectors, and what
to expect if every vector's true drop were the same on both texts and only the positions differed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from finished_run import FinishedRun, reopened
from first_order import spearman
from tqdm import tqdm

from conceptvec.effects import activity
from conceptvec.effects.rows import KNOWN_BELOW
from conceptvec.effects.running_text import RunningText
from conceptvec.effects.scan_record import Scan
from conceptvec.effects.stage import running_text
from conceptvec.effects.target_words import occurrences
from conceptvec.records import Pole
from conceptvec.runfolder import Parts
from conceptvec.validation.clean import CleanPass
from conceptvec.validation.controls import candidate_subject
from conceptvec.validation.measure import CLEAN, Request, measure_unit, split_unit
from conceptvec.validation.positions import LARGEST_SET, own_positions
from conceptvec.validation.rule import RULE
from conceptvec.validation.stage import run_on

LOGIT_ROWS = 64
DRAWS = 2000
WIDTH_IN_ERRORS = 2 * 1.96  # of a 95 % interval


def known_words(run: FinishedRun, text: RunningText, clean: CleanPass) -> SimpleNamespace:
    """Which occurrences of the concepts' words the model knows: what a scan says of them."""
    places = occurrences(text.passages, text.words)
    at = text.passages.starts[places.passage] + places.position - 1
    words = torch.from_numpy(text.passages.ids[at + 1].astype(np.int64))
    shown = ~torch.as_tensor(text.masked)
    better = []
    for states, of_states in zip(
        clean.states(at).split(LOGIT_ROWS), words.split(LOGIT_ROWS), strict=True
    ):
        logits = run.model.logits(states.to(run.model.device)).cpu()
        better.append(((logits > logits.gather(1, of_states[:, None])) & shown).sum(1))
    ranks = torch.cat(better).numpy()
    known = ranks < KNOWN_BELOW
    distinct, count = np.unique(places.word[known], return_counts=True)
    return SimpleNamespace(
        words=distinct,
        rows=count,
        chosen=known,
        better=ranks,
        occurrences=np.stack([places.passage, places.position], 1),
        log_p=clean.log_p(at),
        layers=tuple(range(run.model.n_layers)),
        index=lambda wanted: np.searchsorted(distinct, wanted),
    )


def drops_there(
    run: FinishedRun, text: RunningText, entries: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """What removing each entry's vector costs at its own positions in a text: id → (n,)."""
    model = run.model
    neurons: dict[int, set[int]] = {}
    for entry in entries:
        neurons.setdefault(entry["layer"], set()).add(entry["neuron"])
    clean = CleanPass(
        model, text.passages, {layer: sorted(neurons[layer]) for layer in sorted(neurons)}
    )
    seen: Any = known_words(run, text, clean)
    silence = activity.nothing(range(model.n_layers), model.intermediate_size)
    no_moved: Any = None
    scan = Scan(model, run.config.fold, text, seen, silence, no_moved, (), run.config.seed, {})
    stage = run_on(scan, run.config, Parts())

    # Own positions as in a run, strongest first, without the pairs that they are matched to.
    subjects = [
        candidate_subject(
            Pole(e["layer"], e["neuron"], e["pole"]), scan.concepts.index(e["concept"])
        )
        for e in entries
    ]
    promoted = scan.promoted_words(
        [(subject.layer, subject.source, subject.written_sign) for subject in subjects],
        [subject.concept for subject in subjects],
    )
    drops: dict[str, np.ndarray] = {}
    for subject, words in zip(tqdm(subjects, unit="vector"), promoted, strict=True):
        activation = clean.activation(subject.layer, subject.neuron) * subject.sign
        positions, _ = own_positions(stage.text, activation, words)
        positions = positions[:LARGEST_SET]
        if len(positions) < RULE.positions:
            continue
        request = Request(subject, positions, (CLEAN, "zero"), clean.log_p(positions))
        (measured,) = split_unit([request], measure_unit([request], stage.setting))
        drops[subject.id] = measured.drops("zero", positions)
    return drops


def compare(table: pd.DataFrame) -> None:
    """Print what the drops of both texts have in common."""
    stream = np.random.default_rng(0)
    here, there = table["here"].to_numpy(), table["there"].to_numpy()
    n = len(table)
    draws = [spearman(here[i], there[i]) for i in stream.integers(0, n, (DRAWS, n))]
    low, high = np.quantile(draws, (0.025, 0.975))
    print(f"{n} vectors: rank correlation {spearman(here, there):.2f} ({low:.2f} to {high:.2f})")

    noise = table[["error_here", "error_there"]].to_numpy().T
    expected = [
        np.mean([spearman(*(true + stream.normal(0, noise))) for _ in range(DRAWS // 10)])
        for true in (here, there)
    ]
    print(f"expected of equal true drops: {min(expected):.2f} to {max(expected):.2f}")
    validated = table[table["validated"]]
    reached = (validated["there"] >= RULE.drop).sum()
    print(f"of {len(validated)} validated here {reached} lose {RULE.drop} nats or more there too")


def main() -> None:
    """Read the arguments, measure, compare."""
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    entries = [e for e in results["validation_results"] if e["concept_drop"] is not None]
    run = reopened(sys.argv[2])
    text = run.text
    if corpus := sys.argv[3:]:
        tokens = int(corpus[1]) if corpus[1:] else None
        config = replace(run.config, corpus=corpus[0], corpus_tokens=tokens)
        masked = run.scored.candidates.masked
        text = running_text(run.model, config, run.scored.concepts, masked, Parts())

    there = drops_there(run, text, entries)
    rows = [
        {
            "here": entry["concept_drop"],
            "error_here": (entry["ci95"][1] - entry["ci95"][0]) / WIDTH_IN_ERRORS,
            "there": drops.mean(),
            "error_there": drops.std(ddof=1) / len(drops) ** 0.5,
            "validated": entry["validated"],
        }
        for entry in entries
        if (drops := there.get(entry["id"])) is not None
    ]
    compare(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
