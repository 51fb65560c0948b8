"""Groups of the answer `other`: gathered by theme, named by what their lists share, without duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conceptvec.concepts import load_concepts
from conceptvec.scoring.groups import OtherList, group
from conceptvec.scoring.kinship import Kinship

CONCEPTS = load_concepts(None, with_prompts=False)
MUSIC = ["guitar", "violin", "orchestra", "melody", "Melody", "choir", "opera", "flute"]
LAW = ["verdict", "jury", "lawsuit", "attorney", "statute", "court", "plaintiff", "tribunal"]


@pytest.fixture(scope="module")
def vocabulary() -> tuple[list[str], Kinship]:
    """Music and law with a direction each, and fillers."""
    generator = torch.Generator().manual_seed(0)
    tokens = [f" {w}" for w in [*MUSIC, *LAW]] + [f" filler{i}" for i in range(2000)]
    rows = torch.randn(len(tokens), 64, generator=generator)
    for start, words in ((0, MUSIC), (len(MUSIC), LAW)):
        rows[start : start + len(words)] += 3 * torch.randn(64, generator=generator)
    return tokens, Kinship(tokens, np.zeros(len(tokens), bool), rows, CONCEPTS)


def other(name: str, ids: list[int], coherence: float = 0.5) -> OtherList:
    return OtherList(name, np.array(ids), coherence)


def grouped(vocabulary: tuple[list[str], Kinship], lists: list[OtherList]) -> list[dict[str, Any]]:
    tokens, kinship = vocabulary
    return group(lists, kinship, tokens)


def test_lists_of_one_theme_are_one_group_and_the_largest_comes_first(vocabulary) -> None:
    lists = [
        other("law", [8, 9, 10, 11]),
        other("one", [0, 1, 2, 3]),
        other("two", [3, 5, 6, 7]),
        other("three", [1, 2, 5, 6]),
    ]
    found = grouped(vocabulary, lists)
    assert [entry["ids"] for entry in found] == [["one", "three", "two"], ["law"]]


def test_a_group_is_named_by_the_words_that_its_lists_share(vocabulary) -> None:
    lists = [other("a", [0, 1, 2, 100]), other("b", [0, 1, 2, 101]), other("c", [0, 1, 2, 102])]
    (found,) = grouped(vocabulary, lists)
    assert set(found["name"].split(", ")) == {"guitar", "violin", "orchestra"}


def test_a_name_has_every_word_once(vocabulary) -> None:
    (found,) = grouped(vocabulary, [other("a", [3, 4, 5, 6])])
    assert len({word.lower() for word in found["tokens"]}) == len(found["tokens"])


def test_no_two_groups_have_one_name(vocabulary) -> None:
    rng = np.random.default_rng(0)
    lists = [other(f"l{i}", rng.choice(16, 4, replace=False).tolist()) for i in range(40)]
    names = [entry["name"] for entry in grouped(vocabulary, lists)]
    assert len(set(names)) == len(names)


def test_every_list_is_in_one_group(vocabulary) -> None:
    rng = np.random.default_rng(1)
    lists = [other(f"l{i}", rng.choice(300, 6, replace=False).tolist()) for i in range(60)]
    ids = [name for entry in grouped(vocabulary, lists) for name in entry["ids"]]
    assert sorted(ids) == sorted(one.id for one in lists)


def test_the_order_of_the_lists_changes_nothing(vocabulary) -> None:
    rng = np.random.default_rng(2)
    lists = [other(f"l{i}", rng.choice(40, 6, replace=False).tolist()) for i in range(30)]
    assert grouped(vocabulary, lists) == grouped(vocabulary, lists[::-1])


def test_nothing_gives_no_groups(vocabulary) -> None:
    assert grouped(vocabulary, []) == []
