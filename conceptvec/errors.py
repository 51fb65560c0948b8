"""The two ways in which a request can end badly; the command line maps them to exit codes 2 and 1."""

from __future__ import annotations


class RequestError(ValueError):
    """The request itself is bad: the message says what was got, what was expected, what to do next."""


class RunError(RuntimeError):
    """The run failed on a sound request (unusable numbers, a damaged file, no memory left)."""
