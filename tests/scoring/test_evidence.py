"""The evidence of lists and the score, against the formulas written out."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptvec.scoring import evidence as ev
from conceptvec.scoring.table import MEMBERSHIPS, TokenTable

THEMES, CONCEPTS, VOCABULARY = 5, 3, 40


def make_table(seed: int) -> TokenTable:
    """A table of 40 tokens: some no words, some pieces, with memberships in five themes, three of them concepts."""
    rng = np.random.default_rng(seed)
    theme = np.argsort(rng.random((VOCABULARY, THEMES)), axis=1)[:, :MEMBERSHIPS]
    weight = rng.random((VOCABULARY, MEMBERSHIPS)) * (rng.random((VOCABULARY, MEMBERSHIPS)) < 0.5)
    return TokenTable(
        themes=tuple("abcde"),
        concepts=CONCEPTS,
        proper=np.zeros(THEMES, bool),
        lemma=rng.integers(-1, 12, VOCABULARY),
        piece=rng.random(VOCABULARY) < 0.2,
        continues=np.zeros(VOCABULARY, bool),
        theme=theme,
        weight=(weight / 3).astype(np.float32),
    )


def by_hand(table: TokenTable, ids: list[int]) -> dict[str, float]:
    """The evidence of one list, written out."""
    ids = ids[: ev.RANKS]
    weights = [2 ** (-rank / ev.HALF_LIFE) for rank in range(len(ids))]
    share, words = [0.0] * THEMES, [0.0] * THEMES
    seen: set[int] = set()
    for token, weight in zip(ids, weights, strict=True):
        lemma = int(table.lemma[token])
        if lemma < 0 or table.piece[token]:
            if lemma >= 0:
                seen.add(lemma)
            continue
        for theme, part in zip(table.theme[token], table.weight[token], strict=True):
            share[theme] += weight * part / sum(weights)
            words[theme] += part if lemma not in seen else 0
        seen.add(lemma)
    best = max(range(CONCEPTS), key=lambda c: (share[c], -c))
    return {
        "share": share[best],
        "words": words[best],
        "rival_share": max(s for c, s in enumerate(share) if c != best),
    }


@given(
    st.integers(0, 50),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_the_vectorised_sums_are_the_sums(seed: int, ids: list[int]) -> None:
    table = make_table(seed)
    found = ev.read(table, np.array([ids]))
    for name, value in by_hand(table, ids).items():
        assert getattr(found, name)[0] == pytest.approx(value, abs=1e-6), name


@given(st.integers(0, 50), st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_the_weight_of_a_word_s_forms(seed: int, k: int) -> None:
    table = make_table(seed)
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (3, k))
    forms = ev.forms(table, ids)
    weights = 2.0 ** (-np.arange(k) / ev.HALF_LIFE)
    for row in range(3):
        words = [int(table.lemma[t]) if table.is_word[t] else -1 for t in ids[row]]
        total = sum(w for w, t in zip(weights, ids[row], strict=True) if table.lemma[t] >= 0)
        for word in set(words) - {-1}:
            expected = sum(w for w, other in zip(weights, words, strict=True) if other == word)
            assert forms[row, words.index(word)] == pytest.approx(expected / total)
        assert (forms[row] > 0).sum() == len(set(words) - {-1})


def evidence(share: float, rival: float = 0.0, words: float = 9.0) -> ev.Evidence:
    """Evidence of one list with the given parts."""
    numbers = {"share": share, "words": words, "rival_share": rival, "signs": 0.0}
    arrays = {name: np.array([value]) for name, value in numbers.items()}
    zero = np.zeros(1, int)
    return ev.Evidence(
        concept=zero, rival=zero, distinct=zero + 9, first=np.ones((1, 9), bool), **arrays
    )


def score(found: ev.Evidence, standout: float = 0.0, one_word: float = 0.0) -> float:
    return float(ev.combine(found, np.array([standout]), np.array([one_word]))[0])


def test_the_score_is_the_sentence_in_the_readme() -> None:
    """What a reader recomputes from the components: 1/(1+exp(-(4.75 + 4.5·ln(share+0.02) + 2.15·standout)))."""
    logit = 4.75 + 4.5 * math.log(0.4 + 0.02) + 2.15 * 0.6
    assert score(evidence(0.4), standout=0.6) == pytest.approx(1 / (1 + math.exp(-logit)))


def test_a_third_of_a_list_that_stands_out_halfway_is_enough() -> None:
    assert score(evidence(0.34), standout=0.5) > 0.75 > score(evidence(0.32), standout=0.5)


def test_another_theme_as_strong_halves_the_score() -> None:
    assert score(evidence(0.5, rival=0.41)) == score(evidence(0.5)) / 2
    assert score(evidence(0.5, rival=0.39)) == score(evidence(0.5))


def test_one_word_that_is_not_plainly_the_concept_s_halves_the_score() -> None:
    assert score(evidence(0.5), one_word=0.51) == score(evidence(0.5)) / 2
    assert score(evidence(0.61), one_word=0.9) == score(evidence(0.61))


def test_two_words_are_two_thirds_of_a_score() -> None:
    assert score(evidence(0.9, words=2.0)) == pytest.approx(score(evidence(0.9)) * 2 / 3)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_the_score_stays_in_its_interval_and_rises_with_its_parts(
    share: float, more: float, standout: float, words: float
) -> None:
    low = score(evidence(share, words=words), standout)
    high = score(evidence(max(share, more), words=words), standout)
    assert 0 <= low <= high <= 1
    assert low <= score(evidence(share, words=words), 1.0)


def test_a_gaussian_readout_does_not_stand_out() -> None:
    """The tenth of 20,000 Gaussian values lies where the formula expects it, so standout is small on average."""
    values = np.random.default_rng(0).normal(size=(200, 20_000))
    top = -np.sort(-values, axis=1)[:, :30]
    found = ev.standout(top, np.zeros(200), np.ones(200), 20_000)
    assert found.mean() < 0.2


def test_standout_is_a_distance_in_half_standard_deviations() -> None:
    expected = NormalDist().inv_cdf(1 - 10 / 1000)
    top = np.full((1, 10), 3.0 + 2.0 * (expected + 0.25))
    assert ev.standout(top, np.array([3.0]), np.array([4.0]), 1000)[0] == pytest.approx(0.5)


def test_standout_does_not_depend_on_the_readout_s_scale() -> None:
    top = -np.sort(-np.random.default_rng(1).normal(size=(5, 500)), axis=1)[:, :20]
    one = ev.standout(top, np.zeros(5), np.ones(5), 500)
    two = ev.standout(7 * top + 3, np.full(5, 3.0), np.full(5, 49.0), 500)
    assert two == pytest.approx(one)
