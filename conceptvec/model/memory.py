"""Memory: what is there, and batches that halve themselves when it runs out.

Results do not depend on how rows are cut into batches, up to the rounding of the matrix products
(a part of a run is always measured whole, and its values are kept to six significant digits).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from conceptvec.errors import RunError, first_line

logger = logging.getLogger(__name__)
T = TypeVar("T")
MARKS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "invalid buffer size",
)
CGROUPS = (  # what a container may use, and uses
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CUDA, MPS, the CPU's allocator or numpy had no memory left."""
    return isinstance(error, MemoryError) or any(mark in str(error).lower() for mark in MARKS)


class Batch:
    """A batch size that halves itself when memory runs out, says so, and stays small.

    Args:
        size: rows per batch to begin with.
        what: what a row is, for the message.
    """

    def __init__(self, size: int, what: str = "rows") -> None:
        self.size, self.what = size, what

    def map(self, n: int, compute: Callable[[slice], T]) -> list[T]:
        """`compute` over slices that cut n rows into batches, in order.

        Raises:
            RunError: not even one row fits into memory.
        """
        out: list[T] = []
        start = 0
        while start < n:

            def batch(size: int, start: int = start) -> T:
                return compute(slice(start, min(start + size, n)))

            out.append(self.run(batch))
            start += self.size  # the one that succeeded
        return out

    def run(self, compute: Callable[[int], T]) -> T:
        """`compute` with the batch size, again with half of it where memory runs out.

        Raises:
            RunError: not even one row fits into memory.
        """
        while True:
            try:
                return compute(self.size)
            except (RuntimeError, MemoryError) as error:
                reason = _reason(error)
            # Outside of the handler: the traceback no longer holds the failed batch's tensors.
            self._halve(reason)

    def _halve(self, reason: str) -> None:
        if self.size <= 1:
            raise RunError(
                f"out of memory with one of the {self.what} at a time ({reason}). Close other "
                "programs, or run again with --device cpu, --dtype bfloat16 or a smaller model; "
                "what was finished is kept."
            )
        tried, self.size = self.size, self.size // 2
        said = "out of memory: going on with %d instead of %d %s at a time"
        logger.warning(said, self.size, tried, self.what)
        empty_caches()


def _reason(error: Exception) -> str:
    """The first words of an out-of-memory error; any other is raised again."""
    if not is_out_of_memory(error):
        raise error
    return first_line(error, 120)


def empty_caches() -> None:
    """Give cached device memory back."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        gc.collect()
        torch.mps.empty_cache()


def available_memory() -> int:
    """Main memory that this process may still take, in bytes.

    The machine's, or less in a container.
    """
    import psutil

    free = psutil.virtual_memory().available
    for limit, used in CGROUPS:
        try:
            left = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such limit here
            continue
        free = min(free, max(0, left))
    return free


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
