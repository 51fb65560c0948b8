"""The command line, ``conceptvec COMMAND``: results on standard output, the rest on the error's."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from conceptvec import launch
from conceptvec.cli.commands import COMMANDS
from conceptvec.cli.options import parser
from conceptvec.errors import RequestError, RunError
from conceptvec.text import finite, printable

DONE, FAILED, BAD_REQUEST, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, one of those above."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _make_streams_safe()
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _leave_out_bars
    if (pipeline := sys.modules.get("conceptvec.pipeline")) is not None:
        pipeline.opened.clear()
    try:
        return _run(argv)
    except BrokenPipeError:  # the reader has seen enough, as in `conceptvec show … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (RequestError, RunError, OSError, MemoryError, KeyboardInterrupt) as error:
        status, message = _ending(error, argv)
        print(f"conceptvec: {printable(' '.join(message.split()))}", file=sys.stderr)
        return status


def _make_streams_safe() -> None:
    """A closed stream takes nothing, and a terminal that cannot show a token shows its number."""
    if sys.stdout is None or sys.stderr is None:  # closed by the caller
        nowhere = open(os.devnull, "w")  # noqa: SIM115
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _leave_out_bars(about: Any) -> None:
    """A progress bar that an interruption finds half made says so in a traceback of its own."""
    if not getattr(about.object, "__qualname__", "").startswith("tqdm."):
        sys.__unraisablehook__(about)


def _run(argv: list[str]) -> int:
    """Parse, run the command, print its answer."""
    command_line = parser(COMMANDS)
    arguments = command_line.parse_args(argv)
    if arguments.command is None:
        command_line.print_help()
        return DONE

    # Of several processes only the first one talks; all of them work.
    is_first = launch.is_first()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("conceptvec").setLevel(logging.INFO if is_first else logging.ERROR)
    command = next(c for c in COMMANDS if c.name == arguments.command)
    with contextlib.nullcontext() if is_first else contextlib.redirect_stdout(None):
        answer = command.run(arguments)
    if not is_first:
        return DONE

    wants_json = getattr(arguments, "json", False)
    print(_as_json(answer.document) if wants_json else answer.text())
    sys.stdout.flush()
    return DONE if answer.document.get("ok", True) else command.not_ok


def _as_json(document: dict[str, Any]) -> str:
    takes_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    plain = finite(document)
    return json.dumps(plain, ensure_ascii=not takes_unicode, indent=1, allow_nan=False)


def _ending(error: BaseException, argv: list[str]) -> tuple[int, str]:
    """Exit status and message of a run that ended badly."""
    if isinstance(error, RequestError):
        return BAD_REQUEST, str(error)
    if isinstance(error, RunError):
        return FAILED, str(error)
    kept = "what was finished is kept"
    if isinstance(error, MemoryError):
        return FAILED, f"out of memory; {kept}. Run it again with a smaller --batch-size"
    if isinstance(error, OSError):
        return FAILED, f"{error}; {kept}. Check disk, folder and network, then run it again"
    # Once the folder was cleared, what is in it is this run's, and is not to be cleared again.
    pipeline = sys.modules.get("conceptvec.pipeline")
    is_begun = pipeline is not None and bool(pipeline.opened)
    kept_words = (word for word in argv if not (is_begun and word == "--overwrite"))
    again = shlex.join(["conceptvec", *kept_words])
    return INTERRUPTED, f"interrupted; {kept}. {'Resume' if 'run' in argv else 'Again'}: {again}"
