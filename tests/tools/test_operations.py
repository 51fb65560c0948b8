"""Single operations: right here, and each of the failures that are on record is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from conceptvec.tools import operations

CPU = torch.device("cpu")


def outcomes() -> dict[str, bool]:
    """Check → whether it passes, with sums of at most 20,000 terms."""
    checks = operations.operations(CPU, torch.float32, 20_000)
    return {check.name: check.measure() <= check.allowed for check in checks}


def test_all_pass_on_a_cpu() -> None:
    assert set(outcomes().values()) == {True}


def wrong(run: Callable[..., Any], is_hit: Callable[..., bool], spoil: Callable[..., Any]) -> Any:
    """An operation that goes wrong in float32 where `is_hit` says so; the reference is float64."""

    def computed(*inputs: Any, **settings: Any) -> Any:
        result = run(*inputs, **settings)
        is_float32 = inputs[0].dtype == torch.float32
        return spoil(result) if is_float32 and is_hit(*inputs) else result

    return computed


def always(*_: Any) -> bool:
    return True


@pytest.mark.parametrize(
    ("owner", "name", "is_hit", "spoil", "found"),
    [
        (
            torch,
            "mm",
            lambda a, _: a.shape[1] > 16_000,
            torch.zeros_like,
            {"longest reduction of a run"},
        ),
        (torch, "bmm", always, lambda x: x.roll(1, 0), {"batched product"}),
        (
            torch.nn.functional,
            "gelu",
            always,
            lambda x: torch.where(x > 900, torch.nan, x),
            {"GELU of large values"},
        ),
        (
            torch.nn.functional,
            "linear",
            always,
            lambda x: x * 1.001,
            {"layer in the model's precision"},
        ),
        (torch.Tensor, "softmax", always, lambda x: x * 1.001, {"masked attention"}),
    ],
)
def test_a_wrong_operation_is_found(
    owner: Any,
    name: str,
    is_hit: Callable[..., bool],
    spoil: Callable[..., Any],
    found: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name), is_hit, spoil))
    assert {check for check, passes in outcomes().items() if not passes} == found


def test_other_random_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "FIRST_NORMALS", (0.1, 0.2, 0.3))
    assert operations.random_numbers(CPU) > 1
