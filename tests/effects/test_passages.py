"""Passages: arrays that lose nothing, cut where words end."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conceptvec.effects.passages import Passages, cut, joined
from conceptvec.model.vocabulary import empty_opening, start_of_text
from tests.conftest import make_tokenizer

BOS = 2
V = 50
CONTINUES = np.arange(V) % 3 == 0  # every third token goes on with a word

# A loaded machine may take its time over an example.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
token_lists = st.lists(st.integers(3, V - 1), max_size=60)


def some_passages() -> Passages:
    return Passages.of_lists([[2, 5, 6, 7], [2, 8], [2, 9, 10]], [1, 1, 2], [0, 0, 4])


def test_arrays_bring_the_passages_back():
    passages = some_passages()
    again = Passages.of_arrays(passages.arrays())
    assert [again.passage(i).tolist() for i in range(3)] == [[2, 5, 6, 7], [2, 8], [2, 9, 10]]
    assert again.digest == passages.digest


def test_arrays_are_int32():
    assert {values.dtype for values in some_passages().arrays().values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("name", ["ids", "lengths", "scored_from", "documents"])
def test_digest_depends_on_every_array(name):
    arrays = some_passages().arrays()
    changed = arrays[name].copy()
    changed[-1] += 1
    assert Passages.of_arrays(arrays | {name: changed}).digest != some_passages().digest


def test_only_tokens_behind_the_opening_count():
    assert some_passages().tokens == 3 + 1 + 1


def test_joined_parts_share_no_document():
    both = joined([some_passages(), some_passages()])
    assert both.documents.tolist() == [0, 0, 4, 5, 5, 9]
    assert both.passage(5).tolist() == [2, 9, 10]


def test_joining_nothing_gives_nothing():
    assert (len(joined([])), joined([]).tokens) == (0, 0)


def test_taken_passages_keep_their_documents():
    taken = some_passages().take(np.array([2, 0]))
    assert taken.passage(0).tolist() == [2, 9, 10]
    assert taken.documents.tolist() == [4, 0]


@unhurried
@given(token_lists, st.integers(3, 20))
def test_cutting_loses_and_repeats_nothing(ids, longest):
    pieces = cut(ids, [BOS], CONTINUES, longest)
    assert [token for piece in pieces for token in piece[1:]] == ids


@unhurried
@given(token_lists, st.integers(3, 20))
def test_every_piece_begins_with_the_start_and_fits(ids, longest):
    for piece in cut(ids, [BOS], CONTINUES, longest):
        assert piece[0] == BOS
        assert 1 < len(piece) <= longest


@unhurried
@given(token_lists, st.integers(4, 20))
def test_no_word_is_cut_in_two_unless_it_fills_a_passage(ids, longest):
    pieces = cut(ids, [BOS], CONTINUES, longest)
    for before, piece in zip(pieces, pieces[1:], strict=False):
        if CONTINUES[piece[1]]:
            assert len(before) == longest
            assert CONTINUES[before[2:]].all()


def test_a_text_without_any_boundary_is_cut_where_it_is_full():
    pieces = cut([3] * 10, [BOS], CONTINUES, 6)
    assert [len(piece) for piece in pieces] == [6, 6]


def test_a_tokenizer_without_bos_starts_with_nothing():
    # The word-level tokenizer names a BOS, but its own encoding puts none.
    assert start_of_text(make_tokenizer()) == []
    assert empty_opening(make_tokenizer()) == [BOS]


def test_start_is_what_the_tokenizer_puts_in_front():
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    assert start_of_text(tokenizer) == [BOS]


def test_eos_begins_a_text_where_there_is_no_bos():
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    assert empty_opening(tokenizer) == [1]
