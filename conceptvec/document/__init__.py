"""The results document: what it holds, stage by stage, and how a file of it is read and checked.

`Document` is the one description. ``data/results.schema.json`` is generated from the classes here,
their docstrings included, by ``scripts/make_schema.py``; a test keeps the two in agreement. Null
means: not measured. What is a tuple here is a list in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from conceptvec.concepts import data
from conceptvec.document.run import ExtractionPart, RunPart
from conceptvec.document.scoring import ScoringPart
from conceptvec.document.validation import ValidationPart
from conceptvec.errors import RequestError
from conceptvec.files import write_atomic

SCHEMA_VERSION = 2
VOLATILE = ("created", "environment", "timings", "resources")  # the rest repeats byte for byte


class Document(RunPart, ExtractionPart, ScoringPart, ValidationPart):
    """One run of conceptvec; null means: not measured."""


def schema() -> dict[str, Any]:
    """The JSON Schema of the results file."""
    return data("results.schema.json")


def check(document: Any, name: str) -> None:
    """Check a document against the schema.

    Raises:
        RequestError: it does not fit; the message names the place.
    """
    import jsonschema

    validator: Any = jsonschema.Draft202012Validator(schema())
    if (error := next(validator.iter_errors(document), None)) is not None:
        raise RequestError(
            f"{name}: {error.json_path}: {error.message[:300]}; expected a conceptvec results file"
        )


def load_document(path: str | Path) -> Document:
    """Read a results file, or the one results file of a run folder.

    Raises:
        RequestError: there is none, or it is not a results file of this version.
    """
    file = _results_file(Path(path).expanduser())
    try:
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{file} is not a readable results file ({error}); give one that `conceptvec run` wrote"
        ) from None
    check(document, str(file))
    return cast(Document, document)


def candidates(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidates of a run: those that were tested, best first, then the others."""
    return [*document["validation_results"], *document["untested_candidates"]]


def save_document(document: Any, path: str | Path) -> Path:
    """Write a document as JSON, atomically, after checking it against the schema."""
    check(document, "the results")
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    path = Path(path).expanduser()
    # Half a character, as in a folder's name of other bytes, becomes JSON's own escape.
    write_atomic(path, (text + "\n").encode("utf-8", "backslashreplace"))
    return path


def _results_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("concept_vector_results_*.json"))
    if len(files) != 1:
        raise RequestError(f"{path}: found {len(files)} results files, expected one; name the file")
    return files[0]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
