"""Tokens without their marks, the forms of a word, numerals."""

from __future__ import annotations

import pytest

from conceptvec.scoring import words


@pytest.mark.parametrize(
    ("token", "word"),
    [
        ("▁Dog", "dog"),
        ("Ġdogs", "dogs"),
        (" ＤＯＧ", "dog"),
        ("##ing", "ing"),
        ("Straße", "strasse"),
        ("ﬁsh", "fish"),
        ("₈", "8"),
        ("do\u200bg", "dog"),
        ("«Hund»", "hund"),
        ("\u00ad", ""),
    ],
)
def test_normalise(token: str, word: str) -> None:
    assert words.normalise(token) == word


def test_digits_of_all_scripts_are_one_word() -> None:
    assert {words.lemma(words.normalise(t)) for t in ("8", "₈", "⁸", "८", "٨", "８")} == {"8"}


def test_forms_of_a_word_outside_the_lexicon_meet() -> None:
    forms = ("tax", "Tax", " TAX", "taxes", "▁taxed")
    assert len({words.lemma(words.normalise(form)) for form in forms}) == 1


@pytest.mark.parametrize("sign", ["!", "x", ""])
def test_signs_are_no_words(sign: str) -> None:
    assert words.lemma(sign) == ""


def test_one_letter_is_a_word_where_a_letter_is_a_word() -> None:
    assert words.lemma("狗") == "狗"


@pytest.mark.parametrize(
    "numeral",
    ["7", "100", "1,000", "3rd", "21st", "½", "Ⅷ", "viii", "xiv", "२५", "٣", "二十", "第三", "50%"],
)
def test_numerals(numeral: str) -> None:
    assert words.is_numeral(words.normalise(numeral))


@pytest.mark.parametrize(
    "not_one", ["1984", "2023", "x", "i", "xxx", "mix", "一个人", "covid19", ""]
)
def test_no_numerals(not_one: str) -> None:
    assert not words.is_numeral(not_one)


@pytest.mark.parametrize(
    ("word", "script"),
    [("dog", "LATIN"), ("собака", "CYRILLIC"), ("狗", "CJK"), ("كلب", "ARABIC"), ("", "")],
)
def test_script(word: str, script: str) -> None:
    assert words.script(word) == script
