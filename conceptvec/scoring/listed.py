"""Listed words: which concept, or which theme beside the concepts, a token belongs to by a lexicon.

1. A token is normalised (▁ and spaces off, NFKC, case folded) and reduced to a **lemma**, under
   which the forms of one word meet. Tokens without two letters or a digit are no words.
2. A lemma **hits** a concept by a whole-word match, as it is listed or inflected (`words`): 1, or ½
   where the word is a marked homograph, or appears only with a capital although its concept's words
   are no names (`Penguins` beside `Raptors` is a team). A word of two concepts hits neither.

The themes beside the concepts (nations, sea, family, …: ``data/borders.json``) are looked up in the
same way. They are where a concept ends: *Italian* is a nationality first, *sea* no vehicle. Nothing
here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from conceptvec.concepts import Concept, ConceptSet, data
from conceptvec.scoring.words import (
    BARE,
    is_numeral,
    languages,
    lemma,
    normalise,
    not_forms,
    stems,
)

HOMOGRAPH = 0.5  # what a word with a common other meaning counts, and a common word with a capital
NO_GROUP, SEVERAL = -1, -2  # instead of a group: the word is in none, in more than one


class Match(NamedTuple):
    """A listed word: lemma, group, how much a hit counts, whether it has a capital anyway."""

    lemma: str
    group: int
    hit: float
    is_name: bool


class Reading(NamedTuple):
    """What a lexicon says of a token: lemma, group, and how much the hit counts."""

    lemma: str
    group: int
    hit: float


@dataclass(frozen=True)
class Lexicon:
    """Words of several groups as lookup tables; the groups are in alphabetical order.

    Attributes:
        names: of the groups.
        by_word: normalised word → its match.
        by_stem: language → stem → the match of the word with that stem.
        numerals: the group of all digits and numerals, or `NO_GROUP`.
    """

    names: tuple[str, ...]
    by_word: dict[str, Match]
    by_stem: dict[str, dict[str, Match]]
    numerals: int

    @classmethod
    def build(cls, concepts: ConceptSet) -> Lexicon:
        """Collect words under themselves and their stems; what two groups claim belongs to none."""
        by_word: dict[str, Match] = {}
        by_stem: dict[str, dict[str, Match]] = {}
        ordered = sorted(concepts.concepts, key=lambda concept: concept.name)
        for group, concept in enumerate(ordered):
            for language, listed in concept.words.items():
                # The package's own lists are kept normalised (a test looks); the user's may be
                # written in any way.
                known = dict.fromkeys(listed if language else filter(None, map(normalise, listed)))
                for word in known:
                    code = language or next(iter(languages(word)), "")
                    stem, key = _keys(word, code, known)
                    match = _match(concept, word, key, group)
                    _enter(by_word, word, match)
                    _enter(by_stem.setdefault(code, {}), stem, match)
        # The rule for numerals belongs to the package's own concept, not to its name.
        built_in = [concept.name if is_built_in(concept) else "" for concept in ordered]
        numerals = built_in.index("numbers") if "numbers" in built_in else NO_GROUP
        return cls(tuple(concept.name for concept in ordered), by_word, by_stem, numerals)

    def find(self, token: str) -> Reading:
        """What the lexicon says of a token as a tokenizer writes it."""
        match = self.match(normalise(token))
        capital = is_capitalised(token) and not match.is_name
        return Reading(match.lemma, match.group, match.hit * (HOMOGRAPH if capital else 1.0))

    def match(self, word: str, unlisted: Match | None = None) -> Match:
        """The match of a normalised word, as listed or inflected.

        Args:
            word: normalised.
            unlisted: what an unlisted word gives; by default its own lemma, of `NO_GROUP`.
        """
        if self.numerals != NO_GROUP and is_numeral(word):
            return Match(lemma(word) or word, self.numerals, 1.0, True)
        match = self.by_word.get(word) or self._inflected(word)
        return match or unlisted or Match(lemma(word), NO_GROUP, 0.0, True)

    def lists(self, word: str) -> int:
        """The group that lists a normalised word, or `NO_GROUP`."""
        match = self.by_word.get(word) or self._inflected(word)
        return match.group if match is not None and match.group >= 0 else NO_GROUP

    def _inflected(self, word: str) -> Match | None:
        """The listed word of which this is another form; of no group where languages disagree."""
        if len(word) < 3 or word in not_forms():
            return None
        matches: list[Match] = []
        for language in languages(word):
            table = self.by_stem.get(language, {})
            for stem in stems(word, language) if table else ():
                if (len(stem) < len(word) or language in BARE) and stem in table:
                    matches.append(table[stem])
        if len({match.group for match in matches}) > 1:
            return Match(lemma(word), SEVERAL, 0.0, False)
        return matches[0] if matches else None


def is_capitalised(token: str) -> bool:
    """Whether a token starts with a capital and does not shout."""
    letters = token.strip(" ▁Ġ#")
    return letters[:1].isupper() and not letters.isupper()


@cache
def border_names() -> frozenset[str]:
    """The themes beside the concepts whose words are names: no translations of one another."""
    return frozenset(data("borders.json")["names"])


def borders(concepts: ConceptSet) -> ConceptSet:
    """The themes beside the concepts, without those that share a word with a user's concept.

    Args:
        concepts: the concepts of the run. The built-in ones keep all themes: they are drawn against
            them.
    """
    taken = {
        normalise(word)
        for concept in concepts.concepts
        if not is_built_in(concept)
        for words in concept.words.values()
        for word in words
    }
    themes = data("borders.json")["themes"]
    kept = [
        Concept(name, {"": tuple(words)})
        for name, words in themes.items()
        if taken.isdisjoint(words)
    ]
    return ConceptSet(tuple(kept), ())


def is_built_in(concept: Concept) -> bool:
    """Whether a concept is one of the package's: only those have words by language."""
    return "" not in concept.words


def _keys(word: str, code: str, known: Sequence[str] | dict[str, None]) -> tuple[str, str]:
    """The stem under which a listed word is found again, and the lemma that it is counted as."""
    if code == "en":
        return word, next((stem for stem in stems(word, code) if stem in known), word)
    stem = stems(word, code)[0]
    return stem, stem


def _match(concept: Concept, word: str, key: str, group: int) -> Match:
    hit = HOMOGRAPH if word in concept.homographs else 1.0
    return Match(key, group, hit, word in concept.proper or not word.isascii())


def _enter(table: dict[str, Match], key: str, match: Match) -> None:
    """Enter a word. One of two groups stays, for none: no inflection may give it back."""
    old = table.setdefault(key, match)
    if old is match:
        return
    if old.group != match.group:
        table[key] = Match(old.lemma, SEVERAL, 0.0, False)
    elif old != match:
        hit, is_name = max(old.hit, match.hit), old.is_name or match.is_name
        table[key] = Match(old.lemma, old.group, hit, is_name)
