"""What the unembedding says of words, against the formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conceptvec.concepts import load_concepts
from conceptvec.scoring.kinship import (
    CHANCE,
    KNOWN,
    LEVEL,
    OWN,
    SHRINK,
    STEEP,
    Kinship,
    Rows,
)
from conceptvec.scoring.table import NOT_A_WORD
from tests.conftest import ANIMALS, COLORS
from tests.scoring.planted_vocabulary import NEAR, NOISE, THEME, TWO, ids_of, planted


def make_kinship(**changes: object) -> Kinship:
    tokens, rows = planted()
    arguments = {"tokens": tokens, "unembedding": rows, "concepts": TWO} | changes
    return Kinship(masked=np.zeros(len(arguments["tokens"]), bool), **arguments)


def whitened_by_hand() -> np.ndarray:
    """The whitened unit rows of the planted vocabulary, by an eigendecomposition in float64."""
    rows = planted()[1].numpy().astype(np.float64)
    unit = rows - rows.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    covariance = unit.T @ unit / len(unit)
    spread = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(
        (1 - SHRINK) * covariance + SHRINK * spread * np.eye(len(covariance))
    )
    white = unit @ vectors / np.sqrt(values) @ vectors.T
    return white / np.linalg.norm(white, axis=1, keepdims=True)


def membership(kinship: Kinship, words: list[str], theme: str) -> np.ndarray:
    """How far words belong to a theme."""
    rows, number = ids_of(words), kinship.table.themes.index(theme)
    of_theme = kinship.table.theme[rows] == number
    return np.where(of_theme, kinship.table.weight[rows], 0).sum(1)


def test_cosines_are_those_of_whitened_rows() -> None:
    tokens, rows = planted()
    white = whitened_by_hand()
    found = Rows(rows, tokens, np.zeros(len(tokens), bool)).whitened(rows[:50]).numpy()
    assert found @ found.T == pytest.approx(white[:50] @ white[:50].T, abs=1e-4)


def test_a_small_unembedding_is_compared_without_a_sketch() -> None:
    white, sketch = whitened_by_hand(), make_kinship().sketch
    assert sketch[:20] @ sketch[:20].T == pytest.approx(white[:20] @ white[:20].T, abs=1e-4)


def test_a_sketch_keeps_cosines() -> None:
    """In 640 dimensions the sketch of 128 is right within a few hundredths."""
    rows = torch.randn(3000, 640, generator=torch.Generator().manual_seed(0))
    tokens = [f" word{i}" for i in range(3000)]
    kinship = Kinship(tokens, np.zeros(3000, bool), rows, TWO)
    white = Rows(rows, tokens, np.zeros(3000, bool)).whitened(rows[:60]).numpy()
    error = kinship.sketch[:60] @ kinship.sketch[:60].T - white @ white.T
    assert np.sqrt((error**2).mean()) < 0.1


def test_memberships_are_the_formula() -> None:
    """Of words that no list has: e^b / (1 + Σ e^b) over the two prototypes."""
    kinship, white = make_kinship(), whitened_by_hand()
    levels = []
    for words in (ANIMALS, COLORS):
        members = white[ids_of(words)]
        mean = members.sum(0)
        rest = mean - members
        own = np.median((members * rest).sum(1) / np.linalg.norm(rest, axis=1))
        cosine = white[ids_of(NEAR)] @ mean / np.linalg.norm(mean)
        scale = np.sqrt(OWN * max(own, OWN / 5))
        level = max(LEVEL * scale, CHANCE / np.sqrt(48))
        levels.append(STEEP * (cosine - level) / scale)
    odds = np.exp(levels)
    expected = odds[0] / (1 + odds.sum(0))
    assert membership(kinship, NEAR, "animals") == pytest.approx(expected, abs=1e-3)


def test_unlisted_neighbours_belong_and_others_do_not() -> None:
    kinship = make_kinship()
    assert membership(kinship, NEAR, "animals").min() > 0.5
    assert membership(kinship, [*THEME, *NOISE], "animals").max() < 0.5


def test_listed_words_belong_fully_wherever_they_lie() -> None:
    rows = planted()[1].clone()
    rows[ids_of(ANIMALS[:1])] = rows[ids_of(NOISE[:1])]
    assert membership(make_kinship(unembedding=rows), ANIMALS, "animals").min() == 1


def test_homographs_belong_as_far_as_their_rows_say() -> None:
    """*orange* among the fruit is hardly a color, among the colors it is one; the head start counts for both."""
    concepts = load_concepts(None, with_prompts=False)
    fruit = ["apple", "banana", "lemon", "pear", "cherry", "grape", "mango", "peach"]
    colors = ["red", "blue", "yellow", "purple", "pink", "gray", "beige", "turquoise"]
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(2, 48, generator=generator)
    rest = [f" filler{i}" for i in range(2000)]
    tokens = [f" {w}" for w in fruit] + [f" {w}" for w in colors] + [" orange", *rest]
    rows = torch.randn(len(tokens), 48, generator=generator)
    rows[:8] = centres[0] + 0.5 * rows[:8]
    rows[8:16] = centres[1] + 0.5 * rows[8:16]
    weight = []
    for centre in centres:
        rows[16] = centre + 0.3 * rows[17]
        table = Kinship(tokens, np.zeros(len(tokens), bool), rows, concepts).table
        color = table.theme[16] == table.themes.index("colors")
        weight.append(float(table.weight[16][color].sum()))
    assert weight[0] == pytest.approx(0.3, abs=0.02)  # the floor
    assert weight[1] > 0.9
    assert KNOWN > 0


def test_tokens_that_were_never_trained_are_no_words() -> None:
    tokens, rows = planted()
    tokens, rows = [*tokens, *(f"<unused{i}>" for i in range(9))], torch.cat([rows, rows[:9]])
    rows[-9:] = 5 + 0.01 * rows[-9:]  # they lie together
    rows[ids_of(["vb0000k"])] = 5.0  # and one word with them
    masked = np.array([token.startswith("<") for token in tokens])
    kinship = Kinship(tokens, masked, rows, TWO)
    assert kinship.table.lemma[ids_of(["vb0000k"])] == NOT_A_WORD
    assert (kinship.table.lemma[ids_of(ANIMALS)] != NOT_A_WORD).all()


def test_pieces_of_words_are_told_by_the_vocabulary() -> None:
    tokens = [" house", "house", "ousing", "狗", "7", "House"]
    rows = torch.randn(len(tokens), 8, generator=torch.Generator().manual_seed(0))
    table = Kinship(tokens, np.zeros(len(tokens), bool), rows, TWO).table
    assert table.piece.tolist() == [False, False, True, False, False, False]
    assert table.continues.tolist() == [False, True, True, False, False, False]


def test_languages_are_told_by_the_rows() -> None:
    """Words of one language share a direction: a word of no list is put to the language that it lies by."""
    concepts = load_concepts(None, with_prompts=False)
    by_language = {"en": set(), "de": set()}
    for concept in concepts.concepts:
        for language in by_language:
            by_language[language] |= {w for w in concept.words[language] if w.isascii()}
    shared = by_language["en"] & by_language["de"]
    listed = {k: sorted(words - shared)[:150] for k, words in by_language.items()}
    generator = torch.Generator().manual_seed(0)
    tokens = [f" {w}" for words in listed.values() for w in words] + [" zzuno", " zzdos"]
    rows = torch.randn(len(tokens), 48, generator=generator)
    centres = torch.randn(2, 48, generator=generator)
    first = len(listed["en"])
    rows[:first] += 2 * centres[0]
    rows[first:-2] += 2 * centres[1]
    rows[-2], rows[-1] = 2 * centres[0], 2 * centres[1]
    kinship = Kinship(tokens, np.zeros(len(tokens), bool), rows, concepts)
    assert kinship.language[-2] == kinship.english != kinship.language[-1]


def test_a_vocabulary_without_the_concepts_words_has_no_members() -> None:
    tokens = [f" qqq{i}" for i in range(30)]
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert Kinship(tokens, np.zeros(30, bool), rows, TWO).table.weight.sum() == 0
