"""Text for people: nothing that steers a terminal, numbers that read well, tables that are escaped."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptvec.text import (
    finite,
    html_table,
    listed,
    number,
    plain,
    printable,
    table,
    words_of,
)

STEERS = [*map(chr, (*range(32), *range(0x7F, 0xA0)))]  # control characters
STEERS += ["\u200e", "\u202e", "\u2066", "\ufeff"]  # direction of writing, marks without width
STEERS += ["\u2028", "\u2029", "\ue000"]  # ends of lines, private use


@given(st.text(st.one_of(st.sampled_from(STEERS), st.characters())))
def test_printable_text_steers_no_terminal(text: str) -> None:
    assert set(printable(text)).isdisjoint(STEERS)


@given(st.text())
def test_printable_text_keeps_its_length_and_is_stable(text: str) -> None:
    assert len(printable(text)) == len(text)
    assert printable(printable(text)) == printable(text)


def test_a_kept_control_character_stays() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb�"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.0, "0.00"), (-0.001, "0.00"), (-0.2, "-0.20"), (1.239, "1.24")],
)
def test_numbers_for_people(value: float | None, shown: str) -> None:
    assert number(value, 2) == shown


@given(st.floats(-1e9, 1e9))
def test_a_number_is_within_half_of_its_last_digit(value: float) -> None:
    assert abs(float(number(value, 3)) - value) <= 0.0005 + 1e-6


@given(st.floats(allow_infinity=False))
def test_a_plain_number_has_six_digits_and_is_never_nan(value: float) -> None:
    kept = plain(value)
    if math.isnan(value):
        assert kept is None
    else:
        assert kept == pytest.approx(value, rel=1e-5)
        assert plain(kept) == kept


def test_counts_as_a_phrase() -> None:
    assert listed({"animals": 3, "not_specific": 1, "colors": 0}) == "3 animals, 1 not specific"
    assert listed({"animals": 0}) == "none"


def test_tokens_as_one_line() -> None:
    assert words_of([" dog", "狗", "\x1b[31m"]) == "dog 狗 �[31m"


def test_a_table_keeps_numbers_as_they_are_written() -> None:
    assert "0.50" in table([["a", "0.50"]], ("name", "value"))


def test_a_table_in_a_cell_is_escaped_and_aligned() -> None:
    shown = html_table([["<b>", "1"]], ("name", "value"))
    assert "&lt;b&gt;" in shown
    assert shown.count("text-align: left") == 4


@pytest.mark.parametrize(
    "text", ["می\u200cشود", "👨\u200d👩\u200d👧", "👩🏽\u200d🔬", "क\u094d\u200dष"]
)
def test_joiners_inside_words_and_pictures_stay(text: str) -> None:
    assert printable(text) == text
    assert words_of([f" {text} "]) == text


@pytest.mark.parametrize(
    "text",
    ["\u200ddog", "dog\u200c", "a \u200d b", "\u200d", "a\u200d\u200db", "a\u200d\x1b", "�\u200da"],
)
def test_joiners_anywhere_else_are_shown_as_such(text: str) -> None:
    assert not set(printable(text)) & set("\u200c\u200d")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_json_cannot_hold_is_null(value: float) -> None:
    assert plain(value) is None


def test_a_document_without_what_json_cannot_hold() -> None:
    document = {"a": [1, 2.5, float("nan")], "b": {"c": (float("inf"), "text", True, None)}}
    assert finite(document) == {"a": [1, 2.5, None], "b": {"c": [None, "text", True, None]}}
