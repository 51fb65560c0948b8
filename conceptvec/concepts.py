"""Concepts: their words and their prompts, built in or from the user's file. Nothing here imports torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from conceptvec.errors import RequestError

BUILT_IN = (
    "animals", "colors", "numbers", "emotions", "technology", "food",
    "travel", "science", "language", "time", "space", "body",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A cloze prompt and the answer that continues it; the answer brings its own leading space."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Concept:
    """A concept: its words, those of them with a common other meaning, and its prompts (None: scoring only)."""

    name: str
    words: frozenset[str]
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
    return json.loads(resources.files("conceptvec").joinpath("data", *parts).read_text(encoding="utf-8"))


def load_concepts(path: str | None, with_prompts: bool = True) -> ConceptSet:
    """The built-in concepts, or those of the user's file (JSON, see README: your own concepts).

    A file without ``neutral_prompts`` is tested against the built-in neutral prompts.

    Raises:
        RequestError: the file cannot be used; the message names the place in it.
    """
    if path is None:
        return ConceptSet(tuple(_built_in(name, with_prompts) for name in BUILT_IN), _neutral() if with_prompts else ())
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"--concepts: {path} is not readable JSON ({error}); see README: your own concepts"
        ) from None
    place = f"--concepts {path}"
    _keys(document, place, {"concepts"}, {"neutral_prompts"})
    if not isinstance(document["concepts"], dict) or not document["concepts"]:
        raise RequestError(f"{place}: concepts: expected an object with at least one concept")
    concepts = []
    for name, entry in document["concepts"].items():
        where = f"{place}: concepts.{name}"
        if not name.strip() or name in ("none", "lexical", "other", "mixed", "neutral"):
            raise RequestError(f"{where}: this name is reserved or empty; choose another")
        _keys(entry, where, {"keywords", "prompts"}, set())
        words = entry["keywords"]
        if not isinstance(words, list) or not words:
            raise RequestError(f"{where}.keywords: expected a list of at least one word")
        for i, word in enumerate(words):
            if not isinstance(word, str) or not word.strip():
                raise RequestError(f"{where}.keywords[{i}]: got {word!r}, expected a word")
        prompts = None if entry["prompts"] is None else _prompts(entry["prompts"], f"{where}.prompts")
        concepts.append(Concept(name, frozenset(words), prompts=prompts))
    if "neutral_prompts" in document:
        return ConceptSet(tuple(concepts), _prompts(document["neutral_prompts"], f"{place}: neutral_prompts"))
    return ConceptSet(tuple(concepts), _neutral())


def _built_in(name: str, with_prompts: bool) -> Concept:
    entry = data("lexicon", f"{name}.json")
    words = frozenset(w for language in entry["words"].values() for w in language)
    prompts = _prompts(data("prompts", f"{name}.json")["prompts"], name) if with_prompts else None
    proper = words if name in ("language", "time", "space") else frozenset(entry["words"].get("de", ()))
    return Concept(name, words, frozenset(entry["homographs"]), proper, prompts)


def _neutral() -> tuple[Prompt, ...]:
    return _prompts(data("prompts", "neutral.json")["prompts"], "neutral")


def _prompts(entries: Any, where: str) -> tuple[Prompt, ...]:
    if not isinstance(entries, list) or not entries:
        raise RequestError(f"{where}: expected a list of at least one prompt (null in a concept: scoring only)")
    for i, entry in enumerate(entries):
        _keys(entry, f"{where}[{i}]", {"prompt", "answer"}, set())
        for key, text in entry.items():
            if not isinstance(text, str) or not text.strip() or any(0xD800 <= ord(ch) < 0xE000 for ch in text):
                raise RequestError(f"{where}[{i}].{key}: got {text!r}, expected text")
    return tuple(Prompt(e["prompt"], e["answer"]) for e in entries)


def _keys(entry: Any, where: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(entry, dict):
        raise RequestError(f"{where}: got {type(entry).__name__}, expected an object with {sorted(required)}")
    if missing := sorted(required - entry.keys()):
        raise RequestError(f"{where}: {missing[0]!r} is missing; expected {sorted(required | optional)}")
    if unknown := sorted(map(repr, entry.keys() - required - optional)):
        raise RequestError(f"{where}: unknown key {unknown[0]}; expected {sorted(required | optional)}")
