"""The part of the results document that every run writes, and Stage 1's."""

from __future__ import annotations

from typing import Literal, TypedDict

from conceptvec.document.values import Count, Share


class Configuration(TypedDict):
    """Every option of the run, resolved; these are what displays rely on."""

    model: str
    seed: Count
    damage: list[str]
    score_threshold: Share


class ChatFacts(TypedDict, total=False):
    """The model's chat template.

    Attributes:
        chat_template: SHA-256 over the template; null where the tokenizer has none.
    """

    chat_template: str | None


class ModelFacts(ChatFacts):
    """Read from the model, never assumed.

    Attributes:
        fingerprint: SHA-256 over the weights.
        why_dtype: the reason for the precision.
    """

    id: str
    revision: str | None
    fingerprint: str
    family: str
    layers: Count
    hidden_size: Count
    intermediate_size: Count
    vocab_size: Count
    dtype: str
    why_dtype: str
    device: str


class PipelineStats(TypedDict):
    """How much each step of the pipeline left.

    Attributes:
        total_candidates: neurons examined: layers times vectors per layer.
        filtered_candidates: neurons left after filtering.
        concept_candidates: candidates (neuron and pole) that Stage 2 passed on.
        tested_vectors: candidates that Stage 3 tested.
        success_rate: validated_vectors / total_candidates.
    """

    total_candidates: Count
    filtered_candidates: Count | None
    concept_candidates: Count | None
    tested_vectors: Count | None
    validated_vectors: Count | None
    success_rate: float | None


class Complexity(TypedDict):
    """Floating-point operations, as they follow from the shapes."""

    projection_flops: Count
    full_scale_projection_flops: Count
    validation_flops: Count | None
    parameters_examined: Count


class AgreementBase(TypedDict):
    """A sample of the run's own rows against float64 on the CPU."""

    rows: Count
    largest_difference: float | None
    allowed: float
    unit: str


class Agreement(AgreementBase, total=False):
    """A sample of the run's own rows against float64 on the CPU."""

    largest_difference_of_drops: float | None


class FilesRead(TypedDict, total=False):
    """The user's files.

    Attributes:
        files: SHA-256 by option, of a corpus with the column that was read.
    """

    files: dict[str, str]


class RunPart(FilesRead):
    """What every run writes.

    Attributes:
        timings: seconds per stage.
        resources: peak memory in bytes, and readouts that the fast projection did not settle.
        agreement: by what was compared: projection, damage.
    """

    schema_version: Literal[2]
    created: str
    conceptvec_version: str
    configuration: Configuration
    model: ModelFacts
    environment: dict[str, str]
    pipeline_stats: PipelineStats
    computational_complexity: Complexity
    timings: dict[str, float]
    resources: dict[str, float]
    agreement: dict[str, Agreement]


class ExtractionPart(TypedDict):
    """Stage 1.

    Attributes:
        layers: the layers examined, zero-based.
    """

    layers: list[Count]
