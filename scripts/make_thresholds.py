"""What each threshold of Stage 3 does to the verdicts of a finished run, as a table of Markdown.

    python scripts/make_thresholds.py RUN

The run's own evidence is judged again with half and with double of each threshold. Everything that
was measured is read from the run folder; the model is loaded for one clean pass, which says where
the vectors were tested. A looser threshold of *used*, words or positions would let in vectors that
were never damaged; these cannot be counted.
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
from conceptvec.validation.rule import RULE, Thresholds, judge
from conceptvec.validation.stage import run_on, verdicts_on

WHOLE = ("known_words", "positions", "carrying_words")
NOT_JUDGED = ("q",)  # settled for the whole family, not vector by vector
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


def page(candidates: Sequence[Tested], controls: Sequence[Tested], names: Sequence[str]) -> str:
    """Both tables."""
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
        f"validated, no {APART}",
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
            table(rows, heads, "github"),
        ]
    )


def main() -> None:
    """Print the page."""
    print(page(*judged_again(sys.argv[1])))


if __name__ == "__main__":
    main()
