"""From what was measured to what is judged: drops by kind of position, intervals, examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.text import plain
from conceptvec.validation.rule import Evidence, Judgement, worth_damaging
from conceptvec.validation.statistics import Sample, selectivity_interval

if TYPE_CHECKING:
    from conceptvec.effects.passages import Passages
    from conceptvec.effects.use import Use
    from conceptvec.validation.measure import LogP, Measured, Subject
    from conceptvec.validation.positions import Field, Positions

OWN_EXAMPLES, OTHER_EXAMPLES = 5, 3


@dataclass(frozen=True)
class Drops:
    """Mean drops of one kind of damage, in nats; None where it was not measured at such positions.

    Attributes:
        of_concept: at the concept's own positions.
        elsewhere: at the positions matched to them.
        others: at positions of other concepts.
        silent: where the neuron rests.
    """

    of_concept: float
    elsewhere: float | None
    others: float | None
    silent: float | None

    @property
    def unrelated(self) -> float | None:
        """The larger of the two matched ones."""
        known = [drop for drop in (self.elsewhere, self.others) if drop is not None]
        return max(known) if known else None

    @property
    def selectivity(self) -> float | None:
        """Own minus unrelated."""
        return None if self.unrelated is None else self.of_concept - self.unrelated

    def entry(self) -> dict[str, float | None]:
        """The drops as the results document holds them."""
        values = {
            "concept_drop": self.of_concept,
            "unrelated_drop": self.unrelated,
            "elsewhere_drop": self.elsewhere,
            "others_drop": self.others,
            "silent_drop": self.silent,
            "selectivity": self.selectivity,
        }
        return {name: None if x is None else plain(x) for name, x in values.items()}


@dataclass(frozen=True)
class Placed:
    """A subject with what the scan says of it and the positions at which it can be damaged.

    Attributes:
        subject: what may be damaged.
        use: what the scan says.
        used: whether its p is at most the run's cut-off.
        positions: none for a control that is not used.
        example_activations: of its neuron at the example positions, float32.
        gates: whether its neuron's gate is positive at the own positions, bool.
        clean: at `clean_positions`; None where only the damaged rows' own pass can tell.
    """

    subject: Subject
    use: Use
    used: bool
    positions: Positions
    example_activations: np.ndarray
    gates: np.ndarray
    clean: LogP | None

    @property
    def worth_damaging(self) -> bool:
        """Whether damage can still lead to `validated`."""
        return worth_damaging(evidence_of(self.use, self.used, self.positions, {}, None))

    @property
    def damaged_at(self) -> np.ndarray:
        """Where the first damage is measured: int64; at its examples where no verdict waits."""
        return self.positions.all() if self.worth_damaging else example_positions(self.positions)

    @property
    def clean_positions(self) -> np.ndarray:
        """Where the clean pass is asked for log-probabilities: int64; `damaged_at` is among them.

        They follow from what a part of positions is named after, as `damaged_at` does not.
        """
        return self.positions.all() if self.used else example_positions(self.positions)

    @property
    def known_clean(self) -> np.ndarray | None:
        """The clean log-probabilities at `damaged_at`, float64, where they are known."""
        return None if self.clean is None else self.clean.at(self.damaged_at)


@dataclass(frozen=True)
class Tested(Placed):
    """A subject with all that was found out about it.

    Attributes:
        judgement: the verdict.
        drops: by kind of damage; empty where no damage was needed for the verdict.
        interval: 95 % interval of the selectivity.
        measured: log-probabilities at all its positions, or at the examples' alone.
    """

    judgement: Judgement
    drops: dict[str, Drops]
    interval: tuple[float, float] | None
    measured: Measured | None


def drops_of(measured: Measured, positions: Positions, kind: str) -> Drops:
    """The mean drops of one kind of damage."""

    def mean(at: np.ndarray) -> float | None:
        if not len(at) or not measured.log_p[kind].covers(at):
            return None
        return float(measured.drops(kind, at).mean())

    of_concept = mean(positions.of_concept)
    assert of_concept is not None
    return Drops(
        of_concept,
        mean(positions.elsewhere),
        mean(positions.others),
        mean(positions.silent),
    )


def interval_of(
    measured: Measured,
    positions: Positions,
    text: Field,
    stream: np.random.Generator,
    kind: str,
) -> tuple[float, float]:
    """The 95 % interval of the selectivity under one kind of damage."""

    def sample(at: np.ndarray) -> Sample:
        return Sample(measured.drops(kind, at), text.document[at])

    others = [sample(at) for at in (positions.elsewhere, positions.others) if len(at)]
    return selectivity_interval(sample(positions.of_concept), others, stream)


def evidence_of(
    use: Use,
    used: bool,
    positions: Positions,
    drops: dict[str, Drops],
    interval: tuple[float, float] | None,
) -> Evidence:
    """What the rule looks at; the first kind of damage in `drops` is the primary one."""
    primary, rotated = next(iter(drops.values()), None), drops.get("rotate")
    return Evidence(
        known_words=use.known_words,
        own_positions=len(positions.of_concept),
        matched_positions=positions.matched,
        firing_ratio=use.firing_ratio,
        used=used,
        carrying_words=use.words,
        largest_other=use.other_share,
        own_drop=primary.of_concept if primary else None,
        rotate_drop=rotated.of_concept if rotated else None,
        unrelated_drop=primary.unrelated if primary else None,
        selectivity_low=interval[0] if interval else None,
    )


def words_lost(
    measured: Measured, positions: Positions, text: Field
) -> list[tuple[int, float, int]]:
    """Distinct words at own positions with mean drop and number, largest drop first."""
    drops = measured.drops(measured.primary, positions.of_concept)
    words = text.target[positions.of_concept]
    rows = [
        (int(word), float(drops[words == word].mean()), int((words == word).sum()))
        for word in np.unique(words)
    ]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def example_positions(positions: Positions) -> np.ndarray:
    """The strongest own positions and the strongest elsewhere: int64 (at most 8,)."""
    strongest = positions.of_concept[:OWN_EXAMPLES]
    return np.concatenate([strongest, positions.elsewhere[:OTHER_EXAMPLES]])


def examples(
    tested: Tested, passages: Passages, passage_of: np.ndarray, decode: Callable[[list[int]], str]
) -> list[dict[str, Any]]:
    """What anyone can compute again from the results file and the model alone.

    Args:
        tested: with its measurements.
        passages: the text.
        passage_of: the passage of every token.
        decode: token ids → text.
    """
    measured, activations = tested.measured, tested.example_activations
    if measured is None:
        return []
    at = example_positions(tested.positions)
    clean = measured.clean.at(at)
    damaged = measured.log_p[measured.primary].at(at)
    rows = []
    for index, position in enumerate(at.tolist()):
        start = int(passages.starts[passage_of[position]])
        ids = passages.ids[start : position + 2].tolist()
        rows.append(
            {
                "ids": ids,
                "text": decode(ids[:-1]),
                "word": decode(ids[-1:]),
                "own": index < min(len(tested.positions.of_concept), OWN_EXAMPLES),
                "activation": plain(activations[index]),
                "clean": plain(clean[index]),
                "damaged": plain(damaged[index]),
            }
        )
    return rows
