"""Settings of the session: set aside while a stage runs, and found again behind it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import conceptvec as cv
from conceptvec.model.ambient import BACKENDS, defaults


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "medium": lambda: products("medium"),
    "no gradient": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "numpy": lambda: np.errstate(all="raise"),
}


def stages(config: cv.Config) -> str:
    """What the stages give, as far as it repeats."""
    model = cv.load_model(config)
    candidates = cv.extract(model, config)
    results = cv.validate(cv.score(candidates, model, config), model, config)
    lasting = {key: results[key] for key in ("model", "validation_results", "agreement", "text")}
    return json.dumps(lasting)


@pytest.fixture(scope="module")
def demo() -> cv.Config:
    return cv.Config(device="cpu", layers="3", max_vectors=8, corpus_tokens=400)


@pytest.fixture(scope="module")
def expected(demo: cv.Config) -> str:
    return stages(demo)


@pytest.mark.whole
@pytest.mark.parametrize("name", SETTINGS)
def test_stages_give_the_same_under_every_setting(name: str, demo, expected) -> None:
    with SETTINGS[name]():
        assert stages(demo) == expected


def state() -> tuple:
    return (
        torch.get_default_dtype(),
        [getattr(torch.backends, name).matmul.fp32_precision for name in BACKENDS],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        np.geterr(),
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_found_again(name: str) -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("an old torch, whose setting is read otherwise")
    with defaults():
        standard = state()
    with SETTINGS[name]():
        before = state()
        with defaults():
            assert state()[2:] == standard[2:] and state()[0] is torch.float32
        assert state() == before


def test_a_setting_is_found_again_after_an_error() -> None:
    with default_dtype(torch.float64):
        with contextlib.suppress(KeyError), defaults():
            raise KeyError
        assert torch.get_default_dtype() is torch.float64


def test_products_are_exact_inside() -> None:
    for name in BACKENDS:
        with products("medium"), defaults():
            matmul = getattr(torch.backends, name).matmul
            assert getattr(matmul, "fp32_precision", "ieee") == "ieee"
