"""Stage 2's part of the results document."""

from __future__ import annotations

from typing import TypedDict

from conceptvec.document.values import Count, PoleId, Share, TextAndValue
from conceptvec.records import Sign


class CandidateEntry(TypedDict):
    """A pole that Stage 2 takes for a concept vector.

    Attributes:
        score_components: what the score was made of.
        top_tokens: text and readout value of this pole, strongest first.
        opposite_tokens: the same of the neuron's other pole.
    """

    id: PoleId
    layer: Count
    neuron: Count
    pole: Sign
    concept: str
    score: Share
    score_components: dict[str, float | None]
    top_tokens: list[TextAndValue]
    opposite_tokens: list[TextAndValue]


class OtherGroup(TypedDict):
    """Coherent lists outside the concepts, gathered by likeness, named by their central tokens."""

    name: str
    ids: list[PoleId]
    tokens: list[str]
    coherence: float | None


class LayerNulls(TypedDict):
    """The null lists of one layer, and how many of them reached the threshold."""

    layer: Count
    lists: Count
    reached: Count


class ScoringNulls(TypedDict, total=False):
    """What null directions reach with the same scorer; empty where nothing was scored."""

    lists: Count
    reached_threshold: Count
    share: Share
    layers: list[LayerNulls]


class ScoringPart(TypedDict):
    """Stage 2; empty where nothing was scored.

    Attributes:
        candidate_distribution: candidates per concept.
        labels: poles per answer of the scorer.
        score_histogram: counts of scores in 50 bins of [0, 1], of poles and of null directions.
        untested_candidates: candidates that Stage 3 did not test.
    """

    candidate_distribution: dict[str, Count]
    labels: dict[str, Count]
    score_histogram: dict[str, list[Count]]
    scoring_nulls: ScoringNulls
    other_groups: list[OtherGroup]
    untested_candidates: list[CandidateEntry]
