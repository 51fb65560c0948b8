"""Results in a terminal and in a notebook cell."""

from __future__ import annotations

from typing import Any

import pytest

import conceptvec as cv
from conceptvec import Config
from conceptvec.model.network import Model
from conceptvec.results import Results
from conceptvec.show.tables import results_table, summary
from tests.documents import document, entry


def test_terminal_text_has_no_control_characters() -> None:
    assert all(ch.isprintable() or ch == "\n" for ch in results_table(document()))


def test_the_summary_counts_what_is_in_the_document() -> None:
    lines = summary(document()).splitlines()
    assert lines == [
        "<i>model</i> on cpu in float32: 64 neurons examined, 6 concept candidates, 6 tested",
        "2 validated vectors in 2 of 3 concepts (other verdicts: 1 not specific, 1 no effect, "
        "1 inactive, 1 inconclusive)",
        "controls validated: 0 of 2 null neurons, 0 of 2 candidates under a wrong concept, "
        "0 of 20 vectors moved to other neurons",
    ]


@pytest.mark.parametrize(
    ("scored", "said"),
    [
        (None, "Stage 1 only, from the weights alone"),
        (7, "Stages 1 and 2 only, nothing was damaged: 7 animals"),
    ],
)
def test_a_run_that_stops_early_says_where(scored: int | None, said: str) -> None:
    stopped = document([])
    stopped["pipeline_stats"] |= {"concept_candidates": scored, "tested_vectors": None}
    stopped["candidate_distribution"] = {"animals": scored or 0}
    assert summary(stopped).splitlines()[-1].startswith(said)


def test_a_long_table_says_how_much_is_left() -> None:
    entries = [entry(i) for i in range(5)]
    assert "… and 3 more (--all)" in results_table(document(entries), 2)
    assert "more" not in results_table(document(entries), None)


CANDIDATE = {
    "id": "L01_N0002+",
    "concept": "animals",
    "score": 0.91,
    "top_tokens": [[" <i>dog", 0.5], ["cat", 0.4]],
}
GROUP = {"name": "who", "tokens": ["who", " whom"], "ids": ["L01_N0003+", "L01_N0004-"]}


def test_a_run_of_stages_1_and_2_shows_its_candidates() -> None:
    stopped = document([]) | {"untested_candidates": [CANDIDATE] * 3}
    text = results_table(stopped, 2)
    assert "L01_N0002+  animals    0.91     <i>dog cat" in text
    assert "… and 1 more (--all)" in text
    assert "nats" not in text


def test_groups_outside_the_concepts_are_shown() -> None:
    text = results_table(document() | {"other_groups": [GROUP] * 12})
    assert text.count("who whom") == 10
    assert "The largest groups outside the concepts" in text
    assert "groups" not in results_table(document())


def test_results_show_their_summary() -> None:
    assert repr(Results(document())) == summary(document())


def test_results_in_a_cell_are_escaped() -> None:
    shown = Results(document())._repr_html_()
    for tag in ("<img", "<i>", "<b>"):
        assert tag not in shown
    assert "&lt;i&gt;model" in shown
    assert shown.count("<tr>") == 7  # the head and six entries


@pytest.fixture
def candidates(tiny: Model, config: Config) -> Any:
    return cv.extract(tiny, config)


def test_stage_1_shows_itself(candidates: Any) -> None:
    assert "96 neurons" in repr(candidates)
    assert candidates._repr_html_().count("<tr>") > 10


def test_stage_2_shows_itself(candidates: Any, tiny: Model, config: Config) -> None:
    assert "concept candidates" in cv.score(candidates, tiny, config)._repr_html_()


def test_a_dollar_in_a_cell_begins_no_formula() -> None:
    """MathJax and KaTeX leave out what stands in an element of these classes."""
    from conceptvec.show.explorer import card
    from conceptvec.show.tables import results_html

    for markup in (results_html(document()), card(document()["validation_results"][0])):
        assert markup.startswith('<div class="tex2jax_ignore mathjax_ignore">')
        assert markup.endswith("</div>")
    assert "$x_1$" in card(document()["validation_results"][0])
