"""Text that was read: every form of ``--corpus``, what is taken of it, and no traceback."""

import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from conceptvec.concepts import load_concepts
from conceptvec.effects.corpora import (
    HubDataset,
    TextFile,
    parse_corpus,
    read_passages,
)
from conceptvec.effects.coverage import Coverage
from conceptvec.effects.passages import LEAD_IN, MAX_TOKENS
from conceptvec.effects.target_words import TargetWords, occurrences, token_pieces
from conceptvec.errors import RequestError
from conceptvec.scoring.lexicon import Lexicon
from tests.conftest import ANIMALS, make_tokenizer

SENTENCE = "w1 w2 w3 w4 w5 dog w6 cat w7 w8"


@pytest.fixture(scope="module")
def reader() -> SimpleNamespace:
    """What of a model is needed for reading."""
    tokenizer = make_tokenizer()
    return SimpleNamespace(tokenizer=tokenizer, vocab_size=len(tokenizer), name="tiny", start=[])


@pytest.fixture(scope="module")
def targets(reader) -> TargetWords:
    concepts = load_concepts("animals=" + ",".join(ANIMALS), with_prompts=False)
    pieces = token_pieces(reader.tokenizer, reader.vocab_size)
    return TargetWords.build(Lexicon.build(concepts), pieces)


@pytest.fixture
def lines(tmp_path):
    def write(*texts: str, name: str = "text.txt") -> TextFile:
        path = tmp_path / name
        path.write_text("\n".join(texts), encoding="utf-8")
        return TextFile(path)

    return write


def test_self_names_no_file():
    assert parse_corpus("self") is None


def test_files_are_taken_by_their_names(tmp_path):
    for name in ("a.txt", "b.jsonl", "c:d.txt"):
        (tmp_path / name).write_text("{}")
    assert parse_corpus(f"{tmp_path}/a.txt") == TextFile(tmp_path / "a.txt")
    assert parse_corpus(f"{tmp_path}/b.jsonl:body") == TextFile(tmp_path / "b.jsonl", "body")
    assert parse_corpus(f"{tmp_path}/c:d.txt") == TextFile(tmp_path / "c:d.txt")


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        ("hf:a/b", HubDataset("a/b")),
        ("hf:a/b:en", HubDataset("a/b", "en")),
        ("hf:a/b::test", HubDataset("a/b", None, "test")),
        ("hf:a/b:en:test:body", HubDataset("a/b", "en", "test", "body")),
    ],
)
def test_data_sets_are_taken_by_their_parts(corpus, expected):
    assert parse_corpus(corpus) == expected


@pytest.mark.parametrize("corpus", ["hf:", "hf:a b/c", "hf:a/b:c:d:e:f", "hf:../x", "", "no.txt"])
def test_other_forms_are_refused(corpus):
    with pytest.raises(RequestError, match="--corpus"):
        parse_corpus(corpus)


@pytest.mark.parametrize("corpus", ["{}/b.jsonl", "{}/a.txt:body", "{}"])
def test_columns_belong_to_jsonl_alone(tmp_path, corpus):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text("{}")
    with pytest.raises(RequestError, match="--corpus"):
        parse_corpus(corpus.format(tmp_path))


def test_a_name_longer_than_any_file_is_refused():
    with pytest.raises(RequestError, match="no file"):
        parse_corpus("x" * 100_000)


def test_empty_lines_are_no_documents(lines):
    assert list(lines("a", "", "  ", "\tb ").documents()) == ["a", "b"]


def test_records_give_their_column(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"text": "a", "n": 1}, {"text": ""}, {"text": None}, {"text": "b"}]
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    assert list(TextFile(path, "text").documents()) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "expected an object"),
        ('{"body": "x"}', "no column 'text'; there are body"),
        ('{"text": 5}', "holds int, expected text"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_records_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + line)
    with pytest.raises(RequestError, match=message):
        list(TextFile(path, "text").documents())


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\n\xff\xfe\n")
    with pytest.raises(RequestError, match="UTF-8"):
        list(TextFile(path).documents())


def test_a_text_without_enough_to_score_is_refused(lines, reader, targets):
    with pytest.raises(RequestError, match="holds no text"):
        read_passages(reader, lines("w1 w2", "dog"), targets, 100)


def test_lines_are_documents_and_their_order_stays(lines, reader, targets):
    source = lines(*[f"{SENTENCE} w{i}" for i in range(150)])
    passages = read_passages(reader, source, targets, 10**6)
    last = [
        reader.tokenizer.convert_ids_to_tokens(int(passages.passage(i)[-1])) for i in range(150)
    ]
    assert last == [f"▁w{i}" for i in range(150)]
    assert passages.documents.tolist() == list(range(150))


def test_long_lines_become_passages_of_one_document(lines, reader, targets):
    text = " ".join(f"w{i % 200}" for i in range(500))
    passages = read_passages(reader, lines(SENTENCE, text), targets, 10**6)
    assert passages.documents.tolist() == [0, 1, 1, 1, 1]
    assert passages.lengths.max() == MAX_TOKENS
    words = reader.tokenizer.convert_ids_to_tokens(
        passages.ids[len(passages.passage(0)) :].tolist()
    )
    assert words == ["▁" + word for word in text.split()]


def test_the_beginning_of_a_passage_only_leads_in(lines, reader, targets):
    passages = read_passages(reader, lines("dog dog dog dog dog cat"), targets, 100)
    assert passages.scored_from.tolist() == [1 + LEAD_IN]
    assert occurrences(passages, targets).position.tolist() == [5]


def test_reading_stops_where_there_are_enough_tokens(lines, reader, targets, caplog):
    plain = "w1 w2 w3 w4 w5 w6 w7 w8"
    with caplog.at_level(logging.INFO):
        passages = read_passages(reader, lines(*[plain] * 1000), targets, 30)
    assert passages.tokens == 30
    assert "the rest was left out" in caplog.text


def test_too_little_text_is_said_and_no_error(lines, reader, targets, caplog):
    passages = read_passages(reader, lines(SENTENCE), targets, 1000)
    assert len(passages) == 1
    assert "1000 were asked for" in caplog.text


def test_rare_words_are_looked_for_behind_the_end(lines, reader, targets):
    plain = "w1 w2 w3 w4 w5 w6 w7 w8"
    source = lines(*[plain] * 200, *[SENTENCE] * 30, *[plain] * 200)
    passages = read_passages(reader, source, targets, 600)
    coverage = Coverage.of(passages, targets)
    assert coverage.documents.tolist() == [30]
    assert coverage.words.tolist() == [2]
    # Nothing else is taken behind the end.
    assert passages.documents[passages.documents >= 200].tolist() == list(range(200, 230))


def test_topping_up_takes_at_most_half_as_much_again(lines, reader, targets):
    plain = "w1 w2 w3 w4 w5 w6 w7 w8"
    source = lines(*[plain] * 100, *[SENTENCE] * 90)
    passages = read_passages(reader, source, targets, 300)
    assert 450 <= passages.tokens < 450 + len(SENTENCE.split())


def test_a_tokenizer_of_another_model_is_named(lines, reader, targets):
    small = SimpleNamespace(**{**vars(reader), "vocab_size": 10})
    with pytest.raises(RequestError, match="do not belong together"):
        read_passages(small, lines(SENTENCE), targets, 100)


# The library ``datasets`` is an extra: a stand-in shows how it is called.


def stand_in(monkeypatch, version: str, answer) -> list:
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if isinstance(answer, Exception):
            raise answer
        return iter(answer)

    module = ModuleType("datasets")
    vars(module).update(__version__=version, load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_data_sets_are_streamed(monkeypatch):
    calls = stand_in(monkeypatch, "4.0.0", [{"text": "a", "title": "t"}, {"text": " "}])
    assert list(HubDataset("a/b", "en").documents()) == ["a"]
    assert calls == [(("a/b", "en"), {"split": "train", "streaming": True})]


def test_old_versions_are_told_to_run_no_code(monkeypatch):
    calls = stand_in(monkeypatch, "2.19.0", [{"text": "a"}])
    list(HubDataset("a/b").documents())
    assert calls[0][1]["trust_remote_code"] is False


def test_the_only_text_column_is_taken(monkeypatch):
    stand_in(monkeypatch, "4.0.0", [{"n": 1, "body": "a"}])
    assert list(HubDataset("a/b").documents()) == ["a"]


def test_a_choice_of_columns_is_left_to_the_user(monkeypatch):
    stand_in(monkeypatch, "4.0.0", [{"body": "a", "title": "b"}])
    with pytest.raises(RequestError, match="which column.*body, title"):
        list(HubDataset("a/b").documents())


@pytest.mark.parametrize(
    "error", [ValueError("script"), FileNotFoundError("no such"), KeyError("x")]
)
def test_what_the_library_raises_is_a_message(monkeypatch, error):
    stand_in(monkeypatch, "4.0.0", error)
    with pytest.raises(RequestError, match="hf:a/b: could not be read"):
        list(HubDataset("a/b").documents())


def test_without_the_library_the_message_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match="pip install 'conceptvec"):
        list(HubDataset("a/b").documents())


def test_coverage_counts_by_a_plain_loop(lines, reader, targets):
    generator = np.random.default_rng(0)
    words = [*ANIMALS, "w1", "w2", "w3"]
    texts = [" ".join(generator.choice(words, 20)) for _ in range(40)]
    passages = read_passages(reader, lines(*texts), targets, 10**6)
    coverage = Coverage.of(passages, targets)
    scored = [set(text.split()[1 + LEAD_IN - 1 :]) & set(ANIMALS) for text in texts]
    assert coverage.documents.tolist() == [sum(map(bool, scored))]
    assert coverage.words.tolist() == [len(set.union(*scored))]


def test_half_a_character_of_json_is_read_as_a_sign_of_it(tmp_path):
    file = tmp_path / "posts.jsonl"
    file.write_text('{"text": "half \\ud83d here"}\n{"text": "whole \\ud83d\\udc36 dog"}\n')
    texts = list(TextFile(file, "text").documents())
    assert texts == ["half \ufffd here", "whole 🐶 dog"]
    make_tokenizer()(texts)
