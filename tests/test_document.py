"""The results document: the committed schema is the one of the classes, and files of other kinds are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from make_schema import document_schema

from conceptvec import document as document_module
from conceptvec.cli import main
from conceptvec.document import check, keep_document, load_document, schema
from conceptvec.errors import RequestError
from conceptvec.results import Results, load_results
from tests.documents import UNTESTED, document, entry


def test_the_committed_schema_is_that_of_the_classes() -> None:
    assert schema() == document_schema(), "run: python scripts/make_schema.py"


@pytest.mark.parametrize("stages", ["1", "1,2", "1,2,3"])
def test_a_run_writes_no_field_that_the_schema_does_not_name(
    stages: str, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*tiny_run, "--layers", "1", "--stages", stages, "--json"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    written = json.loads(capsys.readouterr().out)
    errors = jsonschema.Draft202012Validator(document_schema(strict=True)).iter_errors(written)
    assert [f"{e.json_path}: {e.message[:200]}" for e in errors] == []


def test_saving_and_reading_loses_nothing(tmp_path: Path) -> None:
    path = Results(document()).save(tmp_path / "concept_vector_results_cpu.json")
    assert load_results(path) == document()
    assert load_document(tmp_path) == document()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"schema_version": 7}, "schema_version"),
        ({"layers": [-1]}, "layers[0]"),
        ({"validation_results": [entry(0, score=1.5)]}, "validation_results[0].score"),
        ({"validation_results": [entry(0, id="x")]}, "validation_results[0].id"),
        ({"validation_results": [entry(0, verdict="maybe")]}, "validation_results[0].verdict"),
        ({"validation_results": [entry(0, ci95=[0.1])]}, "validation_results[0].ci95"),
        ({"validation_results": [entry(0, top_tokens=[["a"]])]}, "top_tokens[0]"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change: dict[str, Any], place: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(document() | change, "it")
    assert f"{place}: " in str(caught.value)


def test_what_was_not_measured_may_be_null() -> None:
    check(document([entry(0, "inconclusive", **UNTESTED)]), "it")


def test_a_field_of_every_entry_cannot_be_missing() -> None:
    entries = [entry(0)]
    del entries[0]["q_value"]
    with pytest.raises(RequestError, match="'q_value' is a required property"):
        check(document(entries), "it")


def test_a_folder_of_two_results_is_ambiguous(tmp_path: Path) -> None:
    for device in ("cpu", "mps"):
        Results(document()).save(tmp_path / f"concept_vector_results_{device}.json")
    with pytest.raises(RequestError, match="found 2 results files, expected one"):
        load_document(tmp_path)


def test_a_copy_beside_the_results_is_not_in_their_way(tmp_path: Path) -> None:
    for name in ("cpu", "cpu_old", "backup"):
        Results(document()).save(tmp_path / f"concept_vector_results_{name}.json")
    assert load_document(tmp_path) == document()


@pytest.mark.parametrize("text", ["{", "[1, NaN]", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RequestError, match="not a readable results file"):
        load_document(tmp_path / "x.json")


def test_numbers_that_are_larger_than_any_are_refused(tmp_path: Path) -> None:
    """JSON lets them pass, and they are infinity where they are read."""
    for number in ("1e999", "-1e400", "9" * 400):
        text = json.dumps(document()).replace('"selectivity": 0.4', f'"selectivity": {number}', 1)
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(RequestError, match="larger than any number"):
            load_document(tmp_path / "x.json")


MISFITS = {
    "schema": ({"schema_version": 7}, r"\$.schema_version: 7 is not one of"),
    "NaN": ({"timings": {"load": float("nan")}}, r"\$.timings.load: nan is not JSON"),
    "infinity": ({"timings": {"load": float("inf")}}, r"timings.load: inf is not JSON"),
    "another kind": ({"timings": {"load": np.float32(1)}}, r"load: a float32 is not JSON"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_results_that_fit_no_schema_are_kept(kind: str, tmp_path: Path, caplog) -> None:
    change, said = MISFITS[kind]
    path = tmp_path / "concept_vector_results_cpu.json"
    kept = keep_document(document() | change, path)
    assert kept.name == "concept_vector_results_cpu.invalid.json" and not path.exists()
    assert re.search(said, caplog.text) and str(kept) in caplog.text
    as_written = json.loads(kept.read_text())
    lasting = document().keys() - change.keys()
    assert {key: as_written[key] for key in lasting} == {key: document()[key] for key in lasting}
    with pytest.raises(RequestError, match="not a readable results file|expected a conceptvec"):
        load_document(tmp_path)  # named as what it is, and never shown as results


def test_sound_results_take_the_place_of_those_that_were_not(tmp_path: Path) -> None:
    path = tmp_path / "concept_vector_results_cpu.json"
    keep_document(document() | {"schema_version": 7}, path)
    assert keep_document(document(), path) == path
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_document_is_checked_once_before_it_is_kept(tmp_path: Path, monkeypatch) -> None:
    """A check of a whole model's results takes eight seconds."""
    checked, check_one = [], document_module.misfit
    monkeypatch.setattr(
        document_module, "misfit", lambda one: checked.append(one) or check_one(one)
    )
    keep_document(document(), tmp_path / "concept_vector_results_cpu.json")
    assert len(checked) == 1
