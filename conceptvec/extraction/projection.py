"""The exact projection of directions onto a vocabulary: both poles and the moments of every readout from one product.

For a direction d the readout is ``z_t = E_t · d`` over the shown tokens t. No readout is ever kept:

1. The vocabulary is cut into chunks whose part of the readout stays in the cache. A chunk's product is taken in the
   **preselection precision**: bfloat16 where the processor has units for it, float32 elsewhere.
2. Blocks of 16 tokens are reduced to their extremes, and only the best blocks are looked into; their tokens are merged
   into the `keep` best so far. Variance, skew and kurtosis come from power sums about the mean
   ``d · mean(E)``, taken while the chunk is in the cache.
3. The survivors' values are computed again in float64 and rounded to float32 **correctly**: where the float64 error
   leaves the rounding open, the sum is repeated without error (`math.fsum`). Ids and values are thus a function of
   the direction and the weights alone, whatever the batch, the chunks, the threads or the device. Ties: lower id.
4. A row is **safe** if its k-th exact value lies above everything left behind plus the rounding error of the
   preselection (Cauchy-Schwarz with the measured quantisation residuals, Higham's γ_H for the sums), and if every
   survivor's first value is within that error, which tells of a device that computes wrongly. Rows that fail are
   repeated in float32 with more survivors, and ranked from the full float64 readout if they fail again. Both are
   counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from conceptvec.errors import RunError
from conceptvec.extraction.fast import CompiledScan, compiled_dots, usable
from conceptvec.extraction.sweep import BLOCK, Scan, Workspace, dots, exact_device
from conceptvec.model.device import wide_products
from conceptvec.model.memory import Batch

COLUMNS = {
    "cpu": 32_768,
    "mps": 32_768,
    "cuda": 65_536,
}  # tokens per chunk; above 2^15 macOS 14.0 has a slow product
COMPILED_COLUMNS = 2048  # the same for the compiled kernels, where a chunk costs one call
SPARE = {torch.float32: 14, torch.bfloat16: 90}  # survivors beyond k that guard against rounding
MORE = {torch.float32: 200}  # the same where a row is repeated
REDUCED = 2**14  # rows summed over in one product: some Apple GPUs are wrong from 2^15 on
LARGE = 2**24  # elements of the unembedding from which a lower precision pays
COPY = 768 * 2**20  # bytes that a copy of the unembedding in the preselection's precision may take


class Readouts(NamedTuple):
    """Both poles (n, k) and the moments (n,) of n readouts, on the CPU."""

    top_ids: torch.Tensor  # most promoted first
    top_values: torch.Tensor
    bottom_ids: torch.Tensor  # most suppressed first
    bottom_values: torch.Tensor
    variance: torch.Tensor
    skew: torch.Tensor
    kurtosis: torch.Tensor  # excess
    mean: torch.Tensor


def preselection(device: torch.device) -> torch.dtype:
    """The precision in which survivors are found fastest: bfloat16 where the hardware multiplies it natively."""
    if device.type == "cuda":
        native = wide_products(device) and torch.cuda.get_device_capability(device)[0] >= 8
    else:
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        except OSError:  # not Linux
            flags = ""
        units = "amx_bf16" in flags or "avx512_bf16" in flags
        native = device.type == "cpu" and units and torch.backends.mkldnn.is_available()
    return torch.bfloat16 if native else torch.float32


class Projector:
    """Projects directions (n, H) of the residual stream onto the shown tokens of an unembedding.

    Args:
        unembedding: (V, H) on the device of the computation, float32 or bfloat16. Where it is float32 and the
            preselection bfloat16, a copy of at most `COPY` bytes is kept; of a larger one, chunks are converted.
        masked: bool (V,); these tokens never appear.
        top_k: tokens per pole; at most the number of shown tokens are kept.
        precision: of the preselection; by default the fastest, and float32 for a small unembedding.
        columns: tokens per chunk.
        compiled: take the compiled kernels, where they are; by default not for a small unembedding.

    Raises:
        RunError: the unembedding holds NaN or infinity.

    Attributes:
        fallbacks: so far, rows repeated in float32 with more survivors, rows ranked from a full float64 readout.
    """

    def __init__(
        self, unembedding: torch.Tensor, masked: torch.Tensor, top_k: int, *,
        precision: torch.dtype | None = None, columns: int | None = None, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        self.unembedding, self.device = unembedding, unembedding.device
        self.shown = torch.nonzero(~masked.cpu()).flatten()
        self.k = min(top_k, len(self.shown))
        # A small matrix gains nothing from bfloat16, and its moments would show the rounding.
        large = unembedding.numel() >= LARGE
        self.precision = precision or (preselection(self.device) if large else torch.float32)
        self.compiled = (large if compiled is None else compiled) and usable(unembedding)
        columns = columns or (COMPILED_COLUMNS if self.compiled else COLUMNS[self.device.type])
        self.columns = max(BLOCK, columns // BLOCK * BLOCK)
        self.fallbacks = np.zeros(2, np.int32)
        total = torch.zeros(unembedding.shape[1], dtype=torch.float64)
        self.largest, self.residual = (
            0.0,
            0.0,
        )  # of the rows' norms, and of their distance to bfloat16
        self.copy: torch.Tensor | None = None
        lower = (self.precision, unembedding.dtype) == (torch.bfloat16, torch.float32)
        if lower and 2 * len(self.shown) * unembedding.shape[1] <= COPY:
            self.copy = torch.empty(
                len(self.shown), unembedding.shape[1], dtype=torch.bfloat16, device=self.device
            )
        for start, rows in self.chunks(torch.float32):
            total += rows.sum(0).cpu().double()
            largest = float(torch.linalg.vector_norm(rows, dim=1).max())
            if not math.isfinite(largest):
                raise RunError(
                    "NaN or infinity in the unembedding: the model's weights are broken; fetch them again"
                )
            self.largest = max(self.largest, largest)
            if lower:
                quantised = rows.bfloat16()
                if self.copy is not None:
                    self.copy[start : start + len(rows)] = quantised
                gap = rows - quantised.float()
                self.residual = max(
                    self.residual, float(torch.linalg.vector_norm(gap, dim=1).max())
                )
        self.mean = (total / max(len(self.shown), 1)).float().to(self.device)

    def chunks(self, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """(index of the first shown token, its and the following rows (C, H)); a view where nothing is masked."""
        for start in range(0, len(self.shown), self.columns):
            if self.copy is not None and dtype is self.copy.dtype:
                yield start, self.copy[start : start + self.columns]
                continue
            ids = self.shown[start : start + self.columns]
            first, last = int(ids[0]), int(ids[-1]) + 1
            whole = last - first == len(ids)
            rows = self.unembedding[first:last] if whole else self.unembedding[ids.to(self.device)]
            yield start, rows.to(dtype)

    def covariance(self) -> torch.Tensor:
        """Covariance (H, H) of the shown rows, float32: ``dᵀ C d`` is the variance of d's readout."""
        total = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64)
        for _, rows in self.chunks(torch.float32):
            for part in (rows - self.mean).split(REDUCED):
                total += (part.T.contiguous() @ part).cpu()
        return (total / max(len(self.shown), 1)).float().to(self.device)

    def __call__(self, directions: torch.Tensor, batch_size: int = 200) -> Readouts:
        """Both poles and the moments of n readouts, batch by batch; a batch that does not fit in memory is halved."""
        directions = directions.to(self.device, torch.float32)
        batch = Batch(batch_size, "value vectors")
        out, unsafe = batch.run(lambda n: self._project(directions, self.precision, SPARE, n))
        if len(unsafe):
            self.fallbacks[0] += len(unsafe)
            rest = directions[unsafe.to(self.device)]
            again, still = batch.run(lambda n: self._project(rest, torch.float32, MORE, n))
            for old, new in zip(out, again, strict=True):
                old[unsafe] = new
            unsafe = unsafe[still]
        self.fallbacks[1] += len(unsafe)
        for row in unsafe.tolist():
            for ids, values, sign in (
                (out.top_ids, out.top_values, 1.0),
                (out.bottom_ids, out.bottom_values, -1.0),
            ):
                ids[row], values[row] = self._fully(directions[row], sign)
        return out._replace(top_ids=self.shown[out.top_ids], bottom_ids=self.shown[out.bottom_ids])

    def _project(
        self, directions: torch.Tensor, dtype: torch.dtype, spare: dict[torch.dtype, int], size: int
    ) -> tuple[Readouts, torch.Tensor]:
        """Steps 1 to 4 in one precision: the readouts (ids count shown tokens), and the rows that are not safe."""
        shown, workspace = max(len(self.shown), 1), Workspace()
        mean = directions @ self.mean
        kind, keep = CompiledScan if self.compiled else Scan, min(self.k + spare[dtype], shown)
        scans = [kind(part, keep, workspace) for part in mean.split(size)]
        columns = [part.to(dtype).T.contiguous() for part in directions.split(size)]  # (H, B) each
        # Chunks outside, batches inside: a chunk is gathered and converted once for all directions.
        for start, rows in self.chunks(dtype):
            for scan, d in zip(scans, columns, strict=True):
                scan.add(_product(rows, d, workspace), start)
        m2, m3, m4 = torch.cat([scan.sums for scan in scans], 1).cpu().double() / shown
        floor = torch.clamp(m2, min=1e-150)  # its square is a float64 still
        ids, values = (
            torch.cat(parts, 1) for parts in zip(*(scan.best() for scan in scans), strict=True)
        )
        top, top_values, unsafe = self._rank(directions, ids[0], values[0], 1.0, dtype)
        bottom, bottom_values, also = self._rank(directions, ids[1], values[1], -1.0, dtype)
        variance, skew, kurtosis = (x.float() for x in (m2, m3 / floor**1.5, m4 / floor**2 - 3))
        found = Readouts(
            top, top_values, bottom, bottom_values, variance, skew, kurtosis, mean.cpu()
        )
        return found, torch.nonzero(unsafe | also).flatten()

    def _slack(self, directions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Bound on |first value − E_t · d| before the product is rounded to its own precision: float64 (n,)."""
        norm = torch.linalg.vector_norm(directions, dim=1)
        quantised = directions.to(dtype).float()
        gap = torch.linalg.vector_norm(directions - quantised, dim=1)
        rounding = 1.01 * directions.shape[1] * 2.0**-24  # γ_H of float32 sums of products
        bound = gap * self.largest + (norm + gap) * (
            self.residual if dtype is torch.bfloat16 else 0.0
        )
        bound = bound + rounding * (norm + gap) * (self.largest + self.residual)
        return 1.001 * bound.cpu().double()  # the bound itself was computed in float32

    def _rank(
        self,
        directions: torch.Tensor,
        ids: torch.Tensor,
        first: torch.Tensor,
        sign: float,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A pole's k best by exact value, as ids (n, k) and values (n, k), and which rows are not safe (n,).

        `ids` and `first` (n, keep) are the survivors and their first values times the pole's `sign`, largest first.
        """
        keep, where = ids.shape[1], self.shown.to(self.device)[ids]
        exact = (compiled_dots if self.compiled else dots)(self.unembedding, where, directions)
        first, ids = first.cpu().double(), ids.cpu()
        order, best = _order(ids, self._rounded(exact, ids, directions) * sign)
        # The CPU's bfloat16 product comes rounded to bfloat16; others come in float32.
        own = 1.01 * 2.0**-8 if dtype is torch.bfloat16 and self.device.type == "cpu" else 0.0
        margin = self._slack(directions, dtype)[:, None] + own * first.abs()
        unsafe = ~((first - exact * sign).abs() <= margin).all(1)  # NaN is not safe either
        if keep < len(self.shown):
            unsafe |= best[:, self.k - 1] <= (first[:, -1] + margin[:, -1]).float()
        return order[:, : self.k], best[:, : self.k] * sign, unsafe

    def _rounded(
        self, exact: torch.Tensor, ids: torch.Tensor, directions: torch.Tensor
    ) -> torch.Tensor:
        """Float64 sums (n, m) rounded to the float32 next to the true sum, whatever the order they were summed in."""
        norm = torch.linalg.vector_norm(directions, dim=1)[:, None].cpu().double()
        error = directions.shape[1] * 2.0**-53 * 1.01 * self.largest * norm
        out = (exact - error).float()
        for row, column in torch.nonzero(out != (exact + error).float()).tolist():
            e = self.unembedding[int(self.shown[ids[row, column]])].cpu().double()
            out[row, column] = math.fsum((e * directions[row].cpu().double()).tolist())
        return out

    def _fully(self, direction: torch.Tensor, sign: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One pole of one direction from its full float64 readout: ids (k,) and values (k,)."""
        exact = exact_device(self.device)
        d = direction.to(exact).double()
        z = torch.cat([rows.to(exact).double() @ d for _, rows in self.chunks(torch.float32)]).cpu()
        error = len(d) * 2.0**-52 * self.largest * float(torch.linalg.vector_norm(direction))
        level = (
            (z * sign).topk(self.k).values[-1]
        )  # values that round to the same float32 are ties: they belong here
        near = torch.nonzero((z * sign + error).float() >= (level - error).float()).flatten()
        order, best = _order(
            near[None], self._rounded(z[near][None], near[None], direction[None]) * sign
        )
        return order[0, : self.k], best[0, : self.k] * sign


def _product(rows: torch.Tensor, columns: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """(C, H) times (H, B), in float32 or, where the CPU's bfloat16 product comes so, bfloat16."""
    if (
        rows.dtype is torch.bfloat16 and rows.device.type == "cuda"
    ):  # accumulated and given out in float32
        return torch.mm(rows, columns, torch.float32)
    return torch.mm(
        rows,
        columns,
        out=workspace.tensor("product", rows, rows.dtype, len(rows), columns.shape[1]),
    )


def _order(ids: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort by falling value, equal values by lower id."""
    by_id = ids.argsort(dim=1)
    ids, values = ids.gather(1, by_id), values.gather(1, by_id)
    order = values.argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), values.gather(1, order)
