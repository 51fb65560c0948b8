"""The rows of an unembedding that may be shown: in chunks, and with what bounds their rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from conceptvec.errors import RunError
from conceptvec.extraction.sweep import BLOCK

REDUCED = 2**14  # rows summed over in one product: some Apple GPUs are wrong from 2^15 on
COPY = 768 * 2**20  # bytes that a copy of the rows in the preselection's precision may take


class ShownRows:
    """The shown rows E_t of an unembedding.

    Args:
        unembedding: (V, H) on the device of the computation, float32 or bfloat16.
        masked: bool (V,); these tokens never appear.
        precision: in which chunks are wanted most. Where the unembedding is float32 and this is
            bfloat16, a copy of at most `COPY` bytes is kept; of a larger one, chunks are converted.
        columns: tokens per chunk.

    Raises:
        RunError: the unembedding holds NaN or infinity.

    Attributes:
        shown: the ids of the shown tokens, int64 on the CPU.
        mean: of the rows, float32 (H,).
        largest: of the rows' norms.
        residual: the largest distance of a row to its bfloat16, where that is the precision.
    """

    def __init__(
        self, unembedding: torch.Tensor, masked: torch.Tensor, precision: torch.dtype, columns: int
    ) -> None:
        self.unembedding, self.device = unembedding, unembedding.device
        self.precision = precision
        self.columns = max(BLOCK, columns // BLOCK * BLOCK)  # whole blocks
        self.shown = torch.nonzero(~masked.cpu()).flatten()
        self.number, width = len(self.shown), unembedding.shape[1]
        is_lower = (precision, unembedding.dtype) == (torch.bfloat16, torch.float32)
        self.copy: torch.Tensor | None = None
        if is_lower and 2 * self.number * width <= COPY:
            self.copy = torch.empty(
                self.number, width, dtype=torch.bfloat16, device=unembedding.device
            )
        self.largest = self.residual = 0.0
        total = torch.zeros(width, dtype=torch.float64)
        for start, rows in self.chunks(torch.float32):
            total += rows.sum(0).cpu().double()
            self.largest = max(self.largest, self._largest_norm(rows))
            if is_lower:
                self._take_in_lower(start, rows)
        self.mean = (total / max(self.number, 1)).float().to(self.device)

    @staticmethod
    def _largest_norm(rows: torch.Tensor) -> float:
        largest = float(torch.linalg.vector_norm(rows, dim=1).max())
        if not math.isfinite(largest):
            raise RunError(
                "NaN or infinity in the unembedding: the model's weights are broken; fetch them "
                "again"
            )
        return largest

    def _take_in_lower(self, start: int, rows: torch.Tensor) -> None:
        """Measure what bfloat16 takes from a chunk, and keep the copy."""
        lower = rows.bfloat16()
        if self.copy is not None:
            self.copy[start : start + len(rows)] = lower
        gap = torch.linalg.vector_norm(rows - lower.float(), dim=1)
        self.residual = max(self.residual, float(gap.max()))

    def chunks(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """(index of the first shown token, its and the following rows (C, H)).

        A view where nothing is masked.
        """
        for start in range(0, self.number, self.columns):
            if self.copy is not None and dtype is self.copy.dtype:
                yield start, self.copy[start : start + self.columns]
                continue
            ids = self.shown[start : start + self.columns]
            first, end = int(ids[0]), int(ids[-1]) + 1
            is_whole = end - first == len(ids)
            index = slice(first, end) if is_whole else ids.to(self.device)
            yield start, self.unembedding[index].to(dtype)

    def covariance(self) -> torch.Tensor:
        """Covariance C (H, H) of the rows, float32: ``dᵀ C d`` is the variance of d's readout."""
        width = len(self.mean)
        total = torch.zeros(width, width, dtype=torch.float64)
        for _, rows in self.chunks(torch.float32):
            for part in (rows - self.mean).split(REDUCED):
                total += (part.T.contiguous() @ part).cpu()
        return (total / max(self.number, 1)).float().to(self.device)
