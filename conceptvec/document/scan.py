"""The scan over all poles in the results document: what it says of one, and of all together."""

from __future__ import annotations

from typing import TypedDict

from conceptvec.document.values import Count, Share, TextAndValue


class EffectByConcept(TypedDict, total=False):
    """First-order effects on every concept of the run, in nats.

    Attributes:
        by_concept: concept → the same as `mean`; null where the text holds none of its words.
            Earlier runs did not keep it.
    """

    by_concept: dict[str, float | None]


class ScanFacts(EffectByConcept):
    """First-order effects on the words of the concept, in nats.

    Attributes:
        zero: of zero ablation, on the mean word.
        mean: of mean ablation, on the mean of the words that the pole promotes most.
        largest_other: the largest `mean` on another concept.
        words: distinct words that carry the effect.
        known_words: of the concept in the text.
        p_words: against permuted words.
        p_moved: against vectors under other neurons' firing.
        exact_zero: `zero` by real damage of the weight, where it was repeated.
        exact_mean: the same for `mean`.
    """

    zero: float | None
    mean: float | None
    largest_other: float | None
    largest_other_concept: str | None
    words: Count
    known_words: Count
    without_strongest_word: float | None
    p_words: Share
    p_moved: Share
    exact_zero: float | None
    exact_mean: float | None


class EffectOnly(TypedDict):
    """A pole that is used for a concept and that Stage 2 did not name."""

    id: str
    concept: str
    scan: ScanFacts
    q: Share
    top_tokens: list[TextAndValue]


class Seldom(TypedDict):
    """Poles and concepts, and how many of them have a p that is seldom reached by chance."""

    n: Count
    seldom: Count


class ScanControl(TypedDict):
    """Poles and concepts that go together by chance, and how many reach the cut-off of p."""

    n: Count
    used: Count
    share: Share


class EffectByScore(TypedDict):
    """Poles and concepts by Stage 2's score and first-order effect.

    Attributes:
        score_edges: of the bins of scores.
        effect_edges: of the bins of mean ablation's effect, nats.
        with_score: poles with their best concept, by bin of score and bin of effect.
        without_score: all other poles and concepts, by bin of effect.
        level: the largest p that counts as seldom.
        seldom_by_score: of `with_score`, by bin of score.
        seldom_without_score: of all other poles and concepts.
        moved: the candidates' vectors under other neurons' firing: score and effect.
        moved_seldom_by_score: of these, by bin of score.
    """

    score_edges: list[float]
    effect_edges: list[float]
    with_score: list[list[Count]]
    without_score: list[Count]
    level: Share
    seldom_by_score: list[Seldom]
    seldom_without_score: Seldom
    moved: list[tuple[float, float]]
    moved_seldom_by_score: list[Seldom]


class ScanOverview(TypedDict):
    """What the scan says of all poles and concepts.

    Attributes:
        poles_and_concepts: how many were tested together.
        cut_off: the largest p with q at most 0.05; null where there is none.
        controls: by kind: permuted_words, moved, moved_candidates.
        effect_by_layer: concept → layer by layer the largest effect with p at most 0.001 that is
            specific to the concept, nats.
    """

    poles_and_concepts: Count
    cut_off: Share | None
    controls: dict[str, ScanControl]
    effect_by_score: EffectByScore
    effect_by_layer: dict[str, list[float]]
