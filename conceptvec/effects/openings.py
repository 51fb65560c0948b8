"""Openings: what the model's texts begin with.

An opening is two words of a concept in one language, with a capital where their script has them
(*Horse sheep*); every eighth is empty. That gives a subject, in any language, and nothing that the
next word would have to fit. The tokens of an opening are never scored.

Every concept gets as many openings as any other, and uses all its words before it uses one again.
Words that the vocabulary holds as one token are taken where there are enough of them: the model
writes more about what it has often seen. Homographs are left out. Where a concept has words of
several languages, three of four openings are English.

Measured on Gemma 3 270M, words of the opening's concept in 1,000 written tokens (192 texts each):
after nothing 3; after one English word of any kind 16, as a title in a line of its own 16, quoted
18; after two 20, as a title 27; after two that are single tokens 27, as a title 24. Words of other
languages give half as many.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from conceptvec.concepts import Concept
from conceptvec.effects.coverage import Coverage
from conceptvec.effects.passages import Passages
from conceptvec.effects.target_words import TargetWords
from conceptvec.effects.writing import LENGTH, WrittenPart, part_seed
from conceptvec.errors import RequestError
from conceptvec.model.vocabulary import empty_opening
from conceptvec.scoring.words import normalise

if TYPE_CHECKING:
    from conceptvec.model.network import Model

TEXTS_A_PART = 256
LONGEST = 16  # tokens of an opening behind what a text begins with; longer ones are left empty
EMPTY_EVERY = 8
ENGLISH_OF_FOUR = 3  # of four openings of a concept with words of several languages
ENOUGH = 8  # words of single tokens, from which on the others are left out
TOP_UP = 0.5  # share of the texts that concepts with few words may get on top
TOLERATED = 0.05  # share of the wanted tokens that may be missing
YIELD = 0.4  # documents with a word of the concept for each opening made of its words, at most
OPENINGS_A_WORD = 4  # that are made of a word which the text lacks


@dataclass(frozen=True)
class Opener:
    """What makes the openings of a run.

    Attributes:
        model: the model that will write.
        seed: the run's seed.
        chat: begin in the model's turn of its chat template.
    """

    model: Model
    seed: int
    chat: bool = False


def first_round(
    opener: Opener,
    concepts: Sequence[Concept],
    tokens: int,
    contrast: Sequence[Concept] = (),
) -> list[WrittenPart]:
    """The parts of a text of about so many tokens that may be scored.

    Args:
        opener: makes the openings.
        concepts: the concepts that the text is written for.
        tokens: about how many tokens are wanted.
        contrast: further concepts, which get half of the openings.

    Raises:
        RequestError: the tokenizer has nothing to begin an empty text with, or no chat template.
    """
    model, seed = opener.model, opener.seed
    count = max(1, math.ceil(tokens / LENGTH))
    streams = [opening_words(model, concept, seed) for concept in concepts]
    turn = cycle(streams)
    if contrast:
        further = cycle([opening_words(model, concept, seed) for concept in contrast])
        turn = (stream for pair in zip(turn, further, strict=False) for stream in pair)
    words: list[str] = []
    for i in range(count):
        is_empty = i % EMPTY_EVERY == EMPTY_EVERY - 1 or not streams
        words.append("" if is_empty else next(next(turn)))
    return _as_parts(opener, words, "text")


def tokens_to_ask(wanted: int, written: Passages) -> int:
    """For how many tokens a further first round, under a seed of its own, should be asked.

    A model that ends its texts early, as one that has learnt from single sentences does, writes
    fewer tokens than were asked for: half of them on the demo. 0 where nearly all are there.

    Args:
        wanted: the tokens that may be scored, as asked for in the first round.
        written: what came of it.
    """
    missing = wanted - written.tokens
    if missing <= wanted * TOLERATED or not len(written):
        return 0
    texts = math.ceil(wanted / LENGTH)
    mean_length = written.tokens / texts
    return min(math.ceil(missing * LENGTH / mean_length), wanted)


def second_round(
    opener: Opener,
    concepts: Sequence[Concept],
    written: Coverage,
    targets: TargetWords,
    texts: int,
) -> list[WrittenPart]:
    """Parts for the concepts that are short of words or documents; none where no concept is.

    Args:
        opener: makes the openings.
        concepts: the concepts of the first round, or those of them that matter.
        written: what the first round holds of them.
        targets: the concepts' words.
        texts: how many texts the first round has.
    """
    seen = {targets.words[word] for word in np.flatnonzero(written.is_seen)}
    needed = openings_needed(written, texts)
    words: list[str] = []
    for concept in concepts:
        if concept.name in written.concepts:
            count = int(needed[written.concepts.index(concept.name)])
            stream = opening_words(opener.model, concept, opener.seed, seen)
            words += islice(stream, count)
    return _as_parts(opener, words, "more text")


def openings_needed(written: Coverage, texts: int) -> np.ndarray:
    """Openings of each concept in the second round, in all at most half of the first: (C,)."""
    given = texts / max(len(written.concepts), 1)
    yields = np.clip(written.documents / max(given, 1), 0.05, YIELD)
    for_documents = written.missing_documents / yields
    for_words = written.missing_words * OPENINGS_A_WORD
    needed = np.maximum(for_documents, for_words)
    return np.ceil(needed * min(1, texts * TOP_UP / max(needed.sum(), 1)))


def opening_words(
    model: Model, concept: Concept, seed: int, seen: Collection[str] = ()
) -> Iterator[str]:
    """Two words of a concept at a time, without end, those that a text has `seen` last."""
    generator = np.random.default_rng(part_seed(seed, f"openings {concept.name}", 0))
    usable = usable_words(model, concept)
    streams: dict[str, Iterator[str]] = {}
    for language, words in usable.items():
        mixed = [words[i] for i in generator.permutation(len(words))]
        unseen_first = sorted(mixed, key=lambda word: normalise(word) in seen)
        streams[language] = _pairs(unseen_first)
    english = streams.pop("en", None)
    if english is None or not streams:
        turn = cycle([english] if english is not None else list(streams.values()))
        while True:
            yield next(next(turn))
    others = cycle([streams[language] for language in generator.permutation(sorted(streams))])
    while True:
        yield from islice(english, ENGLISH_OF_FOUR)
        yield next(next(others))


def _pairs(words: Sequence[str]) -> Iterator[str]:
    """Every word with the next one, round and round; a single word stays alone."""
    stream = cycle(words)
    while True:
        first, second = next(stream), next(stream)
        yield first if first == second else f"{first} {second}"


def usable_words(model: Model, concept: Concept) -> dict[str, list[str]]:
    """The words that open texts, by language: single tokens, if the concept has enough of them."""
    listed = {
        language: [word for word in words if word not in concept.homographs]
        for language, words in concept.words.items()
    }
    if not any(listed.values()):  # nothing but homographs
        listed = {language: list(words) for language, words in concept.words.items()}
    single = {language: _single_tokens(model, words) for language, words in listed.items()}
    enough = {language: words for language, words in single.items() if len(words) >= ENOUGH}
    return enough or {language: words for language, words in listed.items() if words}


def _single_tokens(model: Model, words: Sequence[str]) -> list[str]:
    """The words that are one token, with or without a space in front."""
    if not words:
        return []
    unknown = [model.tokenizer.unk_token_id]
    spaced = [" " + word for word in words]
    encodings = [
        model.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for texts in (spaced, list(words))
    ]
    return [
        word
        for word, *forms in zip(words, *encodings, strict=True)
        if any(len(ids) == 1 and ids != unknown for ids in forms)
    ]


def _as_parts(opener: Opener, words: Sequence[str], stream: str) -> list[WrittenPart]:
    """Openings made of words, cut into parts; those of a part have about one length."""
    model, chat = opener.model, opener.chat
    nothing = _empty(model, chat)
    start = [] if chat else model.start
    openings: list[tuple[int, ...]] = []
    for pair in words:
        forms = _written_forms(pair)
        encoded = [[*start, *_bare(model, form, chat)] for form in forms] if pair else []
        openings.append(_chosen(encoded, nothing, model.tokenizer.unk_token_id))
    ordered = sorted(openings, key=len)
    return [
        WrittenPart(tuple(ordered[at : at + TEXTS_A_PART]), part_seed(opener.seed, stream, number))
        for number, at in enumerate(range(0, len(ordered), TEXTS_A_PART))
    ]


def _written_forms(words: str) -> list[str]:
    """How an opening may be written, the first where the vocabulary allows it."""
    capital = words[:1].upper() if len(words[:1].upper()) == 1 else words[:1]
    return [capital + words[1:], words, " " + words]


def _chosen(forms: list[list[int]], nothing: tuple[int, ...], unknown: int) -> tuple[int, ...]:
    """The first form that takes at most a token more than the shortest, and can be written."""
    known = [ids for ids in forms if unknown not in ids and len(ids) > 0]
    shortest = min(map(len, known), default=0)
    short = [ids for ids in known if len(ids) <= shortest + 1]
    return tuple(short[0]) if short and len(short[0]) <= len(nothing) + LONGEST else nothing


def _bare(model: Model, text: str, chat: bool) -> list[int]:
    if chat:
        return model.encode(text, chat=True)
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def _empty(model: Model, chat: bool) -> tuple[int, ...]:
    ids = model.encode("", chat=True) if chat else empty_opening(model.tokenizer)
    if not ids:
        raise RequestError(
            f"--corpus self: the tokenizer of {model.name} has neither a bos nor an eos token to "
            "begin a text with; give a text file as --corpus"
        )
    return tuple(ids)
