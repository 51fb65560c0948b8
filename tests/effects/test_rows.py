"""Which words become rows, and which passages share a batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptvec.effects import rows
from conceptvec.effects.rows import Targets, targets_of

N_WORDS, N_CONCEPTS = 12, 3
WORD_CONCEPT = np.arange(N_WORDS) % N_CONCEPTS

occurrence = st.tuples(
    st.integers(0, 7), st.integers(1, 20), st.integers(0, N_WORDS - 1), st.booleans()
)
occurrences = st.lists(occurrence, unique_by=lambda x: x[:2], max_size=40)


def targets(found: list[tuple[int, int, int, bool]], seed: int = 0) -> tuple[Targets, np.ndarray]:
    columns = np.array(sorted(found), int).reshape(-1, 4).T
    passage, position, word, known = columns
    return targets_of(passage, position, word, seed, WORD_CONCEPT[word]), known.astype(bool)


@given(occurrences)
@settings(max_examples=60, deadline=None)
def test_one_known_word_per_passage_and_group(found: list) -> None:
    given_targets, known = targets(found)
    chosen, slot = rows.choose(given_targets, known)
    pairs = list(zip(given_targets.passage[chosen], given_targets.group[chosen], strict=True))
    wanted = {
        (p, c)
        for p, c, k in zip(given_targets.passage, given_targets.group, known, strict=True)
        if k
    }
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == wanted
    assert known[chosen].all()
    taken = set(zip(given_targets.passage[chosen].tolist(), slot.tolist(), strict=True))
    assert len(taken) == len(chosen)
    counts = np.bincount(given_targets.passage[chosen], minlength=8)
    assert (slot < counts[given_targets.passage[chosen]]).all()


@given(occurrences, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_part_chooses_as_the_whole_does(found: list, size: int) -> None:
    given_targets, known = targets(found)
    whole, _ = rows.choose(given_targets, known)
    pieces = []
    for numbers in rows.parts_of(8, size):
        inside = np.flatnonzero(np.isin(given_targets.passage, numbers))
        chosen, _ = rows.choose(given_targets.at(inside), known[inside])
        pieces.append(inside[chosen])
    assert np.array_equal(np.concatenate(pieces), whole)


@given(st.integers(0, 100), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_parts_are_equal_and_two_processes_have_equal_shares(passages: int, most: int) -> None:
    parts = list(rows.parts_of(passages, most))
    assert np.concatenate([*parts, [0][:0]]).tolist() == list(range(passages))
    sizes = [len(part) for part in parts]
    assert all(1 <= size <= most for size in sizes)
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(parts) < 2 or len(parts) % 2 == 0 or len(parts) == passages


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(1, 200),
)
@settings(max_examples=60, deadline=None)
def test_batches_cover_every_passage_once(passages: list, tokens: int) -> None:
    lengths, slots = np.array(passages).T
    order = np.lexsort((lengths, slots))
    start, batches = 0, []
    while start < len(order):
        batches.append(rows.batch_from(order, start, lengths, slots, tokens))
        start += len(batches[-1])
    assert np.array_equal(np.concatenate(batches), order)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens
        assert len(set(slots[batch].tolist())) == 1


def test_rare_words_are_preferred() -> None:
    # Word 0 stands in every passage, word 3 of the same concept in every tenth beside it.
    passage = np.repeat(np.arange(2000), 2)
    position = np.tile([1, 2], 2000)
    word = np.tile([0, 0], 2000)
    word[1::20] = 3
    given_targets = targets_of(passage, position, word, 0, WORD_CONCEPT[word])
    chosen, _ = rows.choose(given_targets, np.ones(4000, bool))
    # 200 of 4,000 against 3,800: nineteen times in twenty.
    assert 180 <= (given_targets.word[chosen] == 3).sum() < 200


def test_the_draw_follows_the_seed() -> None:
    found = [(p, t, (p + t) % N_WORDS, True) for p in range(8) for t in range(1, 15)]
    first, known = targets(found, 1)
    again, _ = targets(found, 1)
    other, _ = targets(found, 2)
    assert np.array_equal(rows.choose(first, known)[0], rows.choose(again, known)[0])
    assert not np.array_equal(rows.choose(first, known)[0], rows.choose(other, known)[0])


def test_without_groups_every_word_of_a_passage_is_a_row() -> None:
    passage, position = np.zeros(5, int), np.arange(1, 6)
    word = np.array([3, 5, 3, 0, 3])
    given_targets = targets_of(passage, position, word, 0)
    chosen, slot = rows.choose(given_targets, np.ones(5, bool))
    assert sorted(word[chosen].tolist()) == [0, 3, 5]
    assert sorted(slot.tolist()) == [0, 1, 2]
