"""PyTorch's pass over readouts."""

from __future__ import annotations

import pytest
import torch

from conceptvec.extraction import sweep
from conceptvec.extraction.sweep import Workspace, dots

CPU = torch.device("cpu")


def test_memory_of_one_shape_is_used_again() -> None:
    workspace, like = Workspace(), torch.empty(0)
    first = workspace.tensor("a", like, torch.float32, 3, 4)
    assert workspace.tensor("a", like, torch.float32, 3, 4) is first
    assert workspace.tensor("b", like, torch.float32, 3, 4) is not first


@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, (3, 5)), (torch.bfloat16, (3, 4))])
def test_memory_of_another_shape_is_new(dtype, shape) -> None:
    workspace, like = Workspace(), torch.empty(0)
    workspace.tensor("a", like, torch.float32, 3, 4)
    again = workspace.tensor("a", like, dtype, *shape)
    assert (again.dtype, tuple(again.shape)) == (dtype, shape)


@pytest.mark.parametrize("elements", [1, 100, 2**20])
def test_dots_are_those_of_float64(elements: int, monkeypatch) -> None:
    monkeypatch.setitem(sweep.SLICE, "cpu", elements)
    matrix, d = torch.randn(40, 12), torch.randn(7, 12)
    ids = torch.randint(0, 40, (7, 5))
    expected = torch.einsum("nmh,nh->nm", matrix[ids].double(), d.double())
    assert torch.allclose(dots(matrix, ids, d), expected, rtol=1e-12)
