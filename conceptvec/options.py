"""How an option of `Config` is declared: its default, its words for the command line, its check.

A check takes the option's name and a value, and gives the value as `Config` keeps it, or refuses
it: what was got, what was expected.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from numbers import Integral, Real
from typing import Any, cast

from conceptvec.errors import RequestError

Check = Callable[[str, Any], Any]
Tuple = tuple[Any, ...]

MOST = 10**12  # more of anything than there is
LONGEST_FILE_NAME = 80  # of what is written into a folder


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
    """Text, or a path; ``~`` is the home folder."""

    def checked(name: str, value: Any) -> str:
        if isinstance(value, os.PathLike):
            value = os.fspath(cast("os.PathLike[str]", value))
        if not isinstance(value, str):
            raise refusal(name, value, "text")
        # It will stand in JSON files, and names files: said now, not when they are written.
        if "\0" in value or not _is_unicode(value):
            raise refusal(name, value, "text that UTF-8 can write, without a NUL")
        value = os.path.expanduser(str(value))
        return value if check is None else check(name, value)

    return option(default, words, checked)


def _is_unicode(value: str) -> bool:
    """Whether UTF-8 can write a text; Python reads other bytes of a path as half characters."""
    try:
        return bool(value.encode()) or not value
    except UnicodeEncodeError:
        return False


def folder(words: str) -> Any:
    """A folder that may be made; None by default."""

    def checked(name: str, value: str) -> str:
        if not value.strip():
            raise refusal(name, value, "a folder")
        try:
            os.lstat(os.path.join(value, "x" * LONGEST_FILE_NAME))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return value  # what is there, and whether it can be written, is asked later
        except OSError as error:
            raise refusal(name, value[:200], f"a folder ({error.strerror})") from None
        return value

    return text(None, words, checked)


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


def whole(default: int | None, words: str, low: int, high: int | None = MOST) -> Any:
    """A whole number from `low` to `high`; without `high` of any size."""
    return option(default, words, _whole_check(low, high, f"a whole number of at least {low}"))


def whole_or_all(default: int | None, words: str, low: int) -> Any:
    """A whole number from `low` on, or None: all."""
    check = _whole_check(low, MOST, f"a whole number of at least {low}, or all")

    def checked(name: str, value: Any) -> int | None:
        return None if value is None else check(name, value)

    return option(default, words, checked)


def _whole_check(low: int, high: int | None, expected: str) -> Check:
    if high is not None:
        expected += f" and at most {high:,}"

    def checked(name: str, value: Any) -> int:
        number = _whole(value)
        if number is None or number < low or (high is not None and number > high):
            raise refusal(name, value, expected)
        return number

    return checked


def _whole(value: Any) -> int | None:
    """A whole number of Python's or NumPy's as Python's; None of anything else, True and 2.0 too.

    What stays NumPy's could not be written as JSON.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    return int(value)


def _real(value: Any) -> float:
    """A number of Python's or NumPy's as Python's; NaN of anything else, True too."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    return float(value)


def real(default: float | None, words: str, low: float, high: float) -> Any:
    """A number from `low` to `high`."""

    def checked(name: str, value: Any) -> float:
        number = _real(value)
        if not low <= number <= high:
            raise refusal(name, value, f"a number from {low:g} to {high:g}")
        return number

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
        return tuple(_part(part, kind) for part in parts)
    except (TypeError, ValueError):
        return tuple(parts)


def _part(part: Any, kind: Callable[[Any], Any]) -> Any:
    """A part as `kind`, without rounding: 1.9 stays what it is, for the check to refuse."""
    if isinstance(part, str):
        return kind(part.strip())
    number = _whole(part)
    return repr(part) if number is None else number  # 2.0 and True equal whole numbers


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
