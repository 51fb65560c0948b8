"""The two ways in which a request can end badly; their exit codes are 2 and 1."""

from __future__ import annotations


class _Plain(Exception):
    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a cell: the message, which says what to do, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


def first_line(error: object, width: int = 200) -> str:
    """The beginning of an error's text, to be quoted in a message; its kind where it has none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:width]
    return line.encode("utf-8", "backslashreplace").decode()  # half a character stops no message


class RequestError(_Plain, ValueError):
    """The request is bad: the message says what was got, what was expected, what to do next."""


class RunError(_Plain, RuntimeError):
    """The run failed on a sound request (unusable numbers, a damaged file, no memory left)."""
