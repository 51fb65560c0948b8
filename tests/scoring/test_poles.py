"""The table of all scored poles: kept in the run folder, read without the model."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import conceptvec as cv
from conceptvec.cli import main
from conceptvec.runfolder import RunFolder
from conceptvec.scoring.answers import Lists
from conceptvec.scoring.poles import PART, Collector, PoleTable, distinct_words
from conceptvec.tools.scored_poles import read_poles

TOKENS = [" dog", "Dog", " cat", " red", ";", " owl"]
NAMES = ("animals", "colors")
MODEL = {"fingerprint": "f", "dtype": "float32", "device": "cpu"}


def make_table() -> PoleTable:
    """Two neurons of layer 3 and one of layer 1, both poles."""
    collector = Collector(NAMES, TOKENS)
    first = np.array([[True, False, True, False], [True, True, False, True]])
    for sign, labels, scores in ((1, [0, -3], [0.9, 0.2]), (-1, [-1, 1], [0.1, 0.8])):
        lists = Lists(np.array(labels), np.array([0, 1]), np.array(scores), {}, first)
        ids = np.array([[0, 1, 2, 4], [3, 5, 3, 0]])
        collector.add(3, np.array([7, 5]), sign, ids, lists)
    signs = Lists(np.array([-2]), np.array([-1]), np.array([0.0]), {}, np.zeros((1, 2), bool))
    collector.add(1, np.array([4]), 1, np.array([[4, 4]]), signs)
    return collector.table()


def test_the_poles_are_in_order_of_layer_neuron_and_sign() -> None:
    ids = [pole.pole.id for pole in make_table()]
    assert ids == ["L01_N0004+", "L03_N0005+", "L03_N0005-", "L03_N0007+", "L03_N0007-"]


def test_an_entry_is_what_the_command_prints() -> None:
    assert make_table()[3].entry() == {
        "id": "L03_N0007+",
        "label": "concept",
        "concept": "animals",
        "nearest": "animals",
        "score": 0.9,
        "words": ["dog", "cat"],
    }


def test_a_pole_of_no_concept_names_the_nearest() -> None:
    entry = make_table()[1].entry()
    assert (entry["label"], entry["concept"], entry["nearest"]) == ("lexical", None, "colors")


def test_a_list_without_words_shows_its_tokens() -> None:
    assert make_table()[0].words == (";", ";")


@pytest.mark.parametrize(
    ("wish", "ids"),
    [
        ({"concept": "colors"}, ["L03_N0005-"]),
        ({"label": "concept"}, ["L03_N0007+", "L03_N0005-"]),
        ({"label": "none"}, ["L03_N0007-"]),
        ({"layers": [1]}, ["L01_N0004+"]),
        ({"concept": "colors", "layers": [1]}, []),
    ],
)
def test_poles_are_selected_and_the_best_come_first(wish: dict, ids: list[str]) -> None:
    assert [pole.pole.id for pole in make_table().select(**wish)] == ids


@pytest.mark.parametrize(
    ("wish", "place"), [({"concept": "cars"}, "--concept"), ({"label": "nice"}, "--label")]
)
def test_unknown_names_are_refused(wish: dict, place: str) -> None:
    with pytest.raises(cv.RequestError, match=place):
        make_table().select(**wish)


def test_the_table_survives_the_run_folder(tmp_path: Path) -> None:
    table = make_table()
    RunFolder(tmp_path, cv.Config(device="cpu"), MODEL).save(PART, table.arrays())
    assert [p.entry() for p in read_poles(tmp_path)] == [p.entry() for p in table]


def test_it_is_read_without_torch(tmp_path: Path) -> None:
    RunFolder(tmp_path, cv.Config(device="cpu"), MODEL).save(PART, make_table().arrays())
    code = (
        "import sys; from conceptvec.tools.scored_poles import read_poles;"
        f"assert len(read_poles({str(tmp_path)!r})) == 5; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_without_the_table_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(cv.RequestError, match="--stages 1,2"):
        read_poles(tmp_path)


def test_a_damaged_table_is_a_bad_request(tmp_path: Path) -> None:
    RunFolder(tmp_path, cv.Config(device="cpu"), MODEL).save(PART, make_table().arrays())
    path = tmp_path / PART
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(cv.RequestError, match="no sound table"):
        read_poles(tmp_path)


def test_only_the_first_ten_words_are_kept() -> None:
    ids = np.arange(40)[None]
    assert distinct_words(ids, np.ones((1, 30), bool)).tolist() == [list(range(10))]


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run folder that holds the table."""
    RunFolder(tmp_path, cv.Config(device="cpu"), MODEL).save(PART, make_table().arrays())
    return str(tmp_path)


def test_the_command_gives_all_poles_as_json(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["poles", run, "--json"]) == 0
    poles = json.loads(capsys.readouterr().out)["poles"]
    best_first = sorted(make_table(), key=lambda pole: -pole.score)
    assert poles == [pole.entry() for pole in best_first]


def test_the_command_writes_csv(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["poles", run, "--csv", "--layers", "3", "--label", "concept"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["id"] for row in rows] == ["L03_N0007+", "L03_N0005-"]
    assert rows[0] == {
        "id": "L03_N0007+",
        "label": "concept",
        "concept": "animals",
        "score": "0.9",
        "words": "dog cat",
    }


def test_a_limit_says_what_it_hides(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["poles", run, "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 of 5 poles; --limit shows more" in out
    assert "L03_N0005-" in out and "L01_N0004+" not in out
    assert main(["poles", run]) == 0
    assert "5 of 5 poles\n" in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["0", "-3", "many", "1.5"])
def test_a_limit_is_a_number_of_rows(
    run: str, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["poles", run, f"--limit={limit}"]) == 2
    assert f"--limit: got {limit}, expected a whole number" in capsys.readouterr().err


@pytest.mark.parametrize("arrays", [{}, {"concepts_json": []}, {"unknown": np.zeros(3)}])
def test_a_table_of_another_version_is_a_bad_request(arrays: dict, tmp_path: Path) -> None:
    """Sound and listed, and something else."""
    RunFolder(tmp_path, cv.Config(), MODEL).save(PART, arrays | {"more": np.zeros(2)})
    with pytest.raises(cv.RequestError, match="no sound table of scored poles"):
        read_poles(tmp_path)
