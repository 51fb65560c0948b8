"""Find concept vectors in Gemma 3 and prove by causal damage that they matter.

The package is lazy: ``import conceptvec`` loads no torch. Data flows one way: configuration → model →
extraction → scoring → validation → results → figures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors: what is loaded on first use
    from conceptvec.config import Config
    from conceptvec.errors import RequestError, RunError
    from conceptvec.explorer import explore
    from conceptvec.extraction import extract
    from conceptvec.lexicon import score_tokens
    from conceptvec.models import load_model
    from conceptvec.pipeline import open_run, run, save_run
    from conceptvec.results import load_results
    from conceptvec.scoring import score
    from conceptvec.validation import validate

__all__ = [
    "Config", "RequestError", "RunError", "explore", "extract", "load_model", "load_results", "open_run", "run",
    "save_run", "score", "score_tokens", "validate",
]  # fmt: skip
_HOME = {
    "Config": "config", "RequestError": "errors", "RunError": "errors", "explore": "explorer", "extract": "extraction",
    "load_model": "models", "load_results": "results", "open_run": "pipeline", "run": "pipeline",
    "save_run": "pipeline", "score": "scoring", "score_tokens": "lexicon", "validate": "validation",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
