"""``conceptvec scan`` and `cv.scan`: the document, the table, words of one's own, bad requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conceptvec as cv
from conceptvec.cli import BAD_REQUEST, DONE, main
from conceptvec.config import Config
from conceptvec.errors import RequestError
from conceptvec.extraction.poles import make_projector
from conceptvec.model.network import Model, load_model
from conceptvec.tools.scan_table import ScanTable, concept_of_words, scan_folder
from tests.documents import HOSTILE

SMALL = ["--corpus-tokens", "6000", "--device", "cpu"]


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(Config(device="cpu"))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """A file that is quickly read: three words of each of five concepts, twenty times."""
    words = [
        "dog",
        "cat",
        "horse",
        "red",
        "blue",
        "green",
        "bread",
        "soup",
        "cheese",
        "hand",
        "nose",
        "foot",
        "week",
        "day",
        "month",
    ]
    file = tmp_path / "text.txt"
    file.write_text(
        "\n".join(f"One day she saw the {word} and then the {word}." for word in words * 20)
    )
    return str(file)


@pytest.fixture(scope="module")
def answer(demo: Model) -> ScanTable:
    return cv.scan(demo, Config(device="cpu", corpus_tokens=6000), limit=4)


def test_the_document_is_that_of_the_contract(answer: ScanTable) -> None:
    document = json.loads(json.dumps(answer, allow_nan=False))
    assert {"model", "corpus", "concepts", "controls"} <= document.keys()
    assert document["corpus"]["tokens"] >= 5000
    assert list(document["concepts"])[:3] == ["animals", "colors", "numbers"]
    keys = {"id", "zero", "mean", "largest_other", "firing", "p", "q", "top_tokens"}
    assert all(keys <= e.keys() for entries in document["concepts"].values() for e in entries)


def test_used_poles_come_first_and_stronger_ones_before_weaker(answer: ScanTable) -> None:
    for entries in answer["concepts"].values():
        order = [(not entry["used"], -entry["mean"]) for entry in entries]
        assert order == sorted(order)
        assert 0 < len(entries) <= 4


def test_every_number_is_that_of_the_arrays(answer: ScanTable) -> None:
    effects = answer.effects
    for c, concept in enumerate(effects.concepts):
        for entry in answer["concepts"][concept]:
            at = (c, int(entry["id"][1:3]), int(entry["id"][5:9]), "+-".index(entry["id"][-1]))
            for name in ("zero", "mean", "largest_other", "firing"):
                assert entry[name] == pytest.approx(
                    float(getattr(effects, name)[at]), rel=2e-3, abs=1e-6
                )
            assert entry["p"] == pytest.approx(float(effects.p[at]), rel=1e-5)


def test_the_listed_poles_have_the_smallest_p(answer: ScanTable) -> None:
    p, mean = answer.effects.p[0], answer.effects.mean[0]
    worst = max(entry["p"] for entry in answer["concepts"]["animals"])
    smaller = (p < 0.999 * worst) & (mean > 0)
    assert smaller.sum() <= 4


def test_top_tokens_are_the_poles_own(answer: ScanTable, demo: Model) -> None:
    projector, texts, _ = make_projector(demo, 15)
    entry = answer["concepts"]["time"][0]
    layer, neuron = int(entry["id"][1:3]), int(entry["id"][5:9])
    sign = 1 if entry["id"][-1] == "+" else -1
    top = projector(demo.readout_directions(layer, "both", [neuron]) * sign)
    assert [token for token, _ in entry["top_tokens"]] == [
        texts[i] for i in top.top_ids[0].tolist()
    ]


def test_a_newcomer_is_told_what_the_columns_mean(answer: ScanTable) -> None:
    shown = repr(answer)
    assert "tokens of its own text" in shown
    assert all(
        f"{word}:" in shown for word in ("effect", "zero", "next concept", "fires", "q", "*")
    )
    assert "vectors fired by other neurons" in shown
    assert "animals, " in shown


def test_html_escapes_what_a_vocabulary_may_hold(answer: ScanTable) -> None:
    hostile = ScanTable(json.loads(json.dumps(answer)))
    hostile["concepts"]["animals"][0]["top_tokens"][0][0] = HOSTILE
    assert "<img" not in hostile._repr_html_()
    assert "<table" in hostile._repr_html_()


# ---- the command ----


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    status = main(["scan", *SMALL, *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_json_and_nothing_else(capsys: Any, tmp_path: Path, corpus: str) -> None:
    where = ("--layers", "3", "--corpus", corpus, "--out", str(tmp_path))
    status, out, _ = run(capsys, *where, "--json", "--limit", "2")
    document = json.loads(out)
    assert status == DONE
    assert all(len(entries) <= 2 for entries in document["concepts"].values())
    ids = {entry["id"][:3] for entries in document["concepts"].values() for entry in entries}
    assert ids == {"L03"}
    assert (tmp_path / "scan.safetensors").is_file()


def test_words_of_ones_own_find_the_neuron_that_serves_them(capsys: Any, tmp_path: Path) -> None:
    words = ["blue", "white", "brown", "orange", "yellow", "silver", "pink", "green"]
    status, out, _ = run(
        capsys, "--words", *words, "--layers", "3", "--out", str(tmp_path), "--json"
    )
    document = json.loads(out)
    assert status == DONE
    assert list(document["concepts"]) == ["words"]
    assert document["concepts"]["words"][0]["id"] == "L03_N0018+"  # the demo's colour neuron
    others = {entry["largest_other_concept"] for entry in document["concepts"]["words"]}
    assert "colors" not in others  # the same subject is no contrast


def test_a_second_call_reads_what_the_first_has_kept(
    capsys: Any, tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--layers", "3", "--corpus", corpus, "--out", str(tmp_path), "--json")
    first = run(capsys, *arguments)
    monkeypatch.setattr(
        "conceptvec.effects.gradients.Gradients.part", lambda *_: pytest.fail("again")
    )
    assert run(capsys, *arguments)[1] == first[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--words", "dog", "--concepts", "a=b"], "got both"),
        (["--words", "dog,cat"], "expected words"),
        (["--words", "zxqvwk"], "is a single token"),
        (["--limit", "0"], "at least 1"),
        (["--layers", "9"], "the model has 4 layers"),
        (["--corpus", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_requests_are_one_line(
    capsys: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, out, err = run(capsys, "--out", str(tmp_path / "run"), *arguments)
    assert status == BAD_REQUEST
    assert not out
    assert message in err.splitlines()[-1]


def test_words_become_one_concept() -> None:
    assert concept_of_words(["robin", "eagle"]) == "words=robin,eagle"
    with pytest.raises(RequestError, match="--words"):
        concept_of_words(["robin", " "])


def test_a_scan_lies_beside_the_run_and_words_apart(demo: Model) -> None:
    config = Config(device="cpu")
    assert scan_folder(config, demo, None) == Path("runs/demo-cpu-scan")
    assert scan_folder(config, demo, ["red", "../x"]) == Path("runs/demo-cpu-scan-red-x")
    assert len(scan_folder(config, demo, ["long"] * 99).name) < 70
    assert scan_folder(Config(device="cpu", out="there"), demo, ["red"]) == Path("there")


def test_one_word_alone_can_be_scanned(demo: Model, corpus: str) -> None:
    config = Config(device="cpu", corpus=corpus, layers="3", concepts="words=dog")
    answer = cv.scan(demo, config, limit=3)
    assert answer["corpus"]["known_words"] == {"words": 1}
    assert np.isfinite(answer.effects.q).all()
