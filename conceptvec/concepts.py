"""Concepts: their words and their prompts, built in or the user's. Nothing here imports torch.

The user's concepts come as a JSON file (words and prompts), as a plain list of words (``birds.txt``, one word a line;
the file's name is the concept's) or as words in place (``"birds=robin,eagle; tools=hammer,saw"``). The last two have no
prompts: their candidates are scored and listed, and not tested by damage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from conceptvec.errors import RequestError

BUILT_IN = (
    "animals", "colors", "numbers", "emotions", "technology", "food",
    "travel", "science", "language", "time", "space", "body",
)  # fmt: skip
RESERVED = ("none", "lexical", "other", "mixed", "neutral")


@dataclass(frozen=True)
class Prompt:
    """A cloze prompt and the answer that continues it; the answer brings its own leading space."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Concept:
    """A concept: its words, those of them with a common other meaning, and its prompts (None: scoring only).

    Attributes:
        words: language code → words; the code is empty where the language is unknown.
        homographs: words that also mean something else often.
        proper: words that are written with a capital.
    """

    name: str
    words: Mapping[str, tuple[str, ...]]
    homographs: frozenset[str] = frozenset()
    proper: frozenset[str] = frozenset()
    prompts: tuple[Prompt, ...] | None = None


@dataclass(frozen=True)
class ConceptSet:
    """The concepts of a run, in the file's order, and the neutral prompts."""

    concepts: tuple[Concept, ...]
    neutral: tuple[Prompt, ...]

    @property
    def names(self) -> list[str]:
        """The concepts' names in order."""
        return [c.name for c in self.concepts]

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """The prompts of every concept that has some, then the neutral ones under ``neutral``."""
        return {c.name: c.prompts for c in self.concepts if c.prompts} | {"neutral": self.neutral}


def data(*parts: str) -> Any:
    """A JSON document of the package's data folder."""
    return json.loads(
        resources.files("conceptvec").joinpath("data", *parts).read_text(encoding="utf-8")
    )


def in_place(text: str) -> bool:
    """Whether a value of ``--concepts`` gives the words themselves, as in ``birds=robin,eagle``."""
    return "=" in text and Path(text).suffix.lower() not in (".json", ".txt")


def load_concepts(source: str | None, with_prompts: bool = True) -> ConceptSet:
    """The built-in concepts, or the user's (see the module; README: your own concepts).

    Args:
        source: None, the path of a ``.json`` or ``.txt`` file, or words in place.
        with_prompts: False leaves the built-in prompts unread, for scoring alone.

    A source without neutral prompts is tested against the built-in ones.

    Raises:
        RequestError: the source cannot be used; the message names the place in it.
    """
    neutral = _neutral() if with_prompts else ()
    if source is None:
        return ConceptSet(tuple(_built_in(name, with_prompts) for name in BUILT_IN), neutral)
    if in_place(source):
        return ConceptSet(_words_in_place(source), neutral)
    place = f"--concepts {source}"
    try:
        text = Path(source).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = Path(source).read_bytes()[: error.start].count(b"\n") + 1
        raise RequestError(
            f"{place}: line {line} is not UTF-8 text; save the file as UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{place}: cannot be read ({error}); give a .json or .txt file"
        ) from None
    if Path(source).suffix.lower() == ".txt":
        lines = (
            (f"{place}: line {i}", line)
            for i, line in enumerate(text.splitlines(), 1)
            if line.strip()
        )
        return ConceptSet((_keyword_concept(Path(source).stem, lines, place),), neutral)
    return _document(text, place, neutral)


def _document(text: str, place: str, neutral: tuple[Prompt, ...]) -> ConceptSet:
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, place))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place}: not JSON ({error}); see README: your own concepts") from None
    _keys(document, place, {"concepts"}, {"neutral_prompts"})
    if not isinstance(document["concepts"], dict) or not document["concepts"]:
        raise RequestError(f"{place}: concepts: expected an object with at least one concept")
    concepts = []
    for name, entry in document["concepts"].items():
        where = f"{place}: concepts.{name}"
        _keys(entry, where, {"keywords", "prompts"}, set())
        words = entry["keywords"]
        if not isinstance(words, list):
            raise RequestError(
                f"{where}.keywords: got {type(words).__name__}, expected a list of at least one word"
            )
        listed = ((f"{where}.keywords[{i}]", word) for i, word in enumerate(words))
        prompts = (
            None if entry["prompts"] is None else _prompts(entry["prompts"], f"{where}.prompts")
        )
        concepts.append(_keyword_concept(name, listed, where, prompts))
    if "neutral_prompts" in document:
        neutral = _prompts(document["neutral_prompts"], f"{place}: neutral_prompts")
    return ConceptSet(tuple(concepts), neutral)


def _words_in_place(text: str) -> tuple[Concept, ...]:
    concepts: dict[str, Concept] = {}
    for part in filter(str.strip, text.split(";")):
        name, equals, words = part.partition("=")
        where = f"--concepts: {part.strip()!r}"
        if not equals or name.strip() in concepts:
            raise RequestError(
                f"{where}: expected each concept once, as in birds=robin,eagle; tools=hammer,saw"
            )
        listed = ((where, word) for word in words.split(",") if word.strip())
        concepts[name.strip()] = _keyword_concept(name.strip(), listed, where)
    return tuple(concepts.values())


def _keyword_concept(
    name: str,
    listed: Iterable[tuple[str, Any]],
    where: str,
    prompts: tuple[Prompt, ...] | None = None,
) -> Concept:
    if not name.strip() or name in RESERVED or not _is_text(name):
        raise RequestError(
            f"{where}: got the concept name {name!r}, which is reserved or empty; choose another"
        )
    words = []
    for place, word in listed:
        if not _is_text(word) or not any(ch.isalnum() for ch in word):
            raise RequestError(f"{place}: got {word!r}, expected a word with a letter or digit")
        words.append(word.strip())
    if not words:
        raise RequestError(f"{where}: expected at least one word")
    return Concept(name, {"": tuple(words)}, prompts=prompts)


def _built_in(name: str, with_prompts: bool) -> Concept:
    entry = data("lexicon", f"{name}.json")
    words = {language: tuple(listed) for language, listed in entry["words"].items()}
    prompts = _prompts(data("prompts", f"{name}.json")["prompts"], name) if with_prompts else None
    named = (
        words if name in ("language", "time", "space") else {"de"}
    )  # German nouns have capitals anyway
    proper = frozenset(w for language in named for w in words[language])
    return Concept(name, words, frozenset(entry["homographs"]), proper, prompts)


def _neutral() -> tuple[Prompt, ...]:
    return _prompts(data("prompts", "neutral.json")["prompts"], "neutral")


def _prompts(entries: Any, where: str) -> tuple[Prompt, ...]:
    if not isinstance(entries, list) or not entries:
        raise RequestError(
            f"{where}: expected a list of at least one prompt (null in a concept: scoring only)"
        )
    for i, entry in enumerate(entries):
        _keys(entry, f"{where}[{i}]", {"prompt", "answer"}, set())
        for key, text in entry.items():
            if not _is_text(text) or not text.strip():
                raise RequestError(f"{where}[{i}].{key}: got {text!r}, expected text")
    found = [Prompt(e["prompt"], e["answer"]) for e in entries]
    if twice := next((i for i, p in enumerate(found) if p in found[:i]), None):
        first = found.index(found[twice])
        raise RequestError(
            f"{where}[{twice}]: the same as [{first}]; prompts count as independent, so keep one"
        )
    return tuple(found)


def _is_text(value: Any) -> bool:
    """A string that can be written as UTF-8 (JSON can smuggle in half a surrogate pair)."""
    return isinstance(value, str) and not any(0xD800 <= ord(ch) < 0xE000 for ch in value)


def _once(pairs: list[tuple[str, Any]], place: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(n for n in names if names.count(n) > 1)
        raise RequestError(f"{place}: {twice!r} appears twice in one object; keep one")
    return found


def _keys(entry: Any, where: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(entry, dict):
        raise RequestError(
            f"{where}: got {type(entry).__name__}, expected an object with {sorted(required)}"
        )
    if missing := sorted(required - entry.keys()):
        raise RequestError(
            f"{where}: {missing[0]!r} is missing; expected {sorted(required | optional)}"
        )
    if unknown := sorted(map(repr, entry.keys() - required - optional)):
        raise RequestError(
            f"{where}: unknown key {unknown[0]}; expected {sorted(required | optional)}"
        )
