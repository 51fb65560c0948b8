"""The built-in concepts and the user's: files, word lists, words in place, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import conceptvec as cv
from conceptvec import cli
from conceptvec.concepts import BUILT_IN, load_concepts

GOOD: dict[str, Any] = {
    "concepts": {
        "birds": {
            "keywords": ["robin", "eagle"],
            "prompts": [{"prompt": "In the nest sat a", "answer": " robin"}],
        },
        "tools": {"keywords": ["hammer", "saw"], "prompts": None},
    },
    "neutral_prompts": [{"prompt": "He put the keys on the", "answer": " table"}],
}


def written(folder: Path, content: Any, name: str = "mine.json") -> str:
    """Write bytes, text, or a document as JSON; gives the file's path."""
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_the_twelve() -> None:
    concepts = load_concepts(None)
    assert tuple(concepts.names) == BUILT_IN
    assert list(concepts.prompts()) == [*BUILT_IN, "neutral"]


def test_a_json_file(tmp_path: Path) -> None:
    concepts = load_concepts(written(tmp_path, GOOD))
    assert concepts.names == ["birds", "tools"]
    assert list(concepts.prompts()) == ["birds", "neutral"]  # tools: scoring alone
    assert [p.answer for p in concepts.neutral] == [" table"]


def test_a_word_list(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffRobin\r\n\r\n eagle \nowl\n", "birds.txt")
    (birds,) = load_concepts(path).concepts
    assert birds.name == "birds"
    assert birds.words == {"": ("Robin", "eagle", "owl")}
    assert birds.prompts is None
    assert cv.score_tokens([" robin", "Eagles", " owls", " eagle"], path)["concept"] == "birds"


def test_words_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    text = "birds=robin, eagle,owl; tools = hammer,saw"
    assert load_concepts(text).names == ["birds", "tools"]
    assert cv.Config(concepts=text).concepts == text
    assert cli.main(["score-tokens", "--json", "--concepts", text, "owl", "robin", "eagle"]) == 0
    assert json.loads(capsys.readouterr().out)["concept"] == "birds"


def test_a_word_of_two_of_the_users_concepts_counts_for_neither() -> None:
    text = "birds=crane,robin,owl,heron; machines=crane,digger"
    assert cv.score_tokens(["crane", "cranes"], text)["score"] == 0


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("birds=", "birds="),
        ("=robin", "=robin"),
        ("birds=robin;tools", "tools"),
        ("a=x y;a=z", "'a=z'"),
        ("birds=robin,!!", "!!"),
        ("none=robin", "none"),
    ],
)
def test_bad_words_in_place(text: str, place: str) -> None:
    with pytest.raises(cv.RequestError, match=place.replace("(", "\\(")):
        load_concepts(text)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "at least one word"),
        ("robin\n---\nowl", "line 2: got '---'"),
        (b"robin\neagle\n\xff\xfeowl", "line 3 is not UTF-8"),
    ],
)
def test_bad_word_lists(tmp_path: Path, content: Any, place: str) -> None:
    with pytest.raises(cv.RequestError, match=place):
        load_concepts(written(tmp_path, content, "birds.txt"))


BIRDS = {"keywords": ["robin"], "prompts": None}


def of_birds(**changes: Any) -> dict[str, Any]:
    """A file with one concept, whose fields are changed."""
    return {"concepts": {"birds": {**BIRDS, **changes}}}


BAD = [
    ("{", "line 1 column 2"),
    ("[" * 100_000, "not JSON"),
    (b"\xff", "line 1 is not UTF-8"),
    ([], "expected an object with"),
    ({}, "'concepts' is missing"),
    ({"concepts": {}}, "concepts: expected an object with at least one"),
    ({"concepts": {"birds": []}}, "concepts.birds: got list"),
    ({"concepts": {"birds": {"keywords": ["robin"]}}}, "concepts.birds: 'prompts' is missing"),
    (of_birds(x=1), "concepts.birds: unknown key 'x'"),
    ({"concepts": {"birds": BIRDS}, "extra": 1}, "unknown key 'extra'"),
    (of_birds(keywords=[]), "concepts.birds: expected at least one word"),
    (of_birds(keywords="robin"), "concepts.birds.keywords: got str"),
    (of_birds(keywords=["owl", 3]), r"concepts.birds.keywords\[1\]: got 3"),
    (of_birds(prompts=[]), "concepts.birds.prompts: expected a list of at least one"),
    (of_birds(prompts=[{"prompt": "A"}]), r"birds.prompts\[0\]: 'answer' is missing"),
    (of_birds(prompts=[{"prompt": "A", "answer": " "}]), r"prompts\[0\].answer: got"),
    (of_birds(prompts=GOOD["neutral_prompts"] * 2), r"prompts\[1\]: the same as \[0\]"),
    ({"concepts": {" ": BIRDS}}, "reserved or empty"),
    ({"concepts": {"lexical": BIRDS}}, "reserved or empty"),
    ({"concepts": {"birds": BIRDS}, "neutral_prompts": [1]}, r"neutral_prompts\[0\]: got int"),
    ('{"concepts": {"birds": {"keywords": ["a"], "keywords": ["b"]}}}', "'keywords' appears"),
    ('{"concepts": {"birds": {"keywords": ["\\ud800x"], "prompts": null}}}', r"keywords\[0\]"),
]


@pytest.mark.parametrize(("content", "place"), BAD, ids=range(len(BAD)))
def test_bad_files_name_the_place(tmp_path: Path, content: Any, place: str) -> None:
    with pytest.raises(cv.RequestError, match=place) as caught:
        load_concepts(written(tmp_path, content))
    assert "mine.json" in str(caught.value)


def test_a_missing_file_is_a_bad_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(cv.RequestError, match="nowhere.json"):
        cv.Config(concepts="nowhere.json")
    assert cli.main(["score-tokens", "--concepts", "nowhere.json", "dog"]) == 2
    assert "nowhere.json" in capsys.readouterr().err


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a document, as the keys that lead there."""
    inner: Any = ()
    if isinstance(node, dict | list):
        inner = node.items() if isinstance(node, dict) else enumerate(node)
    return [path, *(p for key, child in inner for p in places(child, (*path, key)))]


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = SIMPLE | st.lists(st.integers(), max_size=2)
ANYTHING = VALUES | st.dictionaries(st.text(max_size=4), VALUES, max_size=2)
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(st.sampled_from(places(GOOD)), ANYTHING)
@FUZZ
def test_one_wrong_value_anywhere(tmp_path: Path, where: tuple[Any, ...], value: Any) -> None:
    """A good file with one value replaced loads, or is refused with the file's name."""
    document = json.loads(json.dumps(GOOD))
    if where:
        parent = document
        for key in where[:-1]:
            parent = parent[key]
        parent[where[-1]] = value
    try:
        load_concepts(written(tmp_path, document if where else value), with_prompts=False)
    except cv.RequestError as error:
        assert "mine.json" in str(error)


@given(st.binary(max_size=60), st.sampled_from(["mine.json", "mine.txt"]))
@FUZZ
def test_any_bytes(tmp_path: Path, content: bytes, name: str) -> None:
    try:
        load_concepts(written(tmp_path, content, name), with_prompts=False)
    except cv.RequestError as error:
        assert name in str(error)


RUN = ["run", "--device", "cpu", "--layers", "0", "--max-vectors", "5"]


@pytest.mark.whole
def test_concepts_in_place_go_through_a_run(tmp_path) -> None:
    argv = [*RUN, "--stages", "1,2", "--out", str(tmp_path), "--concepts"]
    assert cli.main([*argv, "birds=robin,eagle"]) == 0
    assert cli.main([*argv, "birds=robin,eagle"]) == 0  # resumed
    assert cli.main([*argv, "birds=robin,owl"]) == 2  # another run
    assert cv.load_results(tmp_path)["candidate_distribution"].keys() == {"birds"}


@pytest.mark.whole
def test_many_words_in_place_are_no_files_name(tmp_path) -> None:
    words = ",".join(f"word{i}" for i in range(60))
    argv = [*RUN, "--stages", "1", "--out", str(tmp_path), "--concepts", f"birds={words}"]
    assert cli.main(argv) == 0
