"""Find concept vectors in Gemma 3 and prove by causal damage that they matter.

The package is lazy: ``import conceptvec`` loads no torch. Data flows one way: configuration → model →
extraction → scoring → validation → results → figures.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Config": "config",
    "RequestError": "errors",
    "RunError": "errors",
    "load_model": "models",
    "extract": "extraction",
    "score": "scoring",
    "score_tokens": "lexicon",
    "validate": "validation",
    "run": "pipeline",
    "open_run": "pipeline",
    "save_run": "pipeline",
    "load_results": "results",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
