"""Target words: which tokens are words of which concept, and where they stand in running text.

A **word** is one token that begins a word, is not continued by the next token, and hits a concept
with the lexicon's full weight: no homographs, nothing that appears as a name. Its forms and
inflections (*dog*, *Dogs*) are one distinct word. A word of two concepts is a word of neither.

What begins a word, for any tokenizer:

- A token with a space in front (▁ of SentencePiece, Ġ of byte-level vocabularies) begins one.
- A token without begins one after a line break, a quote, an opening bracket or the start of a text
  (``(cat``), and goes on with the word before it elsewhere (``edu|cat|ion``).
- Scripts without spaces (Han, kana, Thai and the like): a token of two characters or more is taken
  as the tokenizer cuts it; a single character only where none of such a script stands beside it,
  because it may be half of a longer word.
- Digits are a word as a whole numeral alone: beside no other digit, as part of no decimal, date or
  time (``3.5``, ``10:30``), and of no name (``B7``). Roman numerals count in capitals only.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from conceptvec.effects.passages import Passages
from conceptvec.model.vocabulary import added_ids, byte_letters, written_tokens
from conceptvec.scoring.lexicon import Lexicon
from conceptvec.scoring.words import normalise

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
ROMAN = re.compile(r"[IVX]{2,}")
BROKEN = "\ufffd"  # stands for bytes that are no whole character
SPACELESS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)
OPENING = frozenset("\"'*#>|•—–“”‘’«‹„([{¿¡（「『《【")
WITHIN_NUMBERS = frozenset(".,:/-–⁄")

# What is known of a token, one bit each.
BEGINS = 1  # begins a word, whatever stands before it
CONTINUES = 2  # goes on with the word before it
OPENS = 4  # a word may begin after it without a space
DIGITS = 8  # a number or a piece of one
WITHIN_NUMBER = 16  # joins two pieces of a number: 3.5
SPACELESS_PIECE = 32  # of a script without spaces
SINGLE = 64  # one character of such a script


def token_pieces(tokenizer: Any, size: int) -> list[str]:
    """What each of `size` tokens adds to a text, spaces as spaces; special tokens are empty.

    Byte-level vocabularies are decoded; bytes that are no whole character become U+FFFD.
    """
    tokens = written_tokens(tokenizer, size)
    # A byte-level vocabulary has no ▁ and writes its spaces as Ġ.
    spaces = sum(token.startswith("▁") for token in tokens)
    if sum(token.startswith("Ġ") for token in tokens) > spaces:
        alphabet = byte_letters()
        added = added_ids(tokenizer)
        pieces = [
            token if number in added else _decoded(token, alphabet)
            for number, token in enumerate(tokens)
        ]
    else:
        pieces = [BYTE_PIECE.sub(_byte, token).replace("▁", " ") for token in tokens]
    for special in tokenizer.all_special_ids:
        if special < size:
            pieces[special] = ""
    return pieces


def _decoded(token: str, alphabet: dict[str, int]) -> str:
    if not all(character in alphabet for character in token):
        return token  # an added token stands as it is
    return bytes(alphabet[character] for character in token).decode("utf-8", errors="replace")


def _byte(match: re.Match[str]) -> str:
    byte = int(match[1], 16)
    return chr(byte) if byte < 0x80 else BROKEN


def token_kind(piece: str) -> int:
    """What a token's text says about words, as the sum of the bits above."""
    if not piece:
        return OPENS  # a special token
    first, last = piece[0], piece[-1]
    stripped = piece.strip()
    spaceless = bool(stripped) and all(SPACELESS.match(character) for character in stripped)
    kind = 0
    if first.isspace():
        kind |= BEGINS
    elif first == BROKEN or unicodedata.category(first)[0] in "LNM":
        kind |= 0 if SPACELESS.match(first) else CONTINUES
    if last.isspace() or last in OPENING:
        kind |= OPENS
    if stripped and all(unicodedata.category(character) == "Nd" for character in stripped):
        kind |= DIGITS
    if piece in WITHIN_NUMBERS:
        kind |= WITHIN_NUMBER
    if spaceless:
        kind |= SPACELESS_PIECE | (SINGLE if len(stripped) == 1 else 0)
    return kind


@dataclass(frozen=True)
class TargetWords:
    """Which tokens are words of which concept.

    Attributes:
        concepts: the concepts' names, as the lexicon orders them.
        token_word: index of the distinct word that a token is, -1 for none: int32 (V,).
        word_concept: the concept of each distinct word: int32 (W,).
        words: each distinct word in its commonest form.
        kinds: what is known of each token (`token_kind`): uint8 (V,).
    """

    concepts: tuple[str, ...]
    token_word: np.ndarray
    word_concept: np.ndarray
    words: tuple[str, ...]
    kinds: np.ndarray

    @classmethod
    def build(cls, lexicon: Lexicon, pieces: list[str]) -> TargetWords:
        """Look every token up in the lexicon.

        Args:
            lexicon: the concepts' words.
            pieces: `token_pieces`.
        """
        kinds = np.array([token_kind(piece) for piece in pieces], np.uint8)
        token_word = np.full(len(pieces), -1, np.int32)
        numbers: dict[tuple[int, str], int] = {}
        for token, piece in enumerate(pieces):
            key = target_key(lexicon, piece)
            if key is not None:
                token_word[token] = numbers.setdefault(key, len(numbers))
        return cls(
            concepts=lexicon.names,
            token_word=token_word,
            word_concept=np.array([concept for concept, _ in numbers], np.int32),
            words=_shown_forms(list(numbers), token_word, pieces, kinds),
            kinds=kinds,
        )

    @cached_property
    def continues(self) -> np.ndarray:
        """Whether a token goes on with the word before it, which then was a fragment: bool (V,)."""
        return (self.kinds & CONTINUES) > 0

    @cached_property
    def token_concept(self) -> np.ndarray:
        """The concept of the word that a token is, -1 for none: int32 (V,)."""
        padded = np.append(self.word_concept, -1).astype(np.int32)
        return padded[self.token_word]


def target_key(lexicon: Lexicon, piece: str) -> tuple[int, str] | None:
    """Concept and lemma of a token that may be a target, None for all others."""
    text = piece.strip()
    if BROKEN in text or not any(character.isalnum() for character in text):
        return None
    if not set(text.upper()) - set("IVX") and not ROMAN.fullmatch(text):
        return None  # the pronoun "I", Spanish "vi", the name "Xi"
    lemma, concept, hit = lexicon.find(piece)
    return (concept, lemma) if concept >= 0 and hit >= 1 else None


def _shown_forms(
    keys: list[tuple[int, str]], token_word: np.ndarray, pieces: list[str], kinds: np.ndarray
) -> tuple[str, ...]:
    """How each word is shown: a number as such, else its first token with a space in front.

    Vocabularies are ordered by frequency, more or less, so the first token is the commonest form.
    """
    forms = [lemma if lemma.isdecimal() else "" for _, lemma in keys]
    marked = (kinds & BEGINS) > 0
    for wanted in (marked, ~marked):
        for token in np.flatnonzero((token_word >= 0) & wanted):
            word = token_word[token]
            forms[word] = forms[word] or normalise(pieces[token])
    return tuple(forms)


@dataclass(frozen=True)
class Occurrences:
    """Where target words stand, in the order of the text; all int32 (n,).

    Attributes:
        passage: index of the passage.
        position: index of the word's token in its passage.
        word: index of the distinct word.
    """

    passage: np.ndarray
    position: np.ndarray
    word: np.ndarray

    def __len__(self) -> int:
        return len(self.word)


def occurrences(passages: Passages, targets: TargetWords) -> Occurrences:
    """Every target word of the text at or after its passage's `scored_from`."""
    lengths = passages.lengths.astype(np.int64)
    passage = np.repeat(np.arange(len(passages), dtype=np.int32), lengths)
    position = (np.arange(len(passage)) - passages.starts[passage]).astype(np.int32)
    word = targets.token_word[passages.ids] if len(passages.ids) else np.zeros(0, np.int32)
    whole = whole_words(targets.kinds[passages.ids], position == 0)
    scored = position >= passages.scored_from[passage]
    kept = (word >= 0) & whole & scored
    return Occurrences(passage[kept], position[kept], word[kept])


def whole_words(kinds: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Which tokens of running text are whole words by what stands around them: bool (n,).

    Args:
        kinds: `token_kind` of each token, passage after passage: uint8 (n,).
        first: whether a token is the first of its passage: bool (n,).
    """
    last = np.append(first[1:], True)
    # Beyond a passage's ends stands what a text begins and ends with.
    before = np.where(first, OPENS, np.roll(kinds, 1))
    after = np.where(last, OPENS, np.roll(kinds, -1))
    second = np.where(last | np.append(last[1:], True), OPENS, np.roll(kinds, -2))

    spaceless, single = (kinds & SPACELESS_PIECE) > 0, (kinds & SINGLE) > 0
    beside = ((before & SPACELESS_PIECE) > 0) & ((kinds & BEGINS) == 0)
    beside |= (after & (SPACELESS_PIECE | BEGINS)) == SPACELESS_PIECE
    begins = ((kinds & BEGINS) > 0) | ((before & OPENS) > 0) | spaceless
    ends = (after & CONTINUES) == 0
    decimal = ((kinds & DIGITS) > 0) & ((after & WITHIN_NUMBER) > 0)
    decimal &= (second & (DIGITS | BEGINS)) == DIGITS
    return begins & ends & ~decimal & ~(single & beside)
