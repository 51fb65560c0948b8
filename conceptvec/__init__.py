"""Find concept vectors in Gemma 3 and test by causal damage whether they matter.

The package is lazy: ``import conceptvec`` loads no torch. Data flows one way: configuration → model
→ extraction → scoring → validation → results → figures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from conceptvec.version import __version__ as __version__

if TYPE_CHECKING:  # for editors: what is loaded on first use
    from conceptvec.config import Config
    from conceptvec.errors import RequestError, RunError
    from conceptvec.extraction.stage import extract
    from conceptvec.model.network import load_model
    from conceptvec.pipeline import open_run, run, save_run, validate
    from conceptvec.results import load_results
    from conceptvec.scoring.lexicon import score_tokens
    from conceptvec.scoring.stage import score
    from conceptvec.show.explorer import explore
    from conceptvec.tools.find import find
    from conceptvec.tools.scan_table import scan
    from conceptvec.tools.steering import damaging, steer
    from conceptvec.tools.texts import texts

__all__ = [
    "Config",
    "RequestError",
    "RunError",
    "damaging",
    "explore",
    "extract",
    "find",
    "load_model",
    "load_results",
    "open_run",
    "run",
    "save_run",
    "scan",
    "score",
    "score_tokens",
    "steer",
    "texts",
    "validate",
]
_HOME = {
    "Config": "config",
    "RequestError": "errors",
    "RunError": "errors",
    "damaging": "tools.steering",
    "explore": "show.explorer",
    "extract": "extraction.stage",
    "find": "tools.find",
    "load_model": "model.network",
    "load_results": "results",
    "open_run": "pipeline",
    "run": "pipeline",
    "save_run": "pipeline",
    "scan": "tools.scan_table",
    "score": "scoring.stage",
    "score_tokens": "scoring.lexicon",
    "steer": "tools.steering",
    "texts": "tools.texts",
    "validate": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
