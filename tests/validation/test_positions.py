"""The choice of positions: every promise of the docstring, on random texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptvec.validation.positions import (
    ALIKE,
    ENOUGH,
    LARGEST_SET,
    MIN_OF_ONE_WORD,
    SILENT_SET,
    Field,
    choose_positions,
    own_positions,
)

CONCEPTS, WORDS = 3, 12


def random_field(seed: int, documents: int = 200, length: int = 30) -> tuple[Field, np.ndarray]:
    stream = np.random.default_rng(seed)
    n = documents * length
    word = np.where(stream.random(n) < 0.2, stream.integers(0, WORDS, n), -1)
    word_concept = np.arange(WORDS) % CONCEPTS
    mentions = np.where(word >= 0, word_concept[word], -1)
    mentions = np.where(stream.random(n) < 0.02, stream.integers(0, CONCEPTS, n), mentions)
    target = np.where(mentions == word_concept[word], word, -1)
    scored = np.arange(n) % length < length - 1
    field = Field(
        np.repeat(np.arange(documents), length).astype(np.int32),
        scored,
        mentions.astype(np.int16),
        np.where(scored, target, -1).astype(np.int32),
        word_concept.astype(np.int32),
    )
    return field, stream.normal(size=n).astype(np.float32)


def words_of(field: Field, concept: int) -> np.ndarray:
    """In the order in which the pole promotes them: here that of their numbers."""
    return np.flatnonzero(field.word_concept == concept)


def choose(field: Field, activation: np.ndarray, concept: int, log_p, stream):
    return choose_positions(field, activation, concept, words_of(field, concept), log_p, stream)


def chosen(seed: int, concept: int = 1):
    field, activation = random_field(seed)
    log_p = -np.random.default_rng(seed + 1).exponential(3, len(activation))
    stream = np.random.default_rng(0)
    return (
        field,
        activation,
        log_p,
        choose(field, activation, concept, lambda at: log_p[at], stream),
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_own_positions_are_before_known_words_where_the_pole_fires(seed: int) -> None:
    field, activation, _, positions = chosen(seed)
    own = positions.of_concept
    assert (field.word_concept[field.target[own]] == 1).all()
    assert (activation[own] > 0).all()
    assert (np.diff(activation[own]) <= 0).all()
    assert len(np.unique(field.document[own])) == len(own) <= LARGEST_SET
    promoted = words_of(field, 1)[:2]  # a third of the four
    assert set(field.target[own]) <= set(promoted)
    assert np.bincount(field.target[own]).max() <= max(MIN_OF_ONE_WORD, -(-64 // len(promoted)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 120))
def test_more_words_are_asked_where_the_promoted_third_leaves_too_few(
    seed: int, documents: int
) -> None:
    field, activation = random_field(seed, documents)
    words = words_of(field, 1)
    own, taken = own_positions(field, activation, words)
    assert np.array_equal(taken, words[: len(taken)])  # the most promoted first
    assert len(taken) in (2, 3, 4)
    assert len(own) >= ENOUGH or len(taken) == 4
    if len(taken) > 2:  # no share before it was enough
        fewer, _ = own_positions(field, activation, words[: len(taken) - 1])
        assert len(fewer) < ENOUGH
    assert set(field.target[own]) <= set(taken)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_matched_positions_are_alike(seed: int) -> None:
    field, activation, _, positions = chosen(seed)
    own, elsewhere = positions.of_concept, positions.elsewhere
    assert len(own) == len(elsewhere) > 0
    assert (np.abs(activation[elsewhere] / activation[own] - 1) <= ALIKE + 1e-5).all()
    assert (field.mentions[elsewhere] != 1).all()
    assert field.scored[elsewhere].all()
    assert len(np.unique(field.document[elsewhere])) == len(elsewhere)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_positions_of_other_concepts_and_silent_ones(seed: int) -> None:
    field, activation, _, positions = chosen(seed)
    others, silent = positions.others, positions.silent
    assert (field.word_concept[field.target[others]] != 1).all()
    assert len(np.unique(field.document[others])) == len(others)
    assert set(field.word_concept[field.target[others]]) == {0, 2}
    assert (field.word_concept[field.target[silent]] == 1).all()
    assert (
        np.abs(activation[silent]) <= 0.05 * np.median(activation[positions.of_concept]) + 1e-6
    ).all()
    assert len(silent) <= SILENT_SET


def test_others_are_near_in_log_probability() -> None:
    """Nearer than a random choice would be."""
    _, _, log_p, positions = chosen(5)
    gap = np.abs(log_p[positions.of_concept] - log_p[positions.others]).mean()
    shuffled = np.abs(log_p[positions.of_concept] - log_p[positions.others[::-1]]).mean()
    assert gap < 0.3 < shuffled


def test_what_can_not_be_matched_is_dropped_and_counted() -> None:
    field, activation = random_field(3)
    own, _ = own_positions(field, activation, words_of(field, 1))
    lifted = activation.copy()
    lifted[own[:5]] += 100  # nothing elsewhere fires like these
    positions = choose(field, lifted, 1, lambda at: np.zeros(len(at)), np.random.default_rng(0))
    assert not set(own[:5]) & set(positions.of_concept)
    assert positions.unmatched >= 0
    assert len(positions.of_concept) == len(positions.elsewhere)


def test_own_positions_of_one_activation_are_all_matched() -> None:
    """They share their nearest positions elsewhere; each takes another one."""
    field, activation = random_field(3)
    level = np.where(activation > 0, np.float32(1), activation)
    chance = -np.random.default_rng(4).exponential(3, len(level))
    positions = choose(field, level, 1, lambda at: chance[at], np.random.default_rng(0))
    assert len(positions.elsewhere) == len(positions.of_concept) == LARGEST_SET
    assert len(set(field.document[positions.elsewhere])) == LARGEST_SET
    assert positions.unmatched == 0


def test_the_choice_does_not_look_at_anything_but_its_arguments() -> None:
    first, second = chosen(9)[3], chosen(9)[3]
    for name in ("of_concept", "elsewhere", "others", "silent"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_a_neuron_that_never_fires_has_no_positions() -> None:
    field, activation = random_field(4)
    positions = choose(
        field, -np.abs(activation), 1, lambda at: np.zeros(len(at)), np.random.default_rng(0)
    )
    assert len(positions.all()) == 0
    assert positions.matched == 0


@pytest.mark.parametrize("concept", [0, 1, 2])
def test_a_text_without_other_concepts_leaves_others_empty(concept: int) -> None:
    field, activation = random_field(6)
    alone = np.where(field.word_concept[field.target] == concept, field.target, -1)
    only = Field(
        field.document, field.scored, field.mentions, np.where(field.target >= 0, alone, -1),
        field.word_concept,
    )  # fmt: skip
    positions = choose(
        only, activation, concept, lambda at: np.zeros(len(at)), np.random.default_rng(0)
    )
    assert len(positions.others) == 0
