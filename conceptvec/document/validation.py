"""Stage 3's part of the results document: the damage, the verdicts and the controls."""

from __future__ import annotations

from typing import Literal, TypedDict

from conceptvec.document.scan import EffectOnly, ScanFacts, ScanOverview
from conceptvec.document.scoring import CandidateEntry
from conceptvec.document.values import Count, Interval, Share, TextAndValue, Verdict


class Drops(TypedDict):
    """Mean log-probability lost under one kind of damage, in nats; null where nothing was damaged.

    Attributes:
        concept_drop: at own positions.
        unrelated_drop: the larger of the next two.
        elsewhere_drop: before other words, where the pole fires as strongly.
        others_drop: before words of other concepts.
        silent_drop: before words of the concept where the neuron rests.
        selectivity: concept_drop − unrelated_drop.
    """

    concept_drop: float | None
    unrelated_drop: float | None
    elsewhere_drop: float | None
    others_drop: float | None
    silent_drop: float | None
    selectivity: float | None


class Firing(TypedDict):
    """Mean positive activation before the concept's words, over that before others'."""

    ratio: float | None
    p: Share


class Example(TypedDict):
    """A position that anyone can compute again.

    Attributes:
        ids: token ids from the start of the text up to and with the word.
        text: what the ids before the word say.
        own: whether the word is the concept's.
        activation: of the neuron where the word is predicted.
        clean: the word's log-probability, nats.
        damaged: the same with the whole weight gone.
    """

    ids: list[Count]
    text: str
    word: str
    own: bool
    activation: float | None
    clean: float | None
    damaged: float | None


class Transfer(TypedDict):
    """Zero ablation on the concept's cloze prompts; it never decides."""

    concept_drop: float | None
    unrelated_drop: float | None
    n: Count
    neutral_kl: float | None


class Continuation(TypedDict):
    """Greedy text after a beginning: clean, without the vector, with five times its write."""

    prompt: str
    clean: str
    removed: str
    amplified: str


class ActivationFacts(TypedDict):
    """The neuron's activation over the text.

    Attributes:
        contexts: the strongest, as text with the token in » «, and the activation there.
    """

    mean: float | None
    max_abs: float | None
    firing_rate: Share
    positive_share: Share
    contexts: list[TextAndValue]


class GateUp(TypedDict):
    """The share of own positions at which gate and up have these signs, the gate's first.

    A pole mixes two of the four: the activation is positive where the signs agree.
    """

    plus_plus: Share
    plus_minus: Share
    minus_plus: Share
    minus_minus: Share


class FiringSigns(TypedDict, total=False):
    """In which combinations of signs the neuron fires before its words.

    Attributes:
        gate_up: null where the pole has no own positions; earlier runs did not measure it.
    """

    gate_up: GateUp | None


class ValidationEntry(CandidateEntry, Drops, FiringSigns):
    """A candidate of Stage 2 with its verdict; the drops are those of the primary damage.

    Attributes:
        found_by: projection (Stage 2 named it) or both (so does the scan over all poles).
        failed: the conditions that were not met.
        ci95: 95 % interval of the selectivity, bootstrap over documents.
        p_value: the larger of the scan's p_words and p_moved.
        q_value: p_value after Benjamini-Hochberg over the run's candidates.
        n_concept_positions: own positions, before words of the concept that the pole promotes.
        n_unrelated_positions: the smaller number of the two kinds that are matched to them.
        n_unmatched_positions: own positions that were dropped because nothing is alike.
        answers_in_top_tokens: share of own positions whose word is among top_tokens.
        words: which words lose most: word, mean drop, own positions.
        prompts: transfer; null where there are no prompts or the vector is not validated.
    """

    found_by: Literal["projection", "both"]
    verdict: Verdict
    validated: bool
    failed: list[str]
    ci95: Interval
    p_value: Share
    q_value: Share
    n_concept_positions: Count
    n_unrelated_positions: Count
    n_silent_positions: Count
    n_unmatched_positions: Count
    answers_in_top_tokens: Share | None
    damage: dict[str, Drops]
    scan: ScanFacts
    firing: Firing
    words: list[tuple[str, float | None, Count]]
    examples: list[Example]
    prompts: Transfer | None
    activation: ActivationFacts
    continuations: list[Continuation]


class ControlPoint(TypedDict):
    """A control that was used and damaged.

    Attributes:
        in_place_of: the neuron in whose column a moved vector stood; null for others.
    """

    id: str
    in_place_of: str | None
    concept: str
    concept_drop: float | None
    unrelated_drop: float | None
    verdict: Verdict


class Control(TypedDict):
    """What one kind of control gave.

    Attributes:
        n: controls.
        used: those that the scan finds used at the candidates' cut-off.
        ci95: Wilson interval of the rate.
    """

    n: Count
    used: Count
    false_validations: Count
    false_validation_rate: Share | None
    ci95: Interval
    points: list[ControlPoint]


class NullCalibration(TypedDict, total=False):
    """Null neurons as a `Control`, and beside them the others; empty where nothing was tested."""

    n: Count
    used: Count
    false_validations: Count
    false_validation_rate: Share | None
    ci95: Interval
    points: list[ControlPoint]
    wrong_concept: Control
    moved: Control


class ConceptSet(TypedDict):
    """A concept's best vectors removed together.

    Attributes:
        vectors: layer and neuron.
        random_selectivity: the 5, 50 and 95 % quantiles over random sets of like neurons.
    """

    concept: str
    vectors: list[tuple[Count, Count]]
    concept_drop: float | None
    unrelated_drop: float | None
    selectivity: float | None
    p_value: Share
    random_sets: Count
    random_selectivity: tuple[float | None, float | None, float | None]
    n_concept_positions: Count
    n_unrelated_positions: Count


class TextFacts(TypedDict):
    """The running text.

    Attributes:
        corpus: where it comes from.
        digest: SHA-256 of its token ids.
        tokens: that could be scored.
        known_words: concept → distinct known words in it.
    """

    corpus: str
    digest: str
    passages: Count
    documents: Count
    tokens: Count
    known_words: dict[str, Count]


class ValidationPart(TypedDict):
    """Stage 3; empty where nothing was damaged.

    Attributes:
        concept_distribution: validated vectors per concept.
        validation_results: one entry per candidate, best first.
        effect_only: poles that the scan names and Stage 2 did not, by concept, strongest first.
    """

    concept_distribution: dict[str, Count]
    verdicts: dict[str, Count]
    validation_results: list[ValidationEntry]
    null_calibration: NullCalibration
    effect_only: list[EffectOnly]
    concept_sets: list[ConceptSet]
    text: TextFacts | None
    scan_overview: ScanOverview | None
