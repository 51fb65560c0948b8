"""matplotlib, imported whatever ``MPLBACKEND`` says: figures are saved here, no window opens.

A backend that is unknown or not installed would end the import; one that is known stays chosen, so
that a notebook's own figures appear as ever.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

VARIABLE = "MPLBACKEND"


def _load() -> Any:
    wanted = os.environ.pop(VARIABLE, None)
    try:
        library = importlib.import_module("matplotlib")
    finally:
        if wanted is not None:
            os.environ[VARIABLE] = wanted
    if wanted:
        with contextlib.suppress(ValueError):
            library.rcParams["backend"] = wanted
    return library


matplotlib = _load()
