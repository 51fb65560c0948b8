"""What is known of every token before any list is read: its word, and the themes it belongs to.

A **theme** is one of the concepts or one of the themes beside them (``data/borders.json``). Lists
are sums over their tokens' rows of this table, so that all lists of a model cost a few gathers.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conceptvec.concepts import ConceptSet
from conceptvec.scoring.listed import (
    HOMOGRAPH,
    NO_GROUP,
    SEVERAL,
    Lexicon,
    Match,
    border_names,
    borders,
    is_capitalised,
)
from conceptvec.scoring.words import normalise, script

MEMBERSHIPS = 3  # themes kept per token, the strongest
NOT_A_WORD = -1  # instead of a lemma's number
A_PIECE = Match("\0", NO_GROUP, 0.0, True)  # stands for a token that only continues a word
SPACE = (" ", "▁")
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}


@dataclass(frozen=True)
class TokenTable:
    """One row per token of a vocabulary (or of a bare list).

    Attributes:
        themes: names, the concepts first.
        concepts: how many of them are concepts.
        proper: bool (themes,), the theme's words are proper names.
        lemma: int (V,), one number per word; `NOT_A_WORD` where there is none.
        piece: bool (V,), the token only continues a word.
        continues: bool (V,), it may do so: no space and no capital stand before it.
        theme: int (V, MEMBERSHIPS), the themes that a token belongs to.
        weight: float32 (V, MEMBERSHIPS), how far it belongs to them; 0 where there is no more.
    """

    themes: tuple[str, ...]
    concepts: int
    proper: np.ndarray
    lemma: np.ndarray
    piece: np.ndarray
    continues: np.ndarray
    theme: np.ndarray
    weight: np.ndarray

    @property
    def is_word(self) -> np.ndarray:
        """Tokens that are whole words, bool (V,)."""
        return (self.lemma != NOT_A_WORD) & ~self.piece


@dataclass(frozen=True)
class Listed:
    """What the lexicons say of every token; all of length V.

    Attributes:
        words: normalised; empty where the token is masked.
        lemma: one number per word.
        concept: index of the concept that lists the word, `NO_GROUP` or `SEVERAL`.
        hit: how much the hit counts.
        border: index of the theme beside the concepts that lists it, or `NO_GROUP`.
    """

    words: list[str]
    lemma: np.ndarray
    concept: np.ndarray
    hit: np.ndarray
    border: np.ndarray


@dataclass(frozen=True)
class Pieces:
    """Tokens that continue a word, bool (V,): those that do for sure, and those that may."""

    sure: np.ndarray
    possible: np.ndarray


class Reader:
    """Reads tokens by the lexicons of a run's concepts and of the themes beside them.

    Attributes:
        names: the concepts, in alphabetical order.
        themes: the concepts, then the themes beside them.
    """

    def __init__(self, concepts: ConceptSet) -> None:
        self.lexicon = Lexicon.build(concepts)
        self.borders = Lexicon.build(borders(concepts))
        self.names = self.lexicon.names
        self.themes = self.names + self.borders.names

    def read(self, tokens: Sequence[str], words: list[str], piece: np.ndarray) -> Listed:
        """Look every token up.

        Args:
            tokens: as the tokenizer writes them.
            words: the same, normalised; empty for what is no word (`normalised`).
            piece: bool (V,), the token only continues a word: it has no lemma of its own.
        """
        # A vocabulary writes a word in several ways: it is looked up once.
        parts = {word for word, is_piece in zip(words, piece, strict=True) if is_piece}
        match = {
            word: self.lexicon.match(word, A_PIECE if word in parts else None)
            for word in dict.fromkeys(words)
        }
        border = {word: self.borders.lists(word) for word in match}
        number = {"": NOT_A_WORD}
        lemmas = [number.setdefault(match[word].lemma, len(number) - 1) for word in words]
        capital = [
            is_capitalised(token) and not match[word].is_name
            for token, word in zip(tokens, words, strict=True)
        ]
        hit = np.array([match[word].hit for word in words], np.float32)
        return Listed(
            words=words,
            lemma=np.array(lemmas, np.int64),
            concept=np.array([match[word].group for word in words], np.int64),
            hit=np.where(capital, HOMOGRAPH * hit, hit),
            border=np.array([border[word] for word in words], np.int64),
        )

    def lexical_table(self, tokens: Sequence[str]) -> TokenTable:
        """The table by the lexicons alone: a word belongs to its concept as far as it hits."""
        # Which tokens are pieces of words only a whole vocabulary can tell.
        unknown = np.zeros(len(tokens), bool)
        listed = self.read(tokens, [normalise(token) for token in tokens], unknown)
        theme = np.zeros((len(tokens), MEMBERSHIPS), np.int64)
        weight = np.zeros((len(tokens), MEMBERSHIPS), np.float32)
        hits = listed.concept >= 0
        theme[hits, 0], weight[hits, 0] = listed.concept[hits], listed.hit[hits]
        # What a concept does not claim of a word is left to the theme beside it.
        beside = (listed.border >= 0) & (listed.concept != SEVERAL)
        theme[beside, 1] = len(self.names) + listed.border[beside]
        weight[beside, 1] = 1 - weight[beside, 0]
        return self.table(listed, Pieces(unknown, unknown), theme, weight)

    def table(
        self, listed: Listed, pieces: Pieces, theme: np.ndarray, weight: np.ndarray
    ) -> TokenTable:
        """The table with the given memberships."""
        proper = [name in border_names() for name in self.borders.names]
        return TokenTable(
            themes=self.themes,
            concepts=len(self.names),
            proper=np.array([False] * len(self.names) + proper, bool),
            lemma=listed.lemma,
            piece=pieces.sure,
            continues=pieces.possible,
            theme=theme,
            weight=weight,
        )


def normalised(tokens: Sequence[str], hidden: np.ndarray) -> list[str]:
    """The tokens' words; empty where a token is hidden, bool (V,)."""
    return ["" if hide else normalise(token) for token, hide in zip(tokens, hidden, strict=True)]


def find_pieces(tokens: Sequence[str], words: Sequence[str]) -> Pieces:
    """Tokens that continue a word.

    Without a space before it, in a script that writes spaces, a token is a whole word for sure only
    where it starts with a capital, and a piece for sure where the vocabulary has it with no space
    before it alone. In a vocabulary without spaces there are no pieces.
    """
    spaced = {word for token, word in zip(tokens, words, strict=True) if token[:1] in SPACE}
    sure, possible = np.zeros(len(tokens), bool), np.zeros(len(tokens), bool)
    if not spaced:
        return Pieces(sure, possible)
    for i, (token, word) in enumerate(zip(tokens, words, strict=True)):
        if not word or token[:1] in SPACE or word.isnumeric() or script(word) in UNSPACED:
            continue
        sure[i] = word not in spaced
        possible[i] = not token[:1].isupper()
    return Pieces(sure, possible)
