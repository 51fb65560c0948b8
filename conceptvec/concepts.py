"""Concepts: their words and their prompts, built in or the user's. Nothing here imports torch.

The user's concepts come as a JSON file (words and prompts), as a plain list of words
(``birds.txt``, one word a line; the file's name is the concept's) or as words in place
(``"birds=robin,eagle; tools=hammer,saw"``). The last two have no prompts: their candidates are
scored and listed, and not tested by damage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

from conceptvec.errors import RequestError
from conceptvec.files import digest

BUILT_IN = (
    "animals",
    "colors",
    "numbers",
    "emotions",
    "technology",
    "food",
    "travel",
    "science",
    "language",
    "time",
    "space",
    "body",
)
RESERVED = ("none", "lexical", "other", "mixed", "neutral")
PROPER_NAMES = ("language", "time", "space")  # concepts whose words are written with a capital
CAPITALISED = "de"  # the language whose nouns have capitals anyway
SURROGATES = range(0xD800, 0xE000)  # halves of characters, which UTF-8 cannot hold

Place = str  # where something stands in the user's source, for messages
Listed = Iterable[tuple[Place, Any]]  # words as they were given


@dataclass(frozen=True)
class Prompt:
    """A cloze prompt and the answer that continues it; the answer brings its own leading space."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Concept:
    """A concept: its words, those of them with a common other meaning, and its prompts.

    Attributes:
        name: the concept's.
        words: language code → words; the code is empty where the language is unknown.
        homographs: words that also mean something else often.
        proper: words that are written with a capital.
        prompts: None for scoring only.
    """

    name: str
    words: Mapping[str, tuple[str, ...]]
    homographs: frozenset[str] = frozenset()
    proper: frozenset[str] = frozenset()
    prompts: tuple[Prompt, ...] | None = None


@dataclass(frozen=True)
class ConceptSet:
    """The concepts of a run, in the file's order, and the neutral prompts.

    Attributes:
        concepts: the run's.
        neutral: prompts of no concept.
        source: what ``--concepts`` named.
        digest: SHA-256 of the file that was read, None where there was none.
    """

    concepts: tuple[Concept, ...]
    neutral: tuple[Prompt, ...]
    source: str | None = None
    digest: str | None = None

    @property
    def names(self) -> list[str]:
        """The concepts' names in order."""
        return [concept.name for concept in self.concepts]

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """The prompts of every concept that has some, then the neutral ones under ``neutral``."""
        groups = {concept.name: concept.prompts for concept in self.concepts if concept.prompts}
        return groups | {"neutral": self.neutral}


def data(*parts: str) -> Any:
    """A JSON document of the package's data folder."""
    file = resources.files("conceptvec").joinpath("data", *parts)
    return json.loads(file.read_text(encoding="utf-8"))


def in_place(text: str) -> bool:
    """Whether ``--concepts`` gives the words themselves, as in ``birds=robin,eagle``.

    A file that is there is a file, whatever it is called.
    """
    is_named_file = Path(text).suffix.lower() in (".json", ".txt") or is_file(text)
    return "=" in text and not is_named_file


def is_file(path: str) -> bool:
    """Whether there is a file; text that can be no file's name is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # longer than any file's name, or no name at all
        return False


def read_source(source: str | None) -> bytes | None:
    """The content of the user's file; None where ``--concepts`` names none.

    Raises:
        RequestError: it cannot be read.
    """
    if source is None or in_place(source):
        return None
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"--concepts {source}: cannot be read ({error}); give a .json or .txt file"
        ) from None


def load_concepts(
    source: str | None, with_prompts: bool = True, content: bytes | None = None
) -> ConceptSet:
    """The built-in concepts, or the user's (see the module; README: your own concepts).

    A source without neutral prompts is tested against the built-in ones.

    Args:
        source: None, the path of a ``.json`` or ``.txt`` file, or words in place.
        with_prompts: False leaves the built-in prompts unread, for scoring alone.
        content: of the file, where it was read before (`read_source`).

    Raises:
        RequestError: the source cannot be used; the message names the place in it.
    """
    content = read_source(source) if content is None else content
    concepts = _parsed(source, content, with_prompts)
    return replace(concepts, source=source, digest=None if content is None else digest(content))


def _parsed(source: str | None, content: bytes | None, with_prompts: bool) -> ConceptSet:
    neutral = _built_in_prompts("neutral") if with_prompts else ()
    if source is None:
        return ConceptSet(tuple(_built_in(name, with_prompts) for name in BUILT_IN), neutral)
    if content is None:
        return ConceptSet(_words_in_place(source), neutral)
    place = f"--concepts {source}"
    text = _decoded(content, place)
    if Path(source).suffix.lower() != ".txt":
        return _document(text, place, neutral)
    lines = enumerate(text.splitlines(), 1)
    words = ((f"{place}: line {number}", line) for number, line in lines if line.strip())
    return ConceptSet((_concept(Path(source).stem, words, place),), neutral)


def _built_in(name: str, with_prompts: bool) -> Concept:
    entry = data("lexicon", f"{name}.json")
    words = {language: tuple(listed) for language, listed in entry["words"].items()}
    languages = words if name in PROPER_NAMES else [CAPITALISED]
    proper = frozenset(word for language in languages for word in words[language])
    prompts = _built_in_prompts(name) if with_prompts else None
    return Concept(name, words, frozenset(entry["homographs"]), proper, prompts)


def _built_in_prompts(name: str) -> tuple[Prompt, ...]:
    return _prompts(data("prompts", f"{name}.json")["prompts"], name)


def _decoded(content: bytes, place: Place) -> str:
    """The text of the user's file."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RequestError(
            f"{place}: line {line} is not UTF-8 text; save the file as UTF-8"
        ) from None


def _document(text: str, place: Place, neutral: tuple[Prompt, ...]) -> ConceptSet:
    """The concepts of a JSON file."""

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return _once(pairs, place)

    try:
        document = json.loads(text, object_pairs_hook=without_repeats)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place}: not JSON ({error}); see README: your own concepts") from None
    entries = _fields(document, place, {"concepts"}, {"neutral_prompts"})["concepts"]
    if not _is_object(entries) or not entries:
        raise RequestError(f"{place}: concepts: expected an object with at least one concept")
    concepts = [
        _concept_of_document(name, entry, f"{place}: concepts.{name}")
        for name, entry in entries.items()
    ]
    if "neutral_prompts" in document:
        neutral = _prompts(document["neutral_prompts"], f"{place}: neutral_prompts")
    _refuse_shared_prompts(concepts, neutral, place)
    return ConceptSet(tuple(concepts), neutral)


def _refuse_shared_prompts(
    concepts: Iterable[Concept], neutral: tuple[Prompt, ...], place: Place
) -> None:
    """A prompt of two groups would count for the concept and against it."""
    group_of: dict[Prompt, str] = {}
    groups = [(f"concepts.{concept.name}", concept.prompts or ()) for concept in concepts]
    for group, prompts in [*groups, ("neutral_prompts", neutral)]:
        for prompt in prompts:
            if (first := group_of.setdefault(prompt, group)) != group:
                text = f"{prompt.prompt}{prompt.answer}"
                raise RequestError(f"{place}: {first} and {group} both hold {text!r}; keep one")


def _concept_of_document(name: str, entry: Any, place: Place) -> Concept:
    fields = _fields(entry, place, {"keywords", "prompts"}, set())
    words = fields["keywords"]
    if not _is_list(words):
        raise RequestError(
            f"{place}.keywords: got {type(words).__name__}, expected a list of at least one word"
        )
    listed = [(f"{place}.keywords[{i}]", word) for i, word in enumerate(words)]
    prompts = None
    if fields["prompts"] is not None:
        prompts = _prompts(fields["prompts"], f"{place}.prompts")
    return _concept(name, listed, place, prompts)


def _words_in_place(text: str) -> tuple[Concept, ...]:
    """The concepts of ``birds=robin,eagle; tools=hammer,saw``."""
    concepts: dict[str, Concept] = {}
    for part in filter(str.strip, text.split(";")):
        name, equals, words = part.partition("=")
        place = f"--concepts: {part.strip()!r}"
        if not equals or name.strip() in concepts:
            raise RequestError(
                f"{place}: expected each concept once, as in birds=robin,eagle; tools=hammer,saw"
            )
        listed = [(place, word) for word in words.split(",") if word.strip()]
        concepts[name.strip()] = _concept(name.strip(), listed, place)
    return tuple(concepts.values())


def _concept(
    name: str, listed: Listed, place: Place, prompts: tuple[Prompt, ...] | None = None
) -> Concept:
    """One of the user's concepts."""
    if not name.strip() or name in RESERVED or not _is_text(name):
        raise RequestError(
            f"{place}: got the concept name {name!r}, which is reserved or empty; choose another"
        )
    words: list[str] = []
    for where, word in listed:
        if not _is_text(word) or not any(character.isalnum() for character in word):
            raise RequestError(f"{where}: got {word!r}, expected a word with a letter or digit")
        words.append(word.strip())
    if not words:
        raise RequestError(f"{place}: expected at least one word")
    return Concept(name, {"": tuple(words)}, prompts=prompts)


def _prompts(entries: Any, place: Place) -> tuple[Prompt, ...]:
    if not _is_list(entries) or not entries:
        raise RequestError(
            f"{place}: expected a list of at least one prompt (null in a concept: scoring only)"
        )
    prompts: list[Prompt] = []
    for i, entry in enumerate(entries):
        fields = _fields(entry, f"{place}[{i}]", {"prompt", "answer"}, set())
        for key, text in fields.items():
            if not _is_text(text) or not text.strip():
                raise RequestError(f"{place}[{i}].{key}: got {text!r}, expected text")
        prompts.append(Prompt(fields["prompt"], fields["answer"]))
    for i, prompt in enumerate(prompts):
        if (first := prompts.index(prompt)) < i:
            raise RequestError(
                f"{place}[{i}]: the same as [{first}]; prompts count as independent, so keep one"
            )
    return tuple(prompts)


def _is_text(value: Any) -> TypeGuard[str]:
    """A string that can be written as UTF-8 (JSON can smuggle in half a surrogate pair)."""
    return isinstance(value, str) and not any(ord(character) in SURROGATES for character in value)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _once(pairs: list[tuple[str, Any]], place: Place) -> dict[str, Any]:
    """The pairs of a JSON object, each key once."""
    entry: dict[str, Any] = {}
    for name, value in pairs:
        if name in entry:
            raise RequestError(f"{place}: {name!r} appears twice in one object; keep one")
        entry[name] = value
    return entry


def _fields(entry: Any, place: Place, required: set[str], optional: set[str]) -> dict[str, Any]:
    """An object's fields, which are those that are expected."""
    if not _is_object(entry):
        raise RequestError(
            f"{place}: got {type(entry).__name__}, expected an object with {sorted(required)}"
        )
    expected = sorted(required | optional)
    if missing := sorted(required - entry.keys()):
        raise RequestError(f"{place}: {missing[0]!r} is missing; expected {expected}")
    if unknown := sorted(map(repr, entry.keys() - required - optional)):
        raise RequestError(f"{place}: unknown key {unknown[0]}; expected {expected}")
    return entry
