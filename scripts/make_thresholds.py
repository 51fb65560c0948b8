"""What the conditions of Stage 3 do to the verdicts of a finished run, as tables of Markdown.

    python scripts/make_thresholds.py RUN

* Condition after condition, in the order of the rule: how many candidates and controls are left.
* Each condition left out: what the run would validate without it.
* The run's own evidence judged again with half and with double of each threshold.

Everything that was measured is read from the run folder. What the scan stops was never damaged: a
rule without *used*, words or positions, or with looser ones, would let in vectors that cannot be
counted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from finished_run import reopened

from conceptvec.effects.stage import scan_text
from conceptvec.text import table
from conceptvec.validation.evidence import Tested, evidence_of
from conceptvec.validation.rule import RULE, Thresholds, conditions, judge
from conceptvec.validation.stage import run_on, verdicts_on

WHOLE = ("known_words", "positions", "carrying_words")
NOT_JUDGED = ("q",)  # settled for the whole family, not vector by vector
# The rule's conditions by their number in it; *used* first, since nothing else is looked for after.
CONDITIONS = {
    4: "used (q ≤ .05)",
    0: "six known words",
    1: "24 own positions",
    2: "24 matched positions",
    3: "fires before its words",
    5: "three words carry it",
    6: "own drop ≥ .05",
    7: "… under rotation too",
    8: "other concepts' effect ≤ half",
    9: "unrelated drop ≤ half",
    10: "interval above zero",
}
ROLES = ("null", "wrong_concept", "moved")
APART = "numbers"  # a list of numerals is a concept by its form


def judged_again(run_folder: str) -> tuple[list[Tested], list[Tested], list[str]]:
    """Candidates, controls and the concepts' names of a finished run."""
    run = reopened(run_folder)
    names = run.text.words.concepts
    found = run.scored.candidates_found
    layers = [projections.layer for projections in run.scored.candidates.layers]
    named = [(candidate.pole, names.index(candidate.concept)) for candidate in found]
    scan = scan_text(run.text, run.model, run.config, layers, named, run.parts)
    candidates, controls = verdicts_on(run_on(scan, run.config, run.parts), found)
    return candidates, controls, list(names)


def variations() -> Iterator[tuple[str, str, Thresholds]]:
    """The rule as it is, then half and double of each threshold."""
    yield "as it is", "", RULE
    for field in dataclasses.fields(Thresholds):
        if field.name in NOT_JUDGED:
            continue
        value = getattr(RULE, field.name)
        for factor in (0.5, 2.0):
            other = round(value * factor) if field.name in WHOLE else value * factor
            shown = f"{other:g} for {value:g}"
            rule = dataclasses.replace(RULE, **{field.name: other})
            yield field.name.replace("_", " "), shown, rule


def is_validated(item: Tested, rule: Thresholds) -> bool:
    """The verdict of another rule on the same evidence."""
    evidence = evidence_of(item.use, item.used, item.positions, item.drops, item.interval)
    return judge(evidence, rule).validated


def left_after(groups: Sequence[Sequence[Tested]]) -> list[list[str | int]]:
    """A row for each condition: how many are left after it, and how many it alone keeps out."""
    failed = [[_failed(item) for item in group] for group in groups]
    rows: list[list[str | int]] = [["all", *(len(group) for group in groups)]]
    for step, (number, name) in enumerate(CONDITIONS.items()):
        so_far = set(list(CONDITIONS)[: step + 1])
        row: list[str | int] = [name]
        for of_group in failed:
            left = sum(not one & so_far for one in of_group)
            alone = sum(one == {number} for one in of_group)
            row.append(f"{left} (alone: {alone})" if alone else left)
        rows.append(row)
    return rows


def _failed(item: Tested) -> set[int]:
    """The conditions of the rule that do not hold, by number."""
    evidence = evidence_of(item.use, item.used, item.positions, item.drops, item.interval)
    return {number for number, (_, holds) in enumerate(conditions(evidence)) if not holds}


def page(candidates: Sequence[Tested], controls: Sequence[Tested], names: Sequence[str]) -> str:
    """All tables."""
    numbers = [item for item in candidates if names[item.subject.concept] == APART]
    others = [item for item in candidates if names[item.subject.concept] != APART]
    groups = [
        others,
        numbers,
        *([item for item in controls if item.subject.role == role] for role in ROLES),
    ]
    rows = [
        [name, shown, *(sum(is_validated(item, rule) for item in group) for group in groups)]
        for name, shown, rule in variations()
    ]
    heads = (
        "threshold",
        "",
        f"no {APART}",
        APART,
        *(r.replace("_", " ") for r in ROLES),
    )

    used = [item for item in candidates if item.used]
    verdicts = Counter(item.judgement.verdict for item in used)
    failed = Counter(phrase for item in used for phrase in item.judgement.failed)
    return "\n\n".join(
        [
            f"Of the {len(used)} candidates that are used: "
            + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()),
            table(failed.most_common(), ("what failed", "candidates"), "github"),
            table(left_after(groups), ("left after", *heads[2:]), "github"),
            table(rows, heads, "github"),
        ]
    )


def main() -> None:
    """Print the page."""
    print(page(*judged_again(sys.argv[1])))


if __name__ == "__main__":
    main()
