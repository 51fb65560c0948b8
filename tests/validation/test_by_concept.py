"""Effects on every concept: the tested one's is the entry's own, and the survey of all poles agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conceptvec.effects.survey import read_survey
from conceptvec.records import pole_of
from conceptvec.results import Results, load_results


@pytest.fixture(scope="module")
def results(two_layers: Path) -> Results:
    return load_results(two_layers)


def test_every_entry_has_every_concept(results: Results) -> None:
    entries = results["validation_results"] + results["effect_only"]
    assert entries
    for entry in entries:
        assert list(entry["scan"]["by_concept"]) == ["animals", "colors"]


def test_the_concepts_own_effect_is_the_entrys(results: Results) -> None:
    for entry in results["validation_results"] + results["effect_only"]:
        own = entry["scan"]["by_concept"][entry["concept"]]
        assert own == pytest.approx(entry["scan"]["mean"], rel=1e-5, abs=1e-9)


def test_the_survey_of_all_poles_says_the_same(two_layers: Path, results: Results) -> None:
    survey = read_survey(two_layers)
    for entry in results["validation_results"]:
        pole = pole_of(entry["id"])
        at = survey.layers.index(pole.layer), pole.neuron, "+-".index(pole.sign)
        kept = [survey.mean[(c, *at)] for c in range(len(survey.concepts))]
        # The survey is kept in float16.
        np.testing.assert_allclose(
            list(entry["scan"]["by_concept"].values()), kept, rtol=2e-3, atol=1e-7
        )
