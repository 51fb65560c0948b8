"""The results of a run: one JSON document with a schema, and what people read from it."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptvec.concepts import data
from conceptvec.config import Config
from conceptvec.errors import RequestError
from conceptvec.model.device import environment
from conceptvec.model.memory import peak_memory
from conceptvec.runfolder import write_atomic
from conceptvec.text import plain

if TYPE_CHECKING:
    from conceptvec.extraction.stage import Candidates
    from conceptvec.model.network import Model
    from conceptvec.scoring.stage import Scored
    from conceptvec.validation.stage import Validation

SCHEMA_VERSION = 1
VOLATILE = (
    "created",
    "environment",
    "timings",
    "resources",
)  # everything else repeats byte for byte


class Results(dict[str, Any]):
    """The results document: a dict; see the contract in the JSON Schema (`schema`)."""

    @classmethod
    def build(cls, model: Model, config: Config, scored: Scored, validation: Validation) -> Results:
        """The document of a complete run."""
        table, entries, cost = validation.table, validation.entries, validation.cost
        out = cls.partial(model, config, scored.candidates, scored)
        layer_parameters = sum(p.numel() for p in model.layers[0].parameters())
        valid = [e for e in entries if e["validated"]]
        total = scored.candidates.total
        out["pipeline_stats"] |= {
            "tested_vectors": len(entries), "validated_vectors": len(valid),
            "success_rate": plain(len(valid) / total) if total else None,
        }  # fmt: skip
        out["computational_complexity"]["validation_flops"] = 2 * int(
            cost[0] * layer_parameters + cost[1] * model.hidden_size * model.vocab_size
        )
        names = [n for n in table.groups if n != "neutral"]
        tested = {e["id"] for e in entries}
        out |= {
            "concept_distribution": _count(valid, scored.concepts.names),
            "verdicts": dict(sorted(Counter(e["verdict"] for e in entries).items())),
            "prompts": {
                n: {"prompts": len(table.groups[n]), "known": len(table.concept(n))} for n in [*names, "neutral"]
            },
            "validation_results": entries,
            "untested_candidates": [e for e in scored.entries if e["id"] not in tested],
            "null_calibration": validation.calibration,
        }  # fmt: skip
        out["agreement"]["damage"] = validation.agreement
        out["concept_sets"] = validation.sets
        out["timings"]["validation"] = validation.seconds
        return out

    @classmethod
    def partial(
        cls, model: Model, config: Config, candidates: Candidates, scored: Scored | None
    ) -> Results:
        """The document of a run that ends with Stage 1 or 2; what was not measured is null or empty."""
        from conceptvec.version import __version__

        shown = int((~candidates.masked).sum())
        flops = 2 * model.hidden_size * shown
        names = scored.concepts.names if scored else []
        return cls({
            "schema_version": SCHEMA_VERSION, "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "conceptvec_version": __version__, "configuration": config.resolved(), "model": model.facts(),
            "environment": environment(str(model.device)),
            "pipeline_stats": {
                "total_candidates": candidates.total, "filtered_candidates": scored.filtered if scored else None,
                "concept_candidates": len(scored.entries) if scored else None, "tested_vectors": None,
                "validated_vectors": None, "success_rate": None,
            },
            "computational_complexity": {
                "projection_flops": flops * candidates.total,
                "full_scale_projection_flops": flops * model.n_layers * model.intermediate_size,
                "validation_flops": None,
                "parameters_examined": candidates.total * model.hidden_size,
            },
            "timings": {"extraction": candidates.seconds} | ({"scoring": scored.seconds} if scored else {}),
            "resources": _resources(candidates, str(model.device)), "agreement": dict(candidates.agreement),
            "concept_distribution": {},
            "candidate_distribution": _count(scored.entries, names) if scored else {},
            "labels": scored.labels if scored else {},
            "score_histogram": scored.histogram if scored else {},
            "scoring_nulls": scored.null if scored else {},
            "other_groups": scored.others if scored else [],
            "untested_candidates": scored.entries if scored else [],
            "layers": [p.layer for p in candidates.layers],
            "verdicts": {}, "prompts": {}, "validation_results": [], "null_calibration": {},
        })  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the document as JSON, atomically, after checking it against the schema."""
        check(self, "the results")
        text = json.dumps(self, ensure_ascii=False, indent=1, allow_nan=False)
        path = Path(path)
        write_atomic(path, (text + "\n").encode("utf-8"))
        return path

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML file: summary, figures, a table to search and sort, a card per vector."""
        from conceptvec.show.report import to_html

        return to_html(self, path)

    @property
    def validated(self) -> list[dict[str, Any]]:
        """The validated entries, best first."""
        return [e for e in self["validation_results"] if e["validated"]]

    def __repr__(self) -> str:
        from conceptvec.show.display import summary

        return summary(self)

    def _repr_html_(self) -> str:
        from conceptvec.show.display import results_html

        return results_html(self)


def _resources(candidates: Candidates, device: str) -> dict[str, int]:
    """Peak memory of the process and the device, and how many readouts the fast projection did not settle."""
    import torch

    repeated, full = (sum(int(p.fallbacks[i]) for p in candidates.layers) for i in (0, 1))
    out = {
        "peak_memory_bytes": peak_memory(),
        "readouts_repeated": repeated,
        "readouts_ranked_in_full": full,
    }
    if device.startswith("cuda"):
        out["peak_device_bytes"] = torch.cuda.max_memory_allocated(torch.device(device))
    return out


def _count(entries: list[dict[str, Any]], names: list[str]) -> dict[str, int]:
    found = Counter(e["concept"] for e in entries)
    return {n: found[n] for n in names}


def schema() -> dict[str, Any]:
    """The JSON Schema of the results file."""
    return data("results.schema.json")


def check(document: Any, name: str) -> None:
    """Check a document against the schema.

    Raises:
        RequestError: it does not fit; the message names the place.
    """
    import jsonschema

    error = next(jsonschema.Draft202012Validator(schema()).iter_errors(document), None)
    if error is not None:
        raise RequestError(
            f"{name}: {error.json_path}: {error.message[:300]}; expected a conceptvec results file"
        )


def load_results(path: str | Path) -> Results:
    """Read a results file, or the one results file of a run folder.

    Raises:
        RequestError: there is none, or it is not a results file of this version.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("concept_vector_results_*.json"))
        if len(found) != 1:
            raise RequestError(
                f"{path}: found {len(found)} results files, expected one; name the file"
            )
        path = found[0]
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{path} is not a readable results file ({error}); give one that `conceptvec run` wrote"
        ) from None
    check(document, str(path))
    return Results(document)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
