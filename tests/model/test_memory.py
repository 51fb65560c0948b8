"""Batches that halve themselves when memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from conceptvec import RunError
from conceptvec.model.memory import Batch

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    MemoryError(),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
]


def failing_above(limit: int, error: Exception) -> Callable[[slice], list[int]]:
    """Gives the rows of a slice that is not too large."""

    def compute(rows: slice) -> list[int]:
        if rows.stop - rows.start > limit:
            raise error
        return list(range(rows.start, rows.stop))

    return compute


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
class TestOutOfMemory:
    def test_every_row_is_computed_once(self, error) -> None:
        batch = Batch(50, "value vectors")
        assert sum(batch.map(103, failing_above(7, error)), []) == list(range(103))
        assert batch.size == 6

    def test_a_smaller_batch_is_told(self, error, caplog) -> None:
        Batch(50, "value vectors").map(103, failing_above(30, error))
        assert "going on with 25 instead of 50 value vectors at a time" in caplog.text

    def test_one_row_that_does_not_fit_is_an_error(self, error) -> None:
        said = "out of memory with one of the value vectors at a time"
        with pytest.raises(RunError, match=said):
            Batch(50, "value vectors").map(5, failing_above(0, error))


def test_the_sizes_that_are_tried() -> None:
    sizes = []

    def work(size: int) -> int:
        sizes.append(size)
        if size > 3:
            raise MemoryError
        return size

    assert Batch(13).run(work) == 3
    assert sizes == [13, 6, 3]


def test_other_errors_are_not_taken_for_memory() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        Batch(5).map(9, failing_above(0, error))
