"""The results of a run: the document put together from the stages, and what people read from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.config import Config
from conceptvec.document import SCHEMA_VERSION, candidates, load_document, save_document
from conceptvec.document import VOLATILE as VOLATILE
from conceptvec.document.run import Complexity, PipelineStats
from conceptvec.model.device import environment
from conceptvec.model.memory import peak_memory
from conceptvec.text import plain
from conceptvec.version import __version__

if TYPE_CHECKING:
    from conceptvec.effects.named import ByScan
    from conceptvec.extraction.stage import Candidates
    from conceptvec.model.network import Model
    from conceptvec.model.weights import Weights
    from conceptvec.scoring.stage import Scored
    from conceptvec.validation.stage import Validation


class Results(dict[str, Any]):
    """The results document, a dict: `conceptvec.document.Document` says what it holds."""

    @classmethod
    def build(
        cls,
        model: Weights | Model,
        config: Config,
        candidates: Candidates,
        scored: Scored | None = None,
        by_scan: ByScan | None = None,
        validation: Validation | None = None,
    ) -> Results:
        """The document of a run that ends with the last stage given.

        Args:
            model: the model.
            config: the run's options.
            candidates: Stage 1.
            scored: Stage 2, where it ran.
            by_scan: the scan and what it adds, where Stage 3 ran.
            validation: Stage 3, where it ran.
        """
        seconds: dict[str, float | None] = {"extraction": candidates.seconds}
        seconds["scoring"] = scored.seconds if scored else None
        seconds |= by_scan.scan.seconds if by_scan else {}
        seconds["validation"] = validation.seconds if validation else None
        facts = model.facts()
        run = {
            "schema_version": SCHEMA_VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "conceptvec_version": __version__,
            "configuration": config.resolved() | _resolved_by(facts),
            "files": dict((scored or candidates).origin.get("files", {})),
            "model": facts,
            "environment": environment(str(model.device)),
            "pipeline_stats": _stats(candidates, scored, validation),
            "computational_complexity": _complexity(model, candidates, validation),
            "timings": {stage: s for stage, s in seconds.items() if s is not None},
            "resources": _resources(candidates, str(model.device)),
            "agreement": candidates.agreement
            | ({"damage": validation.agreement} if validation else {}),
        }
        valid = [e for e in validation.entries if e["validated"]] if validation else []
        names = scored.concepts.names if scored else []
        return cls(
            **run,
            concept_distribution=_per_concept(valid, names) if validation else {},
            **_scoring_part(scored, validation),
            layers=[projections.layer for projections in candidates.layers],
            **_validation_part(by_scan, validation, config),
        )

    def with_load_seconds(self, seconds: float) -> Results:
        """The same with what loading the model took."""
        return Results(self | {"timings": {"load": seconds} | self["timings"]})

    def save(self, path: str | Path) -> Path:
        """Write the document as JSON, atomically, after checking it against the schema.

        Raises:
            RequestError: it does not fit.
        """
        return save_document(self, path)

    def to_html(self, path: str | Path, run: str | Path | None = None) -> Path:
        """Write one self-contained HTML file: summary, figures, tables, a card per vector.

        Args:
            path: the HTML file.
            run: the run folder; with it every scored pole is listed too.
        """
        from conceptvec.show.report import to_html

        return to_html(self, path, run)

    def table(self) -> Any:
        """One row for each candidate, as a DataFrame of pandas."""
        from conceptvec.export.tabular import entries_table

        return entries_table(candidates(self))

    def export(
        self,
        path: str | Path,
        to: str,
        concept: str | None = None,
        ids: Sequence[str] = (),
        model: Weights | str | None = None,
    ) -> Path:
        """Write what other tools read.

        Args:
            path: the file, or for `hf` the folder.
            to: gguf (a control vector of one concept), csv, neuronpedia, or hf (a folder).
            concept: the validated vectors of this concept alone.
            ids: these vectors alone, validated or not.
            model: the run's model, or where it is now; None for where the run read it.

        Returns:
            the path.
        """
        from conceptvec.export.choice import Choice
        from conceptvec.export.stage import export

        return export(self, path, to, Choice(concept, tuple(ids)), model).path

    @property
    def validated(self) -> list[dict[str, Any]]:
        """The validated entries, best first."""
        return [e for e in self["validation_results"] if e["validated"]]

    def __repr__(self) -> str:
        from conceptvec.show.tables import summary

        return summary(self)

    def _repr_html_(self) -> str:
        from conceptvec.show.tables import results_html

        return results_html(self)


def load_results(path: str | Path) -> Results:
    """Read a results file, or the one results file of a run folder.

    Raises:
        RequestError: there is none, or it is not a results file of this version.
    """
    return Results(load_document(path))


def _resolved_by(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the loaded model has settled, whatever a later call was given."""
    return {"model": facts["id"]} | {name: facts[name] for name in ("revision", "device", "dtype")}


def _stats(
    candidates: Candidates, scored: Scored | None, validation: Validation | None
) -> PipelineStats:
    total = candidates.total
    valid = sum(e["validated"] for e in validation.entries) if validation else None
    return {
        "total_candidates": total,
        "filtered_candidates": scored.filtered if scored else None,
        "concept_candidates": len(scored.entries) if scored else None,
        "tested_vectors": len(validation.entries) if validation else None,
        "validated_vectors": valid,
        "success_rate": plain(valid / total) if valid is not None and total else None,
    }


def _complexity(
    model: Weights | Model, candidates: Candidates, validation: Validation | None
) -> Complexity:
    shown = int((~candidates.masked).sum())
    flops = 2 * model.hidden_size * shown  # of one readout
    return {
        "projection_flops": flops * candidates.total,
        "full_scale_projection_flops": flops * model.n_layers * model.intermediate_size,
        "validation_flops": _validation_flops(model, validation) if validation else None,
        "parameters_examined": candidates.total * model.hidden_size,
    }


def _validation_flops(model: Any, validation: Validation) -> int:
    """Two operations per parameter: layers for replayed tokens, the unembedding for answers."""
    replayed, unembedded = validation.cost
    layer_parameters = sum(p.numel() for p in model.layers[0].parameters())
    rows = unembedded * model.hidden_size * model.vocab_size
    return 2 * int(replayed * layer_parameters + rows)


def _resources(candidates: Candidates, device: str) -> dict[str, int]:
    """Peak memory, and the readouts that the fast projection did not settle."""
    import torch

    repeated, full = (sum(int(p.fallbacks[i]) for p in candidates.layers) for i in (0, 1))
    resources = {
        "peak_memory_bytes": peak_memory(),
        "readouts_repeated": repeated,
        "readouts_ranked_in_full": full,
    }
    if device.startswith("cuda"):
        resources["peak_device_bytes"] = torch.cuda.max_memory_allocated(torch.device(device))
    return resources


def _scoring_part(scored: Scored | None, validation: Validation | None) -> dict[str, Any]:
    """Stage 2's fields, `document.scoring.ScoringPart`; empty where it did not run."""
    if scored is None:
        return {
            "candidate_distribution": {},
            "labels": {},
            "score_histogram": {},
            "scoring_nulls": {},
            "other_groups": [],
            "untested_candidates": [],
        }
    tested = {e["id"] for e in validation.entries} if validation else set[str]()
    return {
        "candidate_distribution": _per_concept(scored.entries, scored.concepts.names),
        "labels": scored.labels,
        "score_histogram": scored.histogram,
        "scoring_nulls": scored.null,
        "other_groups": scored.others,
        "untested_candidates": [e for e in scored.entries if e["id"] not in tested],
    }


def _validation_part(
    by_scan: ByScan | None, validation: Validation | None, config: Config
) -> dict[str, Any]:
    """Stage 3's fields, `conceptvec.document.validation.ValidationPart`; empty without it."""
    if by_scan is None or validation is None:
        return {
            "verdicts": {},
            "validation_results": [],
            "null_calibration": {},
            "effect_only": [],
            "concept_sets": [],
            "text": None,
            "scan_overview": None,
        }
    from conceptvec.validation.by_concept import with_effects

    scan, passages = by_scan.scan, by_scan.scan.passages
    tested = [by_scan.marked(entry) for entry in validation.entries]
    return {
        "verdicts": dict(sorted(Counter(e["verdict"] for e in validation.entries).items())),
        "validation_results": with_effects(tested, scan),
        "null_calibration": validation.null_calibration,
        "effect_only": with_effects(by_scan.effect_only, scan),
        "scan_overview": by_scan.overview,
        "concept_sets": validation.sets,
        "text": {
            "corpus": config.corpus,
            "digest": passages.digest,
            "passages": len(passages),
            "documents": len(np.unique(passages.documents)),
            "tokens": passages.tokens,
            "known_words": validation.known_words,
        },
    }


def _per_concept(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, int]:
    count = Counter(e["concept"] for e in entries)
    return {name: count[name] for name in names}
