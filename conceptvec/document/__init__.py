"""The results document: what it holds, stage by stage, and how a file of it is read and checked.

`Document` is the one description. ``data/results.schema.json`` is generated from the classes here,
their docstrings included, by ``scripts/make_schema.py``; a test keeps the two in agreement. Null
means: not measured. What is a tuple here is a list in the file.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from conceptvec.concepts import data
from conceptvec.document.run import ExtractionPart, RunPart
from conceptvec.document.scoring import ScoringPart
from conceptvec.document.validation import ValidationPart
from conceptvec.errors import RequestError
from conceptvec.files import write_atomic

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
RESULTS = r"concept_vector_results_(cuda|mps|cpu)(\.invalid)?\.json"  # names that a run gives
INVALID = ".invalid.json"  # how a file of results ends that do not fit the schema
VOLATILE = ("created", "environment", "timings", "resources")  # the rest repeats byte for byte


class Document(RunPart, ExtractionPart, ScoringPart, ValidationPart):
    """One run of conceptvec; null means: not measured."""


def schema() -> dict[str, Any]:
    """The JSON Schema of the results file."""
    return data("results.schema.json")


def misfit(document: Any) -> str | None:
    """What of a document does not fit the schema, with its place; None where all does."""
    import jsonschema

    validator: Any = jsonschema.Draft202012Validator(schema())
    if (error := next(validator.iter_errors(document), None)) is not None:
        return f"{error.json_path}: {error.message[:300]}"
    try:
        return _no_json(document, "$")
    except RecursionError:
        return "$: lists in lists, deeper than can be read"


def _no_json(value: Any, place: str) -> str | None:
    """Where something is that JSON cannot hold, though the schema lets it pass, such as NaN."""
    inside: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        inside = ((f"{place}.{name}", field) for name, field in fields.items())
    elif isinstance(value, list | tuple):
        items = cast("list[Any]", value)
        inside = ((f"{place}[{row}]", item) for row, item in enumerate(items))
    elif isinstance(value, float) and not math.isfinite(value):
        return f"{place}: {value} is not JSON"
    elif value is not None and not isinstance(value, str | int | float):
        return f"{place}: a {type(value).__name__} is not JSON"
    return next(filter(None, (_no_json(part, where) for where, part in inside)), None)


def check(document: Any, name: str) -> None:
    """Check a document against the schema.

    Raises:
        RequestError: it does not fit; the message names the place.
    """
    if (wrong := misfit(document)) is not None:
        raise RequestError(f"{name}: {wrong}; expected a conceptvec results file")


def load_document(path: str | Path) -> Document:
    """Read a results file, or the one results file of a run folder.

    Raises:
        RequestError: there is none, or it is not a results file of this version.
    """
    file = _results_file(Path(path).expanduser())
    try:
        document = json.loads(
            file.read_text(encoding="utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
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
    """Write a document as JSON, atomically, after checking it against the schema.

    Raises:
        RequestError: it does not fit.
    """
    check(document, "the results")
    return _write_checked(document, Path(path).expanduser())


def keep_document(document: Any, path: Path) -> Path:
    """Write what a run has measured, whatever it is.

    Results that do not fit the schema are a fault of this program, and no reason to lose them:
    they stand in a file beside, whose name says so, and in which NaN is written as Python does.

    Returns:
        the path of the file.
    """
    invalid = invalid_path(path)
    wrong = misfit(document)
    if wrong is None:
        _write_checked(document, path)
        invalid.unlink(missing_ok=True)  # an earlier version's
        return path
    text = json.dumps(document, ensure_ascii=False, indent=1, default=repr, skipkeys=True)
    logger.warning(
        "the results do not fit their own schema (%s): they are kept in %s, and all finished "
        "parts with them. This is a fault of conceptvec; please report it",
        wrong,
        invalid,
    )
    return _write(text, invalid)


def results_name(device: str) -> str:
    """What the results file of a run on a device is called."""
    return f"concept_vector_results_{device.partition(':')[0]}.json"


def invalid_path(path: Path) -> Path:
    """Where results are kept that do not fit the schema, by where they would be."""
    return path.with_name(path.name.removesuffix(".json") + INVALID)


def _write_checked(document: Any, path: Path) -> Path:
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    return _write(text, path)


def _write(text: str, path: Path) -> Path:
    # Half a character, as in a folder's name of other bytes, becomes JSON's own escape.
    write_atomic(path, (text + "\n").encode("utf-8", "backslashreplace"))
    return path


def _results_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("concept_vector_results_*.json"))
    run_files = [file for file in files if re.fullmatch(RESULTS, file.name)]
    files = run_files or files  # a copy beside the results is not in their way
    if len(files) != 1:
        raise RequestError(f"{path}: found {len(files)} results files, expected one; name the file")
    return files[0]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is larger than any number")
    return number


def _whole(text: str) -> int:
    _finite(text)
    return int(text)
