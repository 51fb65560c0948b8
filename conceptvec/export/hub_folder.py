"""A folder for the Hub: vectors, results, report and a card that says what they are.

Nothing is uploaded here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import torch

from conceptvec.config import FOLDS
from conceptvec.document import results_name, save_document
from conceptvec.errors import RequestError
from conceptvec.export.choice import WORDS
from conceptvec.export.vectors import save_vectors
from conceptvec.files import Kind
from conceptvec.model.weights import Weights
from conceptvec.records import pole_of
from conceptvec.runfolder import VECTORS, write_atomic
from conceptvec.show.report import is_page, to_html
from conceptvec.show.tables import summary
from conceptvec.text import number, table, words_of

HEADERS = ("id", "concept", "layer", "pole", "scale", "concept drop", "unrelated", "tokens")


def written_files(document: Mapping[str, Any]) -> dict[str, Kind]:
    """The files of the folder, and how each begins: results, vectors, report, card."""
    return {
        results_name(str(document["model"]["device"])): (
            lambda begin: b'"schema_version"' in begin,
            "results file",
        ),
        VECTORS: (lambda begin: b'{"__metadata__":{"concepts"' in begin, "file of vectors"),
        "report.html": (is_page, "report of conceptvec"),
        "README.md": (lambda begin: b"- concept-vectors\n" in begin, "card of concept vectors"),
    }


def save_folder(document: Mapping[str, Any], model: Weights, folder: Path) -> None:
    """Write the folder.

    Raises:
        RequestError: the results do not say how the vectors are folded, or name one that the model
            does not have.
    """
    validated = [entry for entry in document["validation_results"] if entry["validated"]]
    for entry in validated:
        model.check_place(pole_of(entry["id"]))
    fold = document["configuration"].get("fold")
    if fold not in FOLDS:
        raise RequestError(f"--to hf: the results' fold is {fold!r}, expected {', '.join(FOLDS)}")
    results, vectors, report, readme = (folder / name for name in written_files(document))
    text = card(document, model)
    save_document(document, results)
    save_vectors(model, fold, validated, vectors)
    to_html(document, report)
    write_atomic(readme, text.encode("utf-8", "backslashreplace"))


def card(document: Mapping[str, Any], model: Weights) -> str:
    """The model card: YAML that the Hub reads, then what the vectors are and how to use them."""
    validated = [entry for entry in document["validation_results"] if entry["validated"]]
    facts = document["model"]
    rows = [_row(entry, model) for entry in validated]
    from_hub = facts["revision"] is not None  # else the name is a folder's, and no base model
    text = resources.files("conceptvec") / "data" / "card.md"
    return Template(text.read_text(encoding="utf-8")).substitute(
        base_model=f"base_model: {json.dumps(facts['id'])}\n" if from_hub else "",
        model=_escaped(facts["id"]),
        revision=facts["revision"] or "none (a local model)",
        fingerprint=facts["fingerprint"],
        layers=facts["layers"],
        hidden_size=facts["hidden_size"],
        version=document["conceptvec_version"],
        summary=_escaped(summary(document)).replace("\n", "\n\n"),
        rows=table(rows, HEADERS, "pipe"),
        example=json.dumps({validated[0]["id"] if validated else "L12_N0345+": 4.0}),
    )


def _row(entry: Mapping[str, Any], model: Weights) -> list[str]:
    pole = pole_of(entry["id"])
    scale = torch.linalg.vector_norm(model.value_vectors(pole.layer)[pole.neuron].float())
    return [
        f"`{pole.id}`",
        _escaped(entry["concept"]),
        str(pole.layer),
        f"`{pole.sign}`",
        number(float(scale)),
        number(entry["concept_drop"]),
        number(entry["unrelated_drop"]),
        _escaped(words_of(token for token, _ in entry["top_tokens"][:WORDS])),
    ]


def _escaped(text: str) -> str:
    """Text of a vocabulary or a user in Markdown: nothing in it marks anything up."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", text)
