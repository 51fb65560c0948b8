"""Options of the command line: the fields of `Config`, and what a command adds to them.

A field brings its own help, default and check; `Config` refuses a value that does not fit, so
nothing is checked here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any, cast, get_args, get_type_hints

from conceptvec.config import Config
from conceptvec.errors import RequestError
from conceptvec.version import __version__

MODEL = ("model", "revision", "device", "dtype")
GROUPS = {
    "which model, and where it runs": MODEL,
    "how much of it": ("layers", "max_vectors", "stages"),
    "Stage 1, extraction": ("batch_size", "top_k", "fold", "min_kurtosis"),
    "Stage 2, scoring": ("concepts", "score_threshold"),
    "Stage 3, validation": (
        "corpus",
        "corpus_tokens",
        "damage",
        "noise_sigma",
        "chat_template",
    ),
    "the run itself": ("seed", "out", "overwrite"),
}
NOTHING = ("all", "none")  # how a number that may be left out is left out
RESULTS_HELP = "results file or run folder"
EXAMPLES = """
start here:
  conceptvec run                     the whole job on the built-in demo model
  conceptvec report runs/demo-cpu    its results as one HTML page
  conceptvec run --model google/gemma-3-1b-it --dry-run
                                     what a real model will need, before anything is downloaded

conceptvec COMMAND --help says more of a command.
"""


@dataclass(frozen=True)
class Answer:
    """What a command gives: the document for ``--json``, and the text without it."""

    document: dict[str, Any]
    text: Callable[[], str]


@dataclass(frozen=True)
class Argument:
    """An argument that only one command takes, as `argparse` wants it."""

    flag: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        help: one line, without a full stop.
        run: does the work.
        options: the fields of `Config` that it takes.
        arguments: what it takes besides.
        writes_json: whether it has ``--json``.
        not_ok: exit status where the document says that it is not ``ok``.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace], Answer]
    options: tuple[str, ...] = ()
    arguments: tuple[Argument, ...] = ()
    writes_json: bool = True
    not_ok: int = 1


def argument(flag: str, **settings: Any) -> Argument:
    """An argument in one row: its name (with dashes if it is an option) and argparse's settings."""
    return Argument(flag, settings)


def count(text: str) -> int:
    """A number of rows to show, as `argparse` wants it read."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of at least 1")
    return int(text)


def path_argument(flag: str, **settings: Any) -> Argument:
    """The same for a path, in which ``~`` is the home folder."""
    return argument(flag, type=os.path.expanduser, **settings)


def parser(commands: Iterable[Command]) -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    whole = _Parser(
        prog="conceptvec",
        description="Find concept vectors in Gemma 3 and test whether they matter.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"conceptvec {__version__}")
    below = whole.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for command in commands:
        many = len(command.options) > len(MODEL)
        sub = below.add_parser(
            command.name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            usage=f"conceptvec {command.name} [options]"
            if many and not _positional(command)
            else None,
        )
        for extra in command.arguments:
            sub.add_argument(extra.flag, **extra.settings)
        if command.writes_json:
            sub.add_argument("--json", action="store_true", help="one JSON document, nothing else")
        _add_options(sub, command.options)
    return whole


def _positional(command: Command) -> bool:
    return any(not extra.flag.startswith("-") for extra in command.arguments)


def config_of(arguments: argparse.Namespace) -> Config:
    """The configuration that the arguments describe; what was not given keeps its default."""
    return Config(
        **{
            name: _value(name, value) if isinstance(value, str) else value
            for name, value in given(arguments).items()
        }
    )


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that stand on the command line, with their text."""
    values = {field.name: getattr(arguments, field.name, MISSING) for field in fields(Config)}
    return {name: value for name, value in values.items() if value is not MISSING}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise RequestError(f"{message}; see {self.prog} --help")


def _add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add fields of `Config`, under the headings of `GROUPS`."""
    by_name = {f.name: f for f in fields(Config)}
    grouped = {name for group in GROUPS.values() for name in group}
    rest = tuple(name for name in names if name not in grouped)
    for title, group in (GROUPS | {"more": rest}).items():
        chosen = [by_name[name] for name in group if name in names]
        heading = parser.add_argument_group(title) if chosen else parser
        for option in chosen:
            _add_option(heading, option)


def _add_option(parser: Any, option: Field[Any]) -> None:
    """Add one field of `Config`; an argument that is not given stays `MISSING`."""
    flag, text = "--" + option.name.replace("_", "-"), option.metadata["help"].replace("%", "%%")
    if isinstance(option.default, bool):
        parser.add_argument(flag, action="store_true", default=MISSING, help=text)
        return
    says_it = option.default is None or "(default" in text
    note = "" if says_it else f" (default {_written(option.default)})"
    parser.add_argument(flag, default=MISSING, metavar="…", help=text + note)


def _written(default: Any) -> str:
    """A default as one would write it on the command line."""
    if isinstance(default, tuple):
        return ",".join(map(str, cast(tuple[Any, ...], default)))
    return str(default)


@cache
def _kinds(name: str) -> tuple[type, ...]:
    """The types that a field of `Config` may have."""
    hint = get_type_hints(Config)[name]
    return get_args(hint) if type(None) in get_args(hint) else (hint,)


def _value(name: str, text: str) -> Any:
    """An option's text as its field's type; what does not fit stays text for `Config` to refuse."""
    kinds = _kinds(name)
    number = next((kind for kind in (int, float) if kind in kinds), None)
    if number is None:
        return text
    if type(None) in kinds and text in NOTHING:
        return None
    try:
        return number(text)
    except ValueError:
        return text
