"""What a session has set for all of PyTorch and NumPy, set aside while a stage runs.

A default precision, a lower precision of products, a default device, autocast, a switched-off
gradient, errors for overflow: they change or break what a stage computes, and say nothing about
it. Here it runs under the libraries' own defaults, and finds the session's again afterwards.

What is hooked into a forward pass of the user's computes exactly (`exact`), and leaves all else of
that pass as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
BY_DEFAULT: Any = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
BACKENDS = ("cuda", "mkldnn")  # whose float32 products may be of a lower precision
EXACT = "ieee"


def set_aside(stage: Callable[P, T]) -> Callable[P, T]:
    """The same function, under the libraries' own defaults."""

    @wraps(stage)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with defaults():
            return stage(*args, **kwargs)

    return run


@contextlib.contextmanager
def defaults() -> Iterator[None]:
    """The libraries' own defaults inside, what was set before behind."""
    import numpy as np
    import torch

    dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with contextlib.ExitStack() as stack:
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, dtype)
        torch.use_deterministic_algorithms(False)
        stack.callback(torch.use_deterministic_algorithms, deterministic, warn_only=warn_only)
        stack.enter_context(exact())
        stack.enter_context(np.errstate(**BY_DEFAULT))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float32 stays float32 inside: no lower precision of products, no autocast."""
    import torch

    with contextlib.ExitStack() as stack:
        stack.enter_context(_exact_products())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Float32 products in float32."""
    import torch

    # From torch 2.9 on each backend has a setting of its own; the old one then may not be read.
    settings: list[Any] = [
        backend.matmul
        for backend in (getattr(torch.backends, name) for name in BACKENDS)
        if hasattr(getattr(backend, "matmul", None), "fp32_precision")
    ]
    if settings:
        before = [matmul.fp32_precision for matmul in settings]
        for matmul in settings:
            matmul.fp32_precision = EXACT
        try:
            yield
        finally:
            for matmul, precision in zip(settings, before, strict=True):
                matmul.fp32_precision = precision
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
