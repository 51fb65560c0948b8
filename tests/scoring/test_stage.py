"""Stage 2 as a whole, on the demo: what it returns and keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import conceptvec as cv
from conceptvec.concepts import load_concepts
from conceptvec.document import check
from conceptvec.results import Results
from conceptvec.runfolder import RunFolder
from conceptvec.scoring.nulls import DIRECTIONS
from conceptvec.tools.scored_poles import read_poles

CONCEPTS = load_concepts(None, with_prompts=False)


@pytest.fixture(scope="module")
def demo() -> Any:
    config = cv.Config(device="cpu", layers="1-2", concepts=None)
    model = cv.load_model(config)
    candidates = cv.extract(model, config)
    return config, model, candidates, cv.score(candidates, model, config)


def test_the_null_is_counted_per_layer(demo: Any) -> None:
    null = demo[3].null
    assert [layer["layer"] for layer in null["layers"]] == [1, 2]
    assert null["lists"] == sum(layer["lists"] for layer in null["layers"]) == 4 * DIRECTIONS
    assert null["share"] == null["reached_threshold"] / null["lists"]


def test_every_pole_has_an_answer(demo: Any) -> None:
    scored = demo[3]
    assert sum(scored.labels.values()) == 2 * scored.filtered == len(scored.poles)


def test_the_results_document_holds_it(demo: Any) -> None:
    config, model, candidates, scored = demo
    document = Results.build(model, config, candidates, scored)
    check(document, "the results")
    assert len(document["untested_candidates"]) == len(scored.selected) > 0


def test_candidates_reach_the_threshold_and_show_their_evidence(demo: Any) -> None:
    config, *_, scored = demo
    parts = {
        "share", "rival_share", "words", "standout", "one_word", "distinct_words", "signs",
        "coherence", "coherence_percentile", "kurtosis", "null_percentile",
    }  # fmt: skip
    for candidate in scored.selected:
        assert candidate.score >= config.score_threshold
        assert candidate.components.keys() == parts


def test_the_best_candidates_come_first(demo: Any) -> None:
    scores = [candidate.score for candidate in demo[3].selected]
    assert scores == sorted(scores, reverse=True)


def test_the_table_agrees_with_the_candidates(demo: Any) -> None:
    scored = demo[3]
    of_table = {(pole.pole.id, pole.concept) for pole in scored.poles if pole.label == "concept"}
    assert of_table == {(candidate.id, candidate.concept) for candidate in scored.selected}


def test_it_is_deterministic(demo: Any) -> None:
    config, model, candidates, scored = demo
    again = cv.score(candidates, model, config)
    assert (again.selected, again.others, again.null) == (
        scored.selected,
        scored.others,
        scored.null,
    )


def test_the_table_is_kept_in_the_run_folder(demo: Any, tmp_path: Any) -> None:
    config, model, candidates, scored = demo
    cv.score(candidates, model, config, RunFolder(tmp_path, config, model.facts()))
    kept = read_poles(tmp_path)
    assert [pole.entry() for pole in kept] == [pole.entry() for pole in scored.poles]


def test_the_sign_of_the_null_seed_is_the_run_s(demo: Any) -> None:
    config, model, _, scored = demo
    reseeded = dataclasses.replace(config, seed=1)
    other = cv.score(cv.extract(model, reseeded), model, reseeded)
    assert not np.array_equal(other.histogram["null"], scored.histogram["null"])
    assert [found.id for found in other.selected] == [found.id for found in scored.selected]


def test_words_in_place_are_scored_and_calibrated_like_the_rest(demo: Any) -> None:
    """A concept given by its words alone has candidates that are listed and not tested."""
    config, model, candidates, scored = demo
    name = sorted({candidate.concept for candidate in scored.selected})[0]
    words = next(c for c in CONCEPTS.concepts if c.name == name).words["en"]
    own = dataclasses.replace(config, concepts=f"mine={','.join(words)}")
    found = cv.score(candidates, model, own)
    assert {candidate.concept for candidate in found.selected} == {"mine"}
    assert "mine" not in found.concepts.prompts()
    assert found.null["lists"] == 4 * DIRECTIONS


def test_a_cell_shows_candidates_and_groups(demo: Any) -> None:
    html = demo[3]._repr_html_()
    assert demo[3].selected[0].id in html
    assert "largest groups" in html
