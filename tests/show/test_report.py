"""The HTML report: complete, self-contained, and no text of a vocabulary becomes markup or script."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from conceptvec import cli
from conceptvec.results import Results
from conceptvec.show import figures
from tests.documents import HOSTILE, candidate, document, entry
from tests.pages import Page

TAGS = set(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "nav",
        "a",
        "h1",
        "h2",
        "p",
        "div",
        "figure",
        "img",
        "input",
        "span",
        "noscript",
        "table",
        "thead",
        "tr",
        "th",
        "button",
        "tbody",
        "td",
        "script",
    ]
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = Results(document()).to_html(tmp_path_factory.mktemp("report") / "report.html")
    return path.read_text("utf-8")


@pytest.fixture
def page(text: str) -> Page:
    return Page(text)


def test_no_tag_loads_anything(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base"), tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), tag
        assert not [name for name in attributes if name.startswith("on")], tag


@pytest.mark.parametrize("address", ["http", "url(", "@import"])
def test_nothing_outside_the_data_names_an_address(text: str, address: str) -> None:
    outside = re.sub(r'<script type="application/octet-stream".*?</script>', "", text, flags=re.S)
    outside = re.sub(r'src="data:image/png;base64,[^"]*"', "", outside)
    assert address not in outside.replace("http-equiv", "")


def test_the_policy_forbids_every_request(page: Page) -> None:
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert policy and policy.startswith("default-src 'none'")


def test_every_measured_figure_is_inside(page: Page) -> None:
    pictures = [a["src"] or "" for a in page.all("img")]
    assert len(pictures) == len([n for n in figures.measured(document()) if n != "vector_card"])
    for picture in pictures:
        assert base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG")


def test_every_tested_vector_has_a_row_and_a_card(page: Page) -> None:
    ids = [e["id"] for e in document()["validation_results"]]
    assert [a["data-id"] for a in page.all("tr") if "data-id" in a] == ids
    assert [e["id"] for e in page.data] == ids


def test_cards_hold_the_documents_numbers(page: Page) -> None:
    second = document()["validation_results"][1]
    assert page.data[1]["damage"] == second["damage"]
    assert page.data[1]["opposite_tokens"][1] == [" only1", -0.5]


def test_cards_ask_for_fields_that_entries_have(text: str) -> None:
    asked = set(re.findall(r"\bentry\??\.([a-z]\w*)", text[text.rindex("<script>") :]))
    # Those that the scan alone found have a q of their own.
    assert asked - set(entry(0)) - {"q"} == set()
    assert "n_concept_positions" in asked


def test_vocabulary_text_becomes_no_markup(page: Page, text: str) -> None:
    assert {tag for tag, _ in page.tags} <= TAGS
    assert text.count("</script>") == 2
    assert "<i>model</i>" in "".join(page.texts)


def test_vocabulary_text_stays_text(page: Page) -> None:
    assert HOSTILE in [token for token, _ in page.data[0]["top_tokens"]]


@pytest.mark.parametrize("character", ["\x1b", "\u202e"])
def test_control_characters_are_gone(text: str, character: str) -> None:
    assert character not in text


def page_of(results: dict[str, Any], tmp_path: Path) -> Page:
    return Page(Results(results).to_html(tmp_path / "page.html").read_text("utf-8"))


def test_sets_are_shown(tmp_path: Path) -> None:
    sets = {
        "concept": "animals",
        "vectors": [[1, 2], [3, 4]],
        "selectivity": 1.25,
        "random_selectivity": [-0.5, 0.0, 0.25],
    }
    texts = page_of(document() | {"concept_sets": [sets]}, tmp_path).texts
    assert {"Sets damaged together", "1.250", "2", "-0.500 … 0.000 … 0.250"} - set(texts) == set()


def test_a_run_of_stages_1_and_2_has_its_candidates_and_groups(tmp_path: Path) -> None:
    tokens = [[HOSTILE, 0.5], ["cat", 0.4]]
    untested = candidate(1) | {"id": "L01_N0002+", "score": 0.91, "top_tokens": tokens}
    group = {"name": "who", "tokens": ["who", HOSTILE], "ids": ["L01_N0003+", "L01_N0004-"]}
    stopped = document([]) | {"untested_candidates": [untested], "other_groups": [group]}
    stopped |= {"scan_overview": None}
    stopped["pipeline_stats"] |= {"tested_vectors": None}
    page = page_of(stopped, tmp_path)
    assert {"Candidates", "L01_N0002+", "0.91"} <= set(page.texts)
    assert "Tested vectors" not in page.texts
    assert any("the same `conceptvec run`" in text for text in page.texts)
    assert "The largest groups outside the concepts" in page.texts
    assert not page.all("img") or all("onerror" not in image for image in page.all("img"))


def test_continuations_are_in_the_card(tmp_path: Path) -> None:
    texts = [{"prompt": "The dog", "clean": " barks", "removed": " is", "amplified": " dog"}]
    page = page_of(document([entry(0, continuations=texts)]), tmp_path)
    assert page.data[0]["continuations"] == texts


def test_a_run_of_stage_1_has_a_report(tmp_path: Path) -> None:
    bare = document([])
    bare |= {"score_histogram": {}, "candidate_distribution": {}, "concept_distribution": {}}
    bare["null_calibration"] = {}
    bare["pipeline_stats"] |= {"tested_vectors": None, "concept_candidates": None}
    assert any(text.startswith("Stage 1 only") for text in page_of(bare, tmp_path).texts)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    Results(document([])).save(tmp_path / "concept_vector_results_cpu.json")
    return tmp_path


def test_the_command_writes_beside_the_results(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert str(run / "report.html") in capsys.readouterr().out


def test_the_command_writes_where_it_is_told(run: Path) -> None:
    assert cli.main(["report", str(run), "--out", str(run / "new" / "x.html")]) == 0
    assert (run / "new" / "x.html").is_file()


def test_a_report_of_nothing_is_a_bad_request(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(run / "nothing")]) == 2
    assert "not a readable results file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "place", [".", "/", "results.json", "notes.txt", "picture.png", "page.html"]
)
def test_a_report_replaces_nothing_that_is_no_page(
    place: str, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Results(document()).save("results.json")
    Path("notes.txt").write_text("mine")
    Path("picture.png").write_bytes(b"\x89PNG")
    Path("page.html").write_text("<!doctype html><title>somebody's own</title>")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert cli.main(["report", "results.json", "--out", place]) == 2
    error = capsys.readouterr().err
    assert error.startswith("conceptvec: --out: ")
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_report_replaces_a_page(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Results(document()).save("results.json")
    Path("empty.html").touch()
    for place in ("report.html", "report.html", "empty.html"):
        assert cli.main(["report", "results.json", "--out", place]) == 0


@pytest.mark.parametrize(
    "edit",
    [
        {"null_calibration": {}},
        {"null_calibration": {"n": 5}},
        {"null_calibration": {"moved": {"n": 3}}},
        {"damage": []},
    ],
)
def test_results_edited_by_hand_are_shown_or_refused(edit, tmp_path, capsys) -> None:
    results = Results(document())
    if "damage" in edit:
        results["configuration"] |= edit
    else:
        results |= edit
    (tmp_path / "r.json").write_text(json.dumps(results))
    for argv in (["show"], ["show", "--all"], ["report"]):
        assert cli.main([argv[0], str(tmp_path / "r.json"), *argv[1:]]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
