"""How an option of `Config` is declared: its default, its words for the command line, its check.

A check takes the option's name and a value, and gives the value as `Config` keeps it, or refuses
it: what was got, what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from typing import Any, cast

from conceptvec.errors import RequestError

Check = Callable[[str, Any], Any]
Tuple = tuple[Any, ...]


def refusal(name: str, got: Any, expected: str) -> RequestError:
    """What to say of an option's value that is not usable."""
    return RequestError(f"--{name.replace('_', '-')}: got {got!r}, expected {expected}")


def option(default: Any, words: str, check: Check) -> Any:
    """A field of `Config`; where the default is None, None is a value."""

    def checked(name: str, value: Any) -> Any:
        is_unset = value is None and default is None
        return value if is_unset else check(name, value)

    return field(default=default, metadata={"help": words, "check": checked})


def text(default: str | None, words: str, check: Check | None = None) -> Any:
    """Text, or a path."""

    def checked(name: str, value: Any) -> str:
        if isinstance(value, os.PathLike):
            value = os.fspath(cast("os.PathLike[str]", value))
        if not isinstance(value, str):
            raise refusal(name, value, "text")
        return value if check is None else check(name, value)

    return option(default, words, checked)


def choice(default: str, words: str, choices: Sequence[str]) -> Any:
    """One of a few words."""

    def checked(name: str, value: str) -> str:
        if value not in choices:
            raise refusal(name, value, ", ".join(choices))
        return value

    return text(default, words, checked)


def pattern(default: str, words: str, regex: str, expected: str) -> Any:
    """Text of a form."""

    def checked(name: str, value: str) -> str:
        if not re.fullmatch(regex, value):
            raise refusal(name, value, expected)
        return value

    return text(default, words, checked)


def whole(default: int | None, words: str, low: int) -> Any:
    """A whole number from `low` on."""
    return option(default, words, _whole_check(low, f"a whole number of at least {low}"))


def whole_or_all(default: int | None, words: str, low: int) -> Any:
    """A whole number from `low` on, or None: all."""
    check = _whole_check(low, f"a whole number of at least {low}, or all")

    def checked(name: str, value: Any) -> int | None:
        return None if value is None else check(name, value)

    return option(default, words, checked)


def _whole_check(low: int, expected: str) -> Check:
    def checked(name: str, value: Any) -> int:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < low:
            raise refusal(name, value, expected)
        return value

    return checked


def real(default: float | None, words: str, low: float, high: float) -> Any:
    """A number from `low` to `high`."""

    def checked(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise refusal(name, value, f"a number from {low:g} to {high:g}")
        return value

    return option(default, words, checked)


def switch(words: str) -> Any:
    """Off by default."""

    def checked(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise refusal(name, value, "True or False")
        return value

    return option(False, words, checked)


def several(default: Tuple, words: str, kind: Callable[[Any], Any], check: Check) -> Any:
    """A tuple, which may be given as a list or as text with commas."""

    def checked(name: str, value: Any) -> Tuple:
        return check(name, _as_tuple(value, kind))

    return option(default, words, checked)


def _as_tuple(value: Any, kind: Callable[[Any], Any]) -> Tuple:
    """The parts as `kind`; as they are where one of them is none, for the check to refuse."""
    is_sequence = isinstance(value, list | tuple)
    parts = cast("Iterable[Any]", value) if is_sequence else [value]
    if isinstance(value, str):
        parts = value.split(",")
    try:
        return tuple(kind(part.strip() if isinstance(part, str) else part) for part in parts)
    except (TypeError, ValueError):
        return tuple(parts)


def subset(choices: Sequence[str]) -> Check:
    """A check of a tuple: one or more of the choices, each once."""

    def checked(name: str, value: Tuple) -> Tuple:
        is_repeated = len(set(value)) != len(value)
        if not value or is_repeated or set(value) - set(choices):
            expected = f"one or more of {', '.join(choices)}, each once"
            raise refusal(name, ",".join(map(str, value)), expected)
        return value

    return checked


def one_of(choices: Sequence[Tuple], expected: str) -> Check:
    """A check of a tuple: one of a few."""

    def checked(name: str, value: Tuple) -> Tuple:
        if value not in choices:
            raise refusal(name, ",".join(map(str, value)), expected)
        return value

    return checked
