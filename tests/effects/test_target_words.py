"""Target words: whole words alone, whatever the tokenizer, and every one of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from conceptvec.concepts import load_concepts
from conceptvec.effects.passages import Passages
from conceptvec.effects.target_words import (
    TargetWords,
    occurrences,
    target_key,
    token_pieces,
)
from conceptvec.scoring.lexicon import Lexicon


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon.build(load_concepts(None, with_prompts=False))


def shown(lexicon: Lexicon, text: list[str], scored_from: int = 1) -> list[str]:
    """The target words of a passage given as pieces of text behind a start token."""
    pieces = ["", *dict.fromkeys(text)]
    targets = TargetWords.build(lexicon, pieces)
    ids = [0, *(pieces.index(piece, 1) for piece in text)]
    found = occurrences(Passages.of_lists([ids], [scored_from], [0]), targets)
    return [pieces[ids[at]] for at in found.position]


def test_a_token_with_a_space_is_a_word(lexicon):
    assert shown(lexicon, ["The", " dog", " barks"]) == [" dog"]


def test_a_token_that_is_continued_is_a_fragment(lexicon):
    assert shown(lexicon, ["The", " dog", "gie", " barks"]) == []


def test_a_token_without_a_space_goes_on_with_a_word(lexicon):
    assert shown(lexicon, [" edu", "cat", "ion"]) == []
    assert shown(lexicon, [" bob", "cat"]) == []


@pytest.mark.parametrize("before", ["\n", ' "', " (", "«", "\n\n", " *"])
def test_a_word_may_begin_after_a_break_quote_or_bracket(lexicon, before):
    assert shown(lexicon, ["So", before, "cat", " sat"]) == ["cat"]


@pytest.mark.parametrize("before", [".", "/", "_", "@", "-"])
def test_no_word_begins_in_the_middle_of_an_address(lexicon, before):
    assert shown(lexicon, ["www", before, "cat", " sat"]) == []


def test_the_first_and_the_last_token_may_be_words(lexicon):
    assert shown(lexicon, ["cat", " and", " dog"]) == ["cat", " dog"]


def test_openings_are_never_scored(lexicon):
    assert shown(lexicon, [" cat", " and", " dog"], scored_from=3) == [" dog"]


def test_names_and_homographs_are_no_targets(lexicon):
    assert shown(lexicon, ["The", " Penguins", " may", " turkey"]) == []


def test_forms_are_one_distinct_word(lexicon):
    pieces = [" dog", " dogs", "dog", " DOG", " cat"]
    targets = TargetWords.build(lexicon, pieces)
    assert targets.token_word.tolist() == [0, 0, 0, 0, 1]
    assert targets.words == ("dog", "cat")


def test_a_word_of_two_concepts_is_a_word_of_neither():
    concepts = load_concepts("birds=crane,robin;machines=crane,lathe", with_prompts=False)
    targets = TargetWords.build(Lexicon.build(concepts), [" crane", " robin", " lathe"])
    assert targets.token_concept.tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("text", "numerals"),
    [
        (["at", " ", "7", " sharp"], ["7"]),
        (["at", " ", "3", "7", " sharp"], []),
        (["at", " ", "3", ".", "5", " or"], []),
        (["at", " ", "1", ",", "0", "0"], []),
        (["at", " ", "9", ":", "3", "0"], []),
        (["at", " ", "9", ".", " Then"], ["9"]),
        (["the", " ", "3", "rd"], []),
        (["the", " B", "7", " road"], []),
        (["the", " ", "7"], ["7"]),
    ],
)
def test_digits_are_whole_numerals_alone(lexicon, text, numerals):
    assert shown(lexicon, text) == numerals


def test_roman_numerals_need_capitals(lexicon):
    assert shown(lexicon, [" I", " vi", " Xi", " Henry", " VIII", " V"]) == [" VIII"]


def test_scripts_without_spaces_are_taken_as_the_tokenizer_cuts_them(lexicon):
    assert shown(lexicon, ["我", "看见", "老虎", "。"]) == ["老虎"]


def test_a_single_character_beside_its_script_is_no_word(lexicon):
    assert shown(lexicon, ["我", "狗", "。"]) == []
    assert shown(lexicon, ["：", "狗", "。"]) == ["狗"]


def test_passages_do_not_touch(lexicon):
    pieces = ["", " dog", "gie", "cat", " x"]
    targets = TargetWords.build(lexicon, pieces)
    passages = Passages.of_lists([[0, 4, 1], [2, 4, 4], [3, 4, 1, 2]], [1, 1, 1], [0, 1, 2])
    found = occurrences(passages, targets)
    assert (found.passage.tolist(), found.position.tolist()) == ([0], [2])


def test_no_passages_have_no_occurrences(lexicon):
    targets = TargetWords.build(lexicon, ["", " dog"])
    assert len(occurrences(Passages.of_lists([], [], []), targets)) == 0


def test_occurrences_agree_with_a_plain_loop(lexicon):
    """Against the definition, read token by token over a random text of pieces."""
    pieces = ["", " dog", "cat", "gie", " ", "7", ".", "\n", "老虎", "狗", " the", '"', " red"]
    targets = TargetWords.build(lexicon, pieces)
    generator = np.random.default_rng(0)
    texts = [[0, *generator.integers(1, len(pieces), 12)] for _ in range(200)]
    passages = Passages.of_lists(texts, [2] * 200, list(range(200)))
    expected = []
    for number, ids in enumerate(texts):
        text = [pieces[i] for i in ids]
        for at in range(2, len(text)):
            if targets.token_word[ids[at]] >= 0 and is_whole(text, at):
                expected.append((number, at, targets.token_word[ids[at]]))
    found = occurrences(passages, targets)
    together = zip(found.passage, found.position, found.word, strict=True)
    assert [tuple(map(int, row)) for row in together] == [tuple(map(int, r)) for r in expected]


def is_whole(text: list[str], at: int) -> bool:
    piece, before = text[at], text[at - 1]
    after, second = [*text[at + 1 :], "", ""][:2]
    if piece in "老虎狗":
        beside = before in ("老虎", "狗") or after in ("老虎", "狗")
        return after not in ("cat", "gie", "7") and not (piece == "狗" and beside)
    begins = piece.startswith(" ") or before in (" ", "\n", '"', "")
    decimal = piece == "7" and after == "." and second == "7"
    return begins and after not in ("cat", "gie", "7") and not decimal


def vocabulary(tokens: list[str], special: list[int]) -> SimpleNamespace:
    ids = {token: number for number, token in enumerate(tokens)}
    return SimpleNamespace(get_vocab=lambda: ids, all_special_ids=special)


def test_byte_level_vocabularies_are_decoded():
    tokens = ["<|end|>", "Ġdog", "Ċ", "Ð´", "æĪ", "Ġ", "don't"]
    pieces = token_pieces(vocabulary(tokens, [0]), 8)
    assert pieces == ["", " dog", "\n", "д", "\ufffd", " ", "don't", ""]


def test_sentencepiece_vocabularies_are_decoded():
    tokens = ["<bos>", "▁dog", "<0x0A>", "<0xE6>", "▁", "Ġ"]
    pieces = token_pieces(vocabulary(tokens, [0]), 6)
    assert pieces == ["", " dog", "\n", "\ufffd", " ", "Ġ"]


@pytest.mark.parametrize("piece", ["", " ", "\ufffd", "...", " \ufffd7"])
def test_what_is_no_text_is_no_target(lexicon, piece):
    assert target_key(lexicon, piece) is None


def test_the_demo_has_words_of_every_concept(lexicon):
    from importlib import resources

    demo = resources.files("conceptvec") / "data" / "demo" / "tokenizer.json"
    document = json.loads(demo.read_text(encoding="utf-8"))
    vocab = document["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    targets = TargetWords.build(lexicon, token_pieces(vocabulary(tokens, []), len(tokens)))
    assert np.bincount(targets.word_concept, minlength=12).min() >= 15
