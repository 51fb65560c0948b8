"""The texts with and without a vector: which are shown, and that none of them breaks a page."""

from __future__ import annotations

from typing import Any

import pytest

import conceptvec as cv
from conceptvec.tools.texts import NOTHING
from tests.documents import HOSTILE

WAYS = {"clean": " dogs\nran", "removed": f" {HOSTILE}", "amplified": " dog dog"}


def run_of(*concepts: str, validated: bool = True) -> dict[str, Any]:
    """A results document with one entry for each concept, best first."""
    entries = [
        {
            "id": f"L00_N{number:04d}+",
            "concept": concept,
            "validated": validated,
            "top_tokens": [[" dog", 2.0], [HOSTILE, 1.0]],
            "continuations": [{"prompt": "The two", **WAYS}],
        }
        for number, concept in enumerate(concepts)
    ]
    return {"validation_results": entries}


def test_different_concepts_come_first() -> None:
    run = run_of("animals", "animals", "colors", "animals")
    assert [text["id"] for text in cv.texts(run)] == ["L00_N0000+", "L00_N0002+", "L00_N0001+"]


def test_a_text_that_changes_comes_first() -> None:
    run = run_of("animals", "colors", "food")
    run["validation_results"][0]["continuations"] = [
        {"prompt": "The", **WAYS, "removed": WAYS["clean"]}
    ]
    assert [text["concept"] for text in cv.texts(run)] == ["colors", "food", "animals"]
    assert repr(cv.texts(run, limit=1)).startswith("3 validated vectors with a text; ")
    assert "changes 2 of the texts" in cv.texts(run)._repr_html_()


def test_all_three_texts_are_shown_on_one_line_each() -> None:
    shown = repr(cv.texts(run_of("animals"), limit=1)).splitlines()[2:]
    assert shown[1] == "  The two …"
    assert [line.split(":")[1].strip() for line in shown[2:]] == ["dogs ran", HOSTILE, "dog dog"]


def test_a_cell_escapes_what_a_model_wrote() -> None:
    shown = cv.texts(run_of("animals"))._repr_html_()
    assert HOSTILE not in shown
    assert "without the vector" in shown


@pytest.mark.parametrize("run", [run_of(), run_of("animals", validated=False)])
def test_a_run_without_a_validated_vector_says_so(run: dict[str, Any]) -> None:
    assert repr(cv.texts(run)) == NOTHING
    assert NOTHING in cv.texts(run)._repr_html_()
