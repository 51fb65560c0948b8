"""How Stage 1 shows itself: the lists that people can read come first."""

from __future__ import annotations

import pytest

import conceptvec as cv
from conceptvec.extraction.stage import SHOWN_ROWS, SHOWN_TOKENS, is_whole_word
from conceptvec.model.weights import load_weights


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" dog", True),
        (" собака", True),
        ("dog", False),
        (" ab", False),
        (" a-b", False),
        ("", False),
    ],
)
def test_a_whole_word_begins_with_a_space(token: str, expected: bool) -> None:
    assert is_whole_word(token) == expected


def test_the_shown_lists_are_the_most_readable_of_all_poles() -> None:
    config = cv.Config(layers="3", device="cpu")
    candidates = cv.extract(load_weights(config), config)
    shown = candidates._readable()
    assert len(shown) == len({(at.layer, sign, row) for at, sign, row in shown}) == SHOWN_ROWS
    for projections, sign, row in shown:
        ids = projections.pole(sign)[0][row][:SHOWN_TOKENS]
        assert all(is_whole_word(candidates.tokens[token]) for token in ids)
    sharpness = [float(at.sharpness(sign, SHOWN_TOKENS)[row]) for at, sign, row in shown]
    assert sharpness == sorted(sharpness, reverse=True)
