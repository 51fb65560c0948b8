"""Stage 3's part of the results document."""

from __future__ import annotations

from typing import TypedDict

from conceptvec.document.scoring import CandidateEntry
from conceptvec.document.values import Count, Interval, Share, TextAndValue, Verdict


class Drops(TypedDict):
    """What a damage costs, in nats per answer token; selectivity is the difference."""

    concept_drop: float | None
    unrelated_drop: float | None
    selectivity: float | None


class Damaged(Drops):
    """One kind of damage.

    Attributes:
        neutral_kl: divergence from the clean distribution on neutral prompts, in nats.
    """

    neutral_kl: float | None


class Dose(Drops):
    """Noise of one strength.

    Attributes:
        ratio: norm of the noise over that of the vector.
    """

    ratio: float


class Continuation(TypedDict):
    """Greedy text after a prompt: clean, with the vector removed, and with its write amplified."""

    prompt: str
    clean: str
    damaged: str
    amplified: str


class ActivationFacts(TypedDict):
    """The neuron's activation over the corpus.

    Attributes:
        contexts: the strongest, as text with the token in » «, and the activation there.
    """

    mean: float
    max_abs: float
    firing_rate: float
    positive_share: float
    contexts: list[TextAndValue]


class TestedEntry(CandidateEntry, Damaged):
    """A candidate that Stage 3 tested; the drops are those of the primary damage.

    Attributes:
        failed: the conditions that were not met.
        ci95: 95 % interval of the selectivity, bootstrap over prompts.
        p_value: the larger of p_null and p_labels.
        q_value: p_value after Benjamini-Hochberg over the tested poles.
        p_null: against the null neurons.
        p_labels: of a permutation of the prompts' labels.
        n_nulls: null neurons that p_null compares with.
        n_concept_prompts_left_out: prompts whose answer the model does not know.
        split_half: concept drop on the even and on the odd prompts.
        firing_share: part of the concept's prompts on which the neuron fires with the pole's sign.
        answers_in_top_tokens: share of the concept's answers that are among top_tokens.
        stopped_early: whether the other kinds of damage had ruled it out.
        draws: of the primary damage.
    """

    verdict: Verdict
    validated: bool
    failed: list[str]
    ci95: Interval
    p_value: Share | None
    q_value: Share | None
    p_null: Share | None
    p_labels: Share | None
    n_nulls: Count
    n_concept_prompts: Count
    n_unrelated_prompts: Count
    n_concept_prompts_left_out: Count
    split_half: Interval
    firing_share: Share
    answers_in_top_tokens: Share
    stopped_early: bool
    draws: Count
    damage: dict[str, Damaged]
    activation: ActivationFacts


class ValidationEntry(TestedEntry, total=False):
    """A tested candidate; the validated ones have more.

    Attributes:
        hardest_prompt: index of the concept prompt that the damage costs most.
        dose_response: noise of growing strength.
        continuations: what the model says with and without the vector.
    """

    hardest_prompt: Count
    dose_response: list[Dose]
    continuations: list[Continuation]


class NullCalibration(TypedDict, total=False):
    """What the null neurons gave; empty where nothing was tested.

    Attributes:
        fewest_hits: with fewer validated poles q ≤ 0.05 is out of reach for so few nulls.
        points: layer, neuron, the concept that it was tested as, concept drop, unrelated drop.
    """

    null_neurons: Count
    fewest_hits: Count
    tested: Count
    false_validations: Count
    false_validation_rate: Share | None
    points: list[tuple[Count, Count, str, float | None, float | None]]


class ConceptSet(Drops):
    """A concept's best vectors damaged together, on prompts that did not choose them.

    Attributes:
        vectors: layer and neuron.
        random_selectivity: the 5, 50 and 95 % quantiles over random sets of like neurons.
    """

    concept: str
    vectors: list[tuple[Count, Count]]
    p_value: Share
    random_sets: Count
    random_selectivity: tuple[float | None, float | None, float | None]
    n_concept_prompts: Count
    n_unrelated_prompts: Count


class PromptCount(TypedDict):
    """How many prompts a concept has, and of how many the model knows the answer."""

    prompts: Count
    known: Count


class ValidationPart(TypedDict):
    """Stage 3; empty where nothing was damaged.

    Attributes:
        concept_distribution: validated vectors per concept.
        validation_results: one entry per tested candidate, best first.
    """

    concept_distribution: dict[str, Count]
    verdicts: dict[str, Count]
    prompts: dict[str, PromptCount]
    validation_results: list[ValidationEntry]
    null_calibration: NullCalibration


class ValidationExtras(TypedDict, total=False):
    """What Stage 3 adds where it ran."""

    concept_sets: list[ConceptSet]
