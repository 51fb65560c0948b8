"""Listed words: the data, and how a token is found in it."""

from __future__ import annotations

import pytest

from conceptvec.concepts import BUILT_IN, Concept, ConceptSet, data, load_concepts
from conceptvec.scoring import words
from conceptvec.scoring.listed import NO_GROUP, SEVERAL, Lexicon, borders

CONCEPTS = load_concepts(None, with_prompts=False)
LEXICON = Lexicon.build(CONCEPTS)
BORDERS = Lexicon.build(borders(CONCEPTS))


@pytest.mark.parametrize(
    ("token", "concept"),
    [
        (" собаками", "animals"),
        (" Elefanten", "animals"),
        (" gorillas", "animals"),
        (" blueberries", "food"),
        (" españoles", "language"),
        (" laboratoires", "science"),
        (" otelleri", "travel"),
        (" kaczkami", "animals"),
        (" स्टेशनों", "travel"),
        ("데이터를", "technology"),
        (" المعادلات", "science"),
        (" velocidades", "science"),
    ],
)
def test_inflected_forms_hit(token: str, concept: str) -> None:
    assert LEXICON.names[LEXICON.find(token).group] == concept


@pytest.mark.parametrize(
    "token",
    ["organic", "organization", "animate", "animation", "universal", "does", "thus", "rates",
     "stages", "cares", "согласно", "très", "james", "catalogue", "dogma", "scatter",
     "bluetoothed", "других", "семьи", "puerta"],
)  # fmt: skip
def test_derivations_and_parts_of_words_do_not_hit(token: str) -> None:
    assert LEXICON.find(token).hit == 0.0


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_concept_s_words_are_many_and_clean(name: str) -> None:
    """At least 150 English words, ten languages and more, normalised, homographs among them."""
    entry = data("lexicon", f"{name}.json")
    listed = [word for some in entry["words"].values() for word in some]
    assert len(set(entry["words"]["en"])) >= 150
    assert {"en", "de", "fr", "es", "ru", "zh", "ja", "ar", "hi", "ko"} <= entry["words"].keys()
    assert [w for w in [*listed, *entry["homographs"]] if words.normalise(w) != w] == []
    assert set(entry["homographs"]) <= set(listed)
    assert all(len(set(some)) == len(some) for some in entry["words"].values())


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_concept_says_where_it_comes_from_and_where_it_ends(name: str) -> None:
    entry = data("lexicon", f"{name}.json")
    assert entry["provenance"]
    assert set(entry["border"]) == {"in", "out"}


def test_no_word_is_two_concepts() -> None:
    owners: dict[str, set[str]] = {}
    for name in BUILT_IN:
        for some in data("lexicon", f"{name}.json")["words"].values():
            for word in some:
                owners.setdefault(word, set()).add(name)
    assert {word: who for word, who in owners.items() if len(who) > 1} == {}


def test_the_themes_beside_the_concepts_are_clean() -> None:
    document = data("borders.json")
    listed = [word for some in document["themes"].values() for word in some]
    assert document["provenance"]
    assert [word for word in listed if words.normalise(word) != word] == []
    assert set(document["names"]) <= document["themes"].keys()
    assert document["themes"].keys().isdisjoint(BUILT_IN)


@pytest.mark.parametrize(
    ("word", "theme"),
    [("italian", "nations"), ("london", "places"), ("sea", "sea"), ("television", "film"),
     ("pressure", "force"), ("tests", "test"), ("stones", "land")],
)  # fmt: skip
def test_what_stands_beside_a_concept(word: str, theme: str) -> None:
    assert BORDERS.names[BORDERS.lists(word)] == theme


@pytest.mark.parametrize("word", ["orange", "may", "mercury", "turkey", "march", "italian"])
def test_homographs_count_half(word: str) -> None:
    assert LEXICON.find(f" {word}").hit in (0.0, 0.5)


@pytest.mark.parametrize("word", ["mandarin", "urdu", "swahili", "hindi"])
def test_languages_that_are_no_nations_belong_to_language(word: str) -> None:
    assert LEXICON.names[LEXICON.find(f" {word}").group] == "language"


def fruit_and_colors() -> Lexicon:
    listed = {"a": ("apple", "pear", "orange"), "b": ("red", "blue", "orange")}
    concepts = tuple(Concept(name, {"en": words}) for name, words in listed.items())
    return Lexicon.build(ConceptSet(concepts, ()))


def test_a_word_of_two_concepts_counts_for_neither() -> None:
    assert fruit_and_colors().find("orange") == ("orange", SEVERAL, 0.0)


def test_no_inflection_gives_it_back() -> None:
    assert fruit_and_colors().find("oranges").hit == 0.0


def test_other_words_are_found_under_their_lemma() -> None:
    assert fruit_and_colors().find("apples") == ("apple", 0, 1.0)


@pytest.mark.parametrize(
    ("token", "hit"),
    [(" penguins", 1), (" Penguins", 0.5), (" PENGUINS", 1), (" January", 1), (" Hund", 1)],
)
def test_capitals_count_half_unless_all_are(token: str, hit: float) -> None:
    assert LEXICON.find(token).hit == hit


def test_a_theme_that_shares_a_word_with_a_user_s_concept_is_left_out() -> None:
    own = load_concepts("tools=hammer,saw;birds=robin,owl", with_prompts=False)
    kept = {concept.name for concept in borders(own).concepts}
    assert "tools" not in kept
    assert "nations" in kept


def test_unknown_words_are_in_no_group() -> None:
    assert LEXICON.find("zyzzyva").group == NO_GROUP
