"""Openings: fair to the concepts, seeded, and enough of them where a concept is short."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from conceptvec.concepts import load_concepts
from conceptvec.effects.coverage import DOCUMENTS, WORDS, Coverage, default_tokens
from conceptvec.effects.openings import (
    EMPTY_EVERY,
    TEXTS_A_PART,
    TOP_UP,
    Opener,
    first_round,
    opening_words,
    openings_needed,
    second_round,
    tokens_to_ask,
    usable_words,
)
from conceptvec.effects.passages import Passages
from conceptvec.effects.target_words import TargetWords, token_pieces
from conceptvec.effects.writing import LENGTH
from conceptvec.errors import RequestError
from conceptvec.scoring.lexicon import Lexicon
from tests.conftest import ANIMALS, COLORS

SOURCE = f"animals={','.join(ANIMALS)};colors={','.join(COLORS)}"


@pytest.fixture(scope="module")
def concepts():
    return load_concepts(SOURCE, with_prompts=False)


@pytest.fixture
def targets(tiny, concepts):
    pieces = token_pieces(tiny.tokenizer, tiny.vocab_size)
    return TargetWords.build(Lexicon.build(concepts), pieces)


def coverage(words: list[int], documents: list[int], each: int = 40) -> Coverage:
    """What a text holds of concepts with `each` words in the vocabulary."""
    is_seen = np.concatenate([np.arange(each) < n for n in words])
    names = tuple(f"c{i}" for i in range(len(words)))
    word_concept = np.repeat(np.arange(len(words), dtype=np.int32), each)
    return Coverage(names, is_seen, word_concept, np.array(documents))


def pairs(model, concept, count: int, seed: int = 0, seen=()) -> list[str]:
    return list(islice(opening_words(model, concept, seed, seen), count))


def test_all_words_are_used_before_one_comes_again(tiny, concepts):
    words = " ".join(pairs(tiny, concepts.concepts[0], 12)).split()
    assert sorted(words[:12]) == sorted(words[12:]) == sorted(ANIMALS)


def test_words_that_a_text_lacks_come_first(tiny, concepts):
    words = " ".join(pairs(tiny, concepts.concepts[0], 6, seen={"dog", "cat"})).split()
    assert set(words[-2:]) == {"dog", "cat"}


def test_a_concept_of_one_word_opens_with_it(tiny):
    concept = load_concepts("a=dog", with_prompts=False).concepts[0]
    assert pairs(tiny, concept, 3) == ["dog"] * 3


def test_words_of_single_tokens_are_preferred(tiny):
    words = [*ANIMALS, "armadillo", "no-such-word"]
    concept = load_concepts("a=" + ",".join(words), with_prompts=False).concepts[0]
    assert usable_words(tiny, concept) == {"": ANIMALS}


def test_a_concept_with_few_of_them_uses_all_its_words(tiny):
    concept = load_concepts("a=dog,armadillo", with_prompts=False).concepts[0]
    assert usable_words(tiny, concept) == {"": ["dog", "armadillo"]}


@pytest.fixture
def built_in(tiny, monkeypatch):
    """A built-in concept, every word of it a single token."""
    monkeypatch.setattr(
        "conceptvec.effects.openings._single_tokens", lambda model, words: list(words)
    )
    return load_concepts(None, with_prompts=False).concepts[0]


def test_three_of_four_openings_of_many_languages_are_english(tiny, built_in):
    words = pairs(tiny, built_in, 400)
    is_english = [set(pair.split()) <= set(built_in.words["en"]) for pair in words]
    assert all(all(is_english[i : i + 3]) for i in range(0, 400, 4))
    assert sum(is_english) <= 320  # some words are the same in another language


def test_the_words_of_an_opening_are_of_one_language(tiny, built_in):
    for pair in pairs(tiny, built_in, 400):
        assert any(set(pair.split()) <= set(" ".join(w).split()) for w in built_in.words.values())


def test_homographs_open_no_text(tiny, built_in):
    words = " ".join(pairs(tiny, built_in, 2000)).split()
    assert not set(words) & built_in.homographs


def test_the_seed_decides_the_words(tiny, concepts):
    first, again, other = (pairs(tiny, concepts.concepts[0], 20, seed) for seed in (0, 0, 1))
    assert first == again != other


def concept_shares(model, plan) -> Counter:
    """How many openings are made of each list of words."""
    shares: Counter = Counter()
    for part in plan:
        for opening in part.openings:
            words = [token.strip("▁") for token in model.tokenizer.convert_ids_to_tokens(opening)]
            shares["animals"] += words[-1] in ANIMALS
            shares["colors"] += words[-1] in COLORS
            shares["empty"] += opening == (model.bos_id,)
    return shares


def test_every_concept_opens_as_many_texts(tiny, concepts):
    shares = concept_shares(tiny, first_round(Opener(tiny, 0), concepts.concepts, 400 * LENGTH))
    assert shares["empty"] == 400 // EMPTY_EVERY
    assert shares["animals"] == shares["colors"] == 175


def test_contrast_concepts_get_half_of_the_openings(tiny, concepts):
    animals, colors = concepts.concepts
    plan = first_round(Opener(tiny, 0), [animals], 400 * LENGTH, contrast=[colors])
    shares = concept_shares(tiny, plan)
    assert shares["animals"] == shares["colors"] == 175


def test_parts_are_full_and_have_seeds_of_their_own(tiny, concepts):
    plan = first_round(Opener(tiny, 0), concepts.concepts, 600 * LENGTH)
    assert [len(part.openings) for part in plan] == [TEXTS_A_PART, TEXTS_A_PART, 88]
    assert len({part.seed for part in plan}) == 3


def test_openings_of_a_part_have_about_one_length(tiny, concepts):
    plan = first_round(Opener(tiny, 0), concepts.concepts, 600 * LENGTH)
    lengths = [len(opening) for part in plan for opening in part.openings]
    assert lengths == sorted(lengths)


def test_empty_openings_begin_with_bos(tiny, concepts):
    plan = first_round(Opener(tiny, 0), concepts.concepts, 8 * LENGTH)
    assert plan[0].openings[0] == (tiny.bos_id,)


def test_without_bos_and_eos_there_is_a_message(tiny, concepts):
    tiny.tokenizer.bos_token = tiny.tokenizer.eos_token = None
    with pytest.raises(RequestError, match="neither a bos nor an eos"):
        first_round(Opener(tiny, 0), concepts.concepts, 8 * LENGTH)


def test_nothing_is_short_where_there_is_enough():
    enough = coverage([WORDS, 40], [DOCUMENTS, 500])
    assert not enough.is_short.any()
    assert openings_needed(enough, 1000).tolist() == [0, 0]


def test_short_concepts_alone_get_more():
    needed = openings_needed(coverage([WORDS, 10, 40], [DOCUMENTS, 300, 90]), 1000)
    assert needed[0] == 0
    assert needed[1] > 0
    assert needed[2] > 0


def test_more_texts_are_at_most_half_as_many():
    needed = openings_needed(coverage([0] * 12, [0] * 12), 1000)
    assert 0.9 * TOP_UP * 1000 <= needed.sum() <= TOP_UP * 1000 + 12


def test_a_concept_of_seven_words_is_asked_for_seven():
    seven = coverage([7], [DOCUMENTS], each=7)
    assert not seven.is_short.any()


def test_a_concept_without_words_is_asked_for_nothing():
    none = Coverage(("c",), np.zeros(0, bool), np.zeros(0, np.int32), np.array([0]))
    assert not none.is_short.any()


def test_the_second_round_is_made_of_words_that_were_not_seen(tiny, concepts, targets):
    seen = [word for word in targets.words if word != "dog"]
    is_seen = np.array([word in seen for word in targets.words])
    written = Coverage(targets.concepts, is_seen, targets.word_concept, np.array([500, 500]))
    plan = second_round(Opener(tiny, 0), concepts.concepts, written, targets, 1000)
    assert len(plan[0].openings) == 4
    assert plan[0].seed != first_round(Opener(tiny, 0), concepts.concepts, 100)[0].seed


def test_no_second_round_where_nothing_lacks(tiny, concepts, targets):
    is_seen = np.ones(len(targets.words), bool)
    written = Coverage(targets.concepts, is_seen, targets.word_concept, np.array([500, 500]))
    assert second_round(Opener(tiny, 0), concepts.concepts, written, targets, 1000) == []


def test_what_lacks_is_said(caplog):
    caplog.set_level("INFO")
    coverage([WORDS, 10], [DOCUMENTS, 20]).say()
    assert "for 1 of 2 concepts" in caplog.text
    assert "c1 10 in 20" in caplog.text
    assert "c0" not in caplog.text


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda", "cuda:1"])
def test_larger_models_get_less_text(device):
    tokens = [default_tokens(10**n, 10 ** (n - 1), device) for n in range(5, 11)]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] > tokens[-1] >= 20_000


def test_the_270m_gets_what_a_stable_count_needs():
    # 116,000 tokens gave a stable count of used candidates, 58,000 did not.
    assert 100_000 <= default_tokens(100_300_000, 262_144 * 640, "cpu") <= 120_000


def texts_of(length: int, count: int) -> Passages:
    """Texts that each hold `length` tokens behind an opening of two."""
    passages = [[2, 9, *[10] * length]] * count
    return Passages.of_lists(passages, [2] * count, list(range(count)))


def test_nothing_more_is_asked_for_where_nearly_all_is_there():
    assert tokens_to_ask(100 * LENGTH, texts_of(LENGTH - 1, 100)) == 0


def test_texts_of_half_the_length_are_made_up_for_by_as_many_again():
    assert tokens_to_ask(100 * LENGTH, texts_of(LENGTH // 2, 100)) == 100 * LENGTH


def test_texts_that_were_left_out_count_as_empty():
    # 80 texts of full length and 20 that ended at once: 25 more make up for 20.
    assert tokens_to_ask(100 * LENGTH, texts_of(LENGTH, 80)) == 25 * LENGTH


def test_no_more_than_as_much_again_is_asked_for():
    assert tokens_to_ask(100 * LENGTH, texts_of(1, 100)) == 100 * LENGTH


def test_a_model_that_writes_nothing_is_not_asked_again():
    assert tokens_to_ask(100 * LENGTH, texts_of(1, 0)) == 0
