"""Every format that a run can be taken along in: what goes in, and what is written.

GGUF, Neuronpedia and the Hub's folder need the model's weights, which are read from where the run
read them; a table needs the results alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptvec.concepts import is_file
from conceptvec.document import candidates
from conceptvec.errors import RequestError
from conceptvec.export.choice import Choice, taken_vectors, weights_of
from conceptvec.export.control_vector import (
    ARCHITECTURE,
    one_concept,
    save_control_vector,
    without_layer_0,
)
from conceptvec.export.hub_folder import save_folder, written_files
from conceptvec.export.neuronpedia import before_a_layer, save_uploads
from conceptvec.export.tabular import COLUMNS, entries_table
from conceptvec.files import Kind, check_place
from conceptvec.model.ambient import set_aside
from conceptvec.model.weights import Weights
from conceptvec.runfolder import write_atomic


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: where.
        ids: the vectors in it.
    """

    path: Path
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """What is asked for: see `export`."""

    document: Mapping[str, Any]
    path: Path
    choice: Choice
    model: Weights | str | None

    def weights(self) -> Weights:
        """The run's weights."""
        return weights_of(self.document, self.model)


@set_aside
def export(
    document: Mapping[str, Any],
    path: str | Path,
    to: str,
    choice: Choice | None = None,
    model: Weights | str | None = None,
) -> Exported:
    """Write what other tools read.

    Args:
        document: the results of a run.
        path: the file, or for `hf` the folder.
        to: one of `FORMATS`.
        choice: which vectors; None for all that were validated.
        model: the run's model, or where it is now; None for where the run read it.

    Raises:
        RequestError: the format, the choice or the model does not fit.
        RunError: the file cannot be written.
    """
    if to not in FORMATS:
        raise RequestError(f"--to: got {to!r}, expected one of: {', '.join(FORMATS)}")
    request = Request(document, Path(path).expanduser(), choice or Choice(), model)
    _check_places(request, to)  # before any weights are read
    return Exported(request.path, tuple(FORMATS[to](request)))


def _check_places(request: Request, to: str) -> None:
    """Refuse to replace what `export` did not write, such as the model or the results themselves.

    Raises:
        RequestError: something else is there.
    """
    if to in KINDS:
        check_place(request.path, *KINDS[to])
        return
    if is_file(str(request.path)):
        raise RequestError(f"--out: {request.path} is a file; give a folder")
    for name, kind in written_files(request.document).items():
        check_place(request.path / name, *kind)


def _gguf(request: Request) -> list[str]:
    vectors = taken_vectors(request.document, request.choice)
    vectors = vectors if request.choice.ids else one_concept(vectors)
    vectors = without_layer_0(vectors)
    save_control_vector(request.weights(), vectors, request.path)
    return [taken.pole.id for taken in vectors]


def _neuronpedia(request: Request) -> list[str]:
    model = request.weights()
    vectors = before_a_layer(model, taken_vectors(request.document, request.choice))
    save_uploads(model, vectors, request.path)
    return [taken.pole.id for taken in vectors]


def _csv(request: Request) -> list[str]:
    concept, ids = request.choice.concept, request.choice.ids
    entries = [
        entry
        for entry in candidates(request.document)
        if concept in (None, entry["concept"]) and (not ids or entry["id"] in ids)
    ]
    taken = {entry["id"] for entry in entries}
    missing = [name for name in ids if name not in taken]
    if missing or (concept and not entries):
        raise RequestError(
            f"--concept, --id: no candidate of this run is {', '.join(missing) or concept}; "
            "conceptvec poles lists all"
        )
    text = entries_table(entries).to_csv(index=False)
    write_atomic(request.path, text.encode("utf-8", "backslashreplace"))
    return [entry["id"] for entry in entries]


def _hf(request: Request) -> list[str]:
    if request.choice != Choice():
        raise RequestError("--to hf takes the whole run; leave --concept and --id out")
    save_folder(request.document, request.weights(), request.path)
    return [e["id"] for e in request.document["validation_results"] if e["validated"]]


# How a file begins that each format writes, and what it is called.
KINDS: dict[str, Kind] = {
    "gguf": (lambda begin: ARCHITECTURE.encode() in begin, "control vector"),
    "csv": (lambda begin: begin.startswith(",".join(COLUMNS[:4]).encode()), "table of candidates"),
    "neuronpedia": (
        lambda begin: begin.lstrip()[:1] == b"[" and b'"modelId"' in begin,
        "list of Neuronpedia's uploads",
    ),
}
FORMATS: dict[str, Callable[[Request], list[str]]] = {
    "gguf": _gguf,
    "csv": _csv,
    "neuronpedia": _neuronpedia,
    "hf": _hf,
}
