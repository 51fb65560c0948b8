"""Openings: what the model's texts begin with.

An opening is one word of a concept, with a capital where its script has them, as the beginning of a
sentence (*Horse*) or as a title (*Horse* and an empty line), in turn; every eighth is empty. One
word gives a subject and nothing that the next word would have to fit, in any language, and its own
tokens are never scored. Two words of a concept would be the beginning of a list of its words.

Every concept gets as many openings as any other, and uses all its words before it uses one again.
Homographs are left out. Where a concept has words of several languages, three of four openings are
English: the others give half as many words of their concept (measured on Gemma 3 270M).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from conceptvec.concepts import Concept
from conceptvec.effects.coverage import Coverage
from conceptvec.effects.passages import empty_opening, start_of_text
from conceptvec.effects.target_words import TargetWords
from conceptvec.effects.writing import LENGTH, WrittenPart, part_seed
from conceptvec.errors import RequestError
from conceptvec.scoring.words import normalise

if TYPE_CHECKING:
    from conceptvec.model.network import Model

TEXTS_A_PART = 256
LONGEST = 16  # tokens of an opening; words that take more are left out
EMPTY_EVERY = 8
ENGLISH = (3, 4)  # of so many openings of a concept
TITLE = "\n\n"
TOP_UP = 0.5  # share of the texts that concepts with few words may get on top
YIELD = 0.3  # documents with a word of the concept for each opening made of one, at most
OPENINGS_A_WORD = 4  # that are made of a word which the text lacks


def first_round(
    model: Model,
    concepts: Sequence[Concept],
    tokens: int,
    seed: int,
    chat: bool = False,
) -> list[WrittenPart]:
    """The parts of a text of about so many tokens that may be scored.

    Args:
        model: the model that will write.
        concepts: the concepts whose words open the texts.
        tokens: about how many tokens are wanted.
        seed: the run's seed.
        chat: begin in the model's turn of its chat template.
    """
    count = max(1, math.ceil(tokens / LENGTH))
    streams = [opening_words(concept, seed) for concept in concepts]
    words = _in_turn(streams, count)
    return as_parts(model, words, seed, "text", chat)


def second_round(
    model: Model,
    concepts: Sequence[Concept],
    written: Coverage,
    targets: TargetWords,
    texts: int,
    seed: int,
    chat: bool = False,
) -> list[WrittenPart]:
    """Parts for the concepts that are short of words or documents; none where no concept is.

    Args:
        model: the model that will write.
        concepts: the concepts of the first round.
        written: what the first round holds of them.
        targets: the concepts' words.
        texts: how many texts the first round has.
        seed: the run's seed.
        chat: as in the first round.
    """
    seen = {targets.words[word] for word in np.flatnonzero(written.is_seen)}
    needed = openings_needed(written, texts)
    words: list[str] = []
    for concept in concepts:
        if concept.name in written.concepts:
            stream = opening_words(concept, seed, seen)
            words += islice(stream, int(needed[written.concepts.index(concept.name)]))
    return as_parts(model, words, seed, "more text", chat)


def openings_needed(written: Coverage, texts: int) -> np.ndarray:
    """Openings of each concept in the second round, in all at most half of the first: (C,)."""
    given = texts / max(len(written.concepts), 1)
    yields = np.clip(written.documents / max(given, 1), 0.05, YIELD)
    for_documents = written.missing_documents / yields
    for_words = written.missing_words * OPENINGS_A_WORD
    needed = np.maximum(for_documents, for_words)
    return np.ceil(needed * min(1, texts * TOP_UP / max(needed.sum(), 1)))


def opening_words(
    concept: Concept, seed: int, seen: frozenset[str] | set[str] = frozenset()
) -> Iterator[str]:
    """A concept's words without end, in a random order, those that a text has `seen` last."""
    generator = np.random.default_rng(part_seed(seed, f"openings {concept.name}", 0))

    def shuffled(words: Sequence[str]) -> list[str]:
        order = generator.permutation(len(words))
        mixed = [words[i] for i in order]
        return sorted(mixed, key=lambda word: normalise(word) in seen)

    usable: dict[str, list[str]] = {
        language: [word for word in words if word not in concept.homographs]
        for language, words in concept.words.items()
    }
    english = shuffled(usable.pop("en", []))
    others = shuffled(list(chain.from_iterable(usable.values())))
    if not english and not others:  # nothing but homographs
        others = shuffled(list(chain.from_iterable(concept.words.values())))
    if not english or not others:
        yield from cycle(english or others)
    share, of = ENGLISH
    first, second = cycle(english), cycle(others)
    while True:
        yield from islice(first, share)
        yield from islice(second, of - share)


def _in_turn(streams: Sequence[Iterator[str]], count: int) -> list[str]:
    """So many words, one of each stream in turn, and an empty one in every eighth place."""
    words: list[str] = []
    turn = cycle(streams)
    for i in range(count):
        is_empty = i % EMPTY_EVERY == EMPTY_EVERY - 1 or not streams
        words.append("" if is_empty else next(next(turn)))
    return words


def as_parts(
    model: Model, words: Sequence[str], seed: int, stream: str, chat: bool
) -> list[WrittenPart]:
    """Openings made of words, cut into parts; those of a part have about one length.

    Raises:
        RequestError: the tokenizer has nothing to begin an empty text with.
    """
    openings = [_opening(model, word, i % 2 == 0, chat) for i, word in enumerate(words)]
    ordered = sorted(openings, key=len)
    return [
        WrittenPart(tuple(ordered[at : at + TEXTS_A_PART]), part_seed(seed, stream, number))
        for number, at in enumerate(range(0, len(ordered), TEXTS_A_PART))
    ]


def _opening(model: Model, word: str, is_title: bool, chat: bool) -> tuple[int, ...]:
    """The tokens of one opening; of a word that takes too many, those of an empty one."""
    nothing = _empty(model, chat)
    if not word:
        return nothing
    # With a capital, unless the vocabulary writes it with fewer tokens without one.
    capital = word[:1].upper() if len(word[:1].upper()) == 1 else word[:1]
    forms = [capital + word[1:], word, " " + word]
    end = TITLE if is_title else ""
    written = [_encoded(model, form + end, chat) for form in forms]
    unknown = model.tokenizer.unk_token_id
    known = [ids for ids in written if unknown not in ids and len(ids) > 0]
    shortest = min(known, key=len, default=nothing)
    return tuple(shortest) if len(shortest) <= len(nothing) + LONGEST else nothing


def _encoded(model: Model, text: str, chat: bool) -> list[int]:
    if chat:
        return model.encode(text, chat=True)
    bare = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*start_of_text(model.tokenizer), *bare]


def _empty(model: Model, chat: bool) -> tuple[int, ...]:
    ids = model.encode("", chat=True) if chat else empty_opening(model.tokenizer)
    if not ids:
        raise RequestError(
            f"--corpus self: the tokenizer of {model.name} has neither a bos nor an eos token to "
            "begin a text with; give a text file as --corpus"
        )
    return tuple(ids)
