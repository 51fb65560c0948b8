"""Stage 2: which poles stand for a concept, and what the scorer says of everything else.

**Null directions** (`nulls`) pass through the same masks and the same scorer; the share of them
that reaches the threshold is reported per layer, as it is. In a model of few neurons such mixtures
are dominated by its concept columns, and the share is high.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from conceptvec.concepts import ConceptSet
from conceptvec.config import Config
from conceptvec.extraction.poles import Projections
from conceptvec.extraction.stage import Candidates
from conceptvec.identity import SCORING, Record, as_read
from conceptvec.model.ambient import set_aside
from conceptvec.records import SIGNS, Candidate, Pole, PoleScores, Sign
from conceptvec.runfolder import Parts
from conceptvec.scoring import evidence as ev
from conceptvec.scoring.answers import LABELS, OTHER, Lists
from conceptvec.scoring.groups import OtherList, group
from conceptvec.scoring.nulls import NullLists, null_lists, null_readouts
from conceptvec.scoring.poles import PART, Collector, PoleTable
from conceptvec.scoring.scorer import Scorer
from conceptvec.text import html_table, listed, notebook_html, plain, words_of

if TYPE_CHECKING:
    from conceptvec.model.weights import Weights

BINS = 50
SHOWN_ROWS, SHOWN_WORDS, SHOWN_GROUPS = 20, 8, 10


@dataclass(frozen=True)
class Scored:
    """The concept candidates and what the scorer said of everything else.

    Attributes:
        selected: the concept candidates, best score first.
        labels: number of poles per answer.
        filtered: neurons that passed the filter.
        others: groups of coherent poles outside the concepts, largest first.
        null: what the null directions gave.
        histogram: counts of scores in 50 bins of [0, 1], of the poles and of the nulls.
        poles: every scored pole.
        candidates: Stage 1.
        concepts: of the run.
        seconds: that the stage took.
        origin: the record of what it was made with.
    """

    selected: tuple[Candidate, ...]
    labels: dict[str, int]
    filtered: int
    others: list[dict[str, Any]]
    null: dict[str, Any]
    histogram: dict[str, list[int]]
    poles: PoleTable = field(repr=False)
    candidates: Candidates
    concepts: ConceptSet = field(repr=False)
    seconds: float = 0.0
    origin: Record = field(default_factory=dict, repr=False)

    @property
    def candidates_found(self) -> list[Candidate]:
        """The concept candidates, best first."""
        return list(self.selected)

    @property
    def pole_scores(self) -> PoleScores:
        """The scores of all poles that have a word of some concept."""
        return self.poles.scores()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The candidates as the results document holds them."""
        return [candidate.entry() for candidate in self.selected]

    def __repr__(self) -> str:
        return f"Scored({len(self.selected)} concept candidates; {self.labels})"

    def _repr_html_(self) -> str:
        rows = []
        for candidate in self.selected[:SHOWN_ROWS]:
            words = words_of(text for text, _ in candidate.top_tokens[:SHOWN_WORDS])
            rows.append((candidate.id, candidate.concept, f"{candidate.score:.2f}", words))
        answers = escape(listed(self.labels))
        groups = [(len(g["ids"]), words_of(g["tokens"])) for g in self.others[:SHOWN_GROUPS]]
        return notebook_html(
            f"<p>{len(self.selected)} concept candidates; answers: {answers}</p>"
            + html_table(rows, ("vector", "concept", "score", "tokens"))
            + "<p>The largest groups outside the concepts</p>"
            + html_table(groups, ("poles", "central words"))
        )


@set_aside
def score(
    candidates: Candidates, model: Weights, config: Config, parts: Parts | None = None
) -> Scored:
    """Stage 2 over everything that passes the filter.

    Args:
        candidates: Stage 1.
        model: the model (its unembedding and value vectors are read; no forward pass).
        config: concepts, score_threshold, min_kurtosis, seed.
        parts: keeps the table of all scored poles (a `runfolder.RunFolder`).

    Returns:
        the candidates, the other answers counted, the null calibration.

    Raises:
        RequestError: Stage 1 or the run folder was made with other options or another model.
    """
    start, parts = time.perf_counter(), parts or Parts()
    concepts = parts.concepts(config)
    read = as_read(concepts.source, concepts.digest)
    origin = parts.bind(config, model.facts(), SCORING, candidates.origin, read)
    tokens, masked = candidates.tokens, candidates.masked
    scorer = Scorer(tokens, masked, model.unembedding, concepts, config.score_threshold)
    layers = [projections.layer for projections in candidates.layers]
    readouts = null_readouts(
        model, layers, masked, config.top_k, fold=config.fold, seed=config.seed
    )
    tally = Tally(scorer, tokens, masked)
    nulls = null_lists(scorer, layers, readouts, tally.vocabulary)
    for projections, null in tqdm(
        zip(candidates.layers, nulls, strict=True),
        desc="Stage 2: scoring",
        unit="layer",
        total=len(layers),
    ):
        tally.add(projections, candidates.passing(projections, config.min_kurtosis), null)
    poles = tally.poles.table()
    _keep(poles, parts)
    return Scored(
        selected=tuple(
            sorted(tally.selected, key=lambda candidate: (-candidate.score, candidate.id))
        ),
        labels=dict(sorted(tally.labels.items())),
        filtered=tally.filtered,
        others=group(tally.others, scorer.kinship, tokens),
        null=_calibration(nulls),
        histogram={
            "poles": tally.histogram.tolist(),
            "null": sum((_histogram(null.score) for null in nulls), np.zeros(BINS, int)).tolist(),
        },
        poles=poles,
        candidates=candidates,
        concepts=concepts,
        seconds=round(time.perf_counter() - start, 3),
        origin=origin,
    )


class Tally:
    """What the scorer says of the poles of a run, gathered layer by layer."""

    def __init__(self, scorer: Scorer, tokens: list[str], masked: np.ndarray) -> None:
        self.scorer, self.tokens = scorer, tokens
        self.vocabulary = int((~masked).sum())
        self.poles = Collector(scorer.names, tokens)
        self.selected: list[Candidate] = []
        self.others: list[OtherList] = []
        self.labels: Counter[str] = Counter()
        self.histogram = np.zeros(BINS, int)
        self.filtered = 0

    def add(self, projections: Projections, passes: np.ndarray, null: NullLists) -> None:
        """Score both poles of the neurons of a layer that pass the filter, bool (n,)."""
        rows = np.flatnonzero(passes)
        self.filtered += len(rows)
        for sign in SIGNS:
            ids, values = (array[rows] for array in projections.pole(sign))
            direction = 1 if sign == "+" else -1
            standout = ev.standout(
                direction * values,
                direction * projections.mean[rows],
                projections.variance[rows],
                self.vocabulary,
            )
            lists = self.scorer(ids, standout, null.coherence)
            self.histogram += _histogram(lists.score)
            self.labels.update(self._names(lists))
            neurons = projections.neurons[rows]
            self.poles.add(projections.layer, neurons, direction, ids, lists)
            poles = [Pole(projections.layer, int(neuron), sign) for neuron in neurons]
            for row in np.flatnonzero(lists.label >= 0).tolist():
                self.selected.append(
                    self._candidate(poles[row], projections, lists, null, row, rows)
                )
            for row in np.flatnonzero(lists.label == OTHER).tolist():
                words = ids[row, : lists.first.shape[1]][lists.first[row]]
                coherence = float(lists.components["coherence"][row])
                self.others.append(OtherList(poles[row].id, words, coherence))

    def _names(self, lists: Lists) -> list[str]:
        names = self.scorer.names
        return [names[i] if i >= 0 else LABELS[int(i)] for i in lists.label]

    def _candidate(
        self,
        pole: Pole,
        projections: Projections,
        lists: Lists,
        null: NullLists,
        row: int,
        rows: np.ndarray,
    ) -> Candidate:
        """The record of the scored list `row`, of the neuron `rows[row]` of the layer."""
        components = {name: plain(values[row]) for name, values in lists.components.items()}
        components["kurtosis"] = plain(projections.kurtosis[rows[row]])
        components["null_percentile"] = plain((null.score < lists.score[row]).mean())
        opposite: Sign = "-" if pole.sign == "+" else "+"
        return Candidate(
            pole=pole,
            concept=self.scorer.names[lists.label[row]],
            score=float(f"{lists.score[row]:.6g}"),
            components=components,
            top_tokens=self._tokens(projections, pole.sign, rows[row]),
            opposite_tokens=self._tokens(projections, opposite, rows[row]),
        )

    def _tokens(
        self, projections: Projections, sign: Sign, row: int
    ) -> tuple[tuple[str, float], ...]:
        """Text and readout value of a pole's tokens, strongest first."""
        ids, values = (array[row] for array in projections.pole(sign))
        return tuple(
            (self.tokens[i], float(f"{value:.6g}")) for i, value in zip(ids, values, strict=True)
        )


def _keep(poles: PoleTable, parts: Parts) -> None:
    """Write the table into the run folder, unless it is there."""
    kept = parts.load(PART)
    arrays = poles.arrays()
    if kept is not None and all(np.array_equal(kept[name], arrays[name]) for name in arrays):
        return
    if parts.rank == 0:
        parts.save(PART, arrays)


def _calibration(nulls: list[NullLists]) -> dict[str, Any]:
    """How many null lists reach the threshold, per layer and together."""
    layers = [
        {"layer": null.layer, "lists": len(null.score), "reached": null.reached} for null in nulls
    ]
    total = sum(layer["lists"] for layer in layers)
    reached = sum(layer["reached"] for layer in layers)
    share = reached / max(total, 1)
    return {"lists": total, "reached_threshold": reached, "share": share, "layers": layers}


def _histogram(scores: np.ndarray) -> np.ndarray:
    return np.histogram(scores, BINS, (0, 1))[0]
