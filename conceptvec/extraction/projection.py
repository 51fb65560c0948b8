"""The exact projection of directions onto a vocabulary: both poles and the moments of a readout.

For a direction d the readout is ``z_t = E_t · d`` over the shown tokens t. No readout is ever kept:

1. The vocabulary is cut into chunks whose part of the readout stays in the cache. A chunk's product
   is taken in the **preselection precision**: bfloat16 where the processor has units for it,
   float32 elsewhere.
2. Blocks of 16 tokens are reduced to their extremes, and only the best blocks are looked into;
   their tokens are merged into the `keep` best so far. Variance, skew and kurtosis come from power
   sums about the mean ``d · mean(E)``, taken while the chunk is in the cache.
3. The survivors' values are computed again in float64 and rounded to float32 **correctly**: where
   the float64 error leaves the rounding open, the sum is repeated without error (`math.fsum`). Ids
   and values are thus a function of the direction and the weights alone, whatever the batch, the
   chunks, the threads or the device. Ties: lower id.
4. A row is **safe** if its k-th exact value lies above everything left behind plus the rounding
   error of the preselection (Cauchy-Schwarz with the measured quantisation residuals, Higham's γ_H
   for the sums), and if every survivor's first value is within that error, which tells of a device
   that computes wrongly. Rows that fail are repeated in float32 with more survivors, and ranked
   from the full float64 readout if they fail again. Both are counted.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from conceptvec.extraction.fast import CompiledScan, compiled_dots, usable
from conceptvec.extraction.rows import REDUCED as REDUCED
from conceptvec.extraction.rows import ShownRows
from conceptvec.extraction.sweep import Scan, Workspace, dots, exact_device
from conceptvec.model.device import has_native_bfloat16, wide_products
from conceptvec.model.memory import Batch
from conceptvec.model.powers import near_one, times_power

# Tokens per chunk; above 2^15 macOS 14.0 has a slow product.
COLUMNS = {"cpu": 32_768, "mps": 32_768, "cuda": 65_536}
COMPILED_COLUMNS = 2048  # the same for the compiled kernels, where a chunk costs one call
SPARE = {torch.float32: 14, torch.bfloat16: 90}  # survivors beyond k that guard against rounding
MORE = {torch.float32: 200}  # the same where a row is repeated
LARGE = 2**24  # elements of the unembedding from which a lower precision pays
FLOAT32, FLOAT64, BFLOAT16 = 2.0**-24, 2.0**-53, 2.0**-8  # unit roundoffs
MARGIN = 1.01  # for terms of higher order in a bound
TINY = 1e-150  # smallest variance that is divided by: its square is a float64 still

Ranked = tuple[torch.Tensor, torch.Tensor]  # ids and values of one pole, (n, k) each


class Readouts(NamedTuple):
    """Both poles (n, k) and the moments (n,) of n readouts, on the CPU.

    Attributes:
        top_ids: most promoted first.
        top_values: of these.
        bottom_ids: most suppressed first.
        bottom_values: of these.
        variance: over the shown tokens, float64: the square of a readout may be no float32.
        skew: over the shown tokens.
        kurtosis: over the shown tokens, excess.
        mean: over the shown tokens.
    """

    top_ids: torch.Tensor
    top_values: torch.Tensor
    bottom_ids: torch.Tensor
    bottom_values: torch.Tensor
    variance: torch.Tensor
    skew: torch.Tensor
    kurtosis: torch.Tensor
    mean: torch.Tensor


def preselection(device: torch.device) -> torch.dtype:
    """The precision in which survivors are found fastest.

    That is bfloat16 where the hardware multiplies it natively.
    """
    if device.type == "cuda":
        native = wide_products(device) and has_native_bfloat16(device)
    else:
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        except OSError:  # not Linux
            flags = ""
        has_units = "amx_bf16" in flags or "avx512_bf16" in flags
        native = device.type == "cpu" and has_units and torch.backends.mkldnn.is_available()
    return torch.bfloat16 if native else torch.float32


class Projector(ShownRows):
    """Projects directions (n, H) of the residual stream onto the shown tokens of an unembedding.

    Args:
        unembedding: (V, H) on the device of the computation, float32 or bfloat16.
        masked: bool (V,); these tokens never appear.
        top_k: tokens per pole; at most the number of shown tokens are kept.
        precision: of the preselection; by default the fastest, and float32 for a small unembedding.
        columns: tokens per chunk.
        compiled: take the compiled kernels, where they are; by default not for a small unembedding.

    Raises:
        RunError: the unembedding holds NaN or infinity.

    Attributes:
        fallbacks: so far, rows repeated in float32 with more survivors, rows ranked from a full
            float64 readout.
    """

    def __init__(
        self,
        unembedding: torch.Tensor,
        masked: torch.Tensor,
        top_k: int,
        *,
        precision: torch.dtype | None = None,
        columns: int | None = None,
        compiled: bool | None = None,
    ) -> None:
        # A small matrix gains nothing from bfloat16, and its moments would show the rounding.
        is_large = unembedding.numel() >= LARGE
        wanted = is_large if compiled is None else compiled
        self.compiled = wanted and usable(unembedding)
        device = unembedding.device
        if precision is None:
            precision = preselection(device) if is_large else torch.float32
        if columns is None:
            columns = COMPILED_COLUMNS if self.compiled else COLUMNS[device.type]
        super().__init__(unembedding, masked, precision, columns)
        self.k = min(top_k, self.number)
        self.fallbacks = np.zeros(2, np.int32)

    def __call__(self, directions: torch.Tensor, batch_size: int = 200) -> Readouts:
        """Both poles and the moments of n readouts, batch by batch.

        A batch that does not fit in memory is halved. Directions of whatever length are brought to
        about one by a power of two, which rounds nothing, and the values back to theirs: neither
        very long nor very short ones leave the numbers on the way.
        """
        directions, exponents = near_one(directions.to(self.device, torch.float32))
        batch = Batch(batch_size, "value vectors")
        out, unsafe = batch.run(lambda n: self._project(directions, self.precision, SPARE, n))

        # Rows that are not safe: in float32 with more survivors, then from the full readout.
        if len(unsafe):
            self.fallbacks[0] += len(unsafe)
            rest = directions[unsafe.to(self.device)]
            again, still = batch.run(lambda n: self._project(rest, torch.float32, MORE, n))
            for whole, repeated in zip(out, again, strict=True):
                whole[unsafe] = repeated
            unsafe = unsafe[still]
        self.fallbacks[1] += len(unsafe)
        for row in unsafe.tolist():
            poles = ((out.top_ids, out.top_values, 1.0), (out.bottom_ids, out.bottom_values, -1.0))
            for ids, values, sign in poles:
                ids[row], values[row] = self._rank_in_full(directions[row], sign)
        out = out._replace(top_ids=self.shown[out.top_ids], bottom_ids=self.shown[out.bottom_ids])
        return _scaled_back(out, exponents)

    def _project(
        self, directions: torch.Tensor, dtype: torch.dtype, spare: dict[torch.dtype, int], size: int
    ) -> tuple[Readouts, torch.Tensor]:
        """Steps 1 to 4 in one precision: the readouts, and the rows that are not safe.

        Ids count shown tokens.
        """
        number, workspace = max(self.number, 1), Workspace()
        mean = directions @ self.mean
        kind, keep = CompiledScan if self.compiled else Scan, min(self.k + spare[dtype], number)
        scans = [kind(part, keep, workspace) for part in mean.split(size)]
        columns = [part.to(dtype).T.contiguous() for part in directions.split(size)]  # (H, B) each
        # Chunks outside, batches inside: a chunk is gathered and converted once for all directions.
        for start, rows in self.chunks(dtype):
            for scan, batch in zip(scans, columns, strict=True):
                scan.add(_product(rows, batch, workspace), start)

        sums = torch.cat([scan.sums for scan in scans], 1)  # (3, n)
        m2, m3, m4 = sums.cpu().double() / number
        floor = torch.clamp(m2, min=TINY)
        skew, kurtosis = m3 / floor**1.5, m4 / floor**2 - 3

        survivors = [scan.best() for scan in scans]
        ids, first = (torch.cat(parts, 1) for parts in zip(*survivors, strict=True))
        top, top_unsafe = self._rank(directions, ids[0], first[0], 1.0, dtype)
        bottom, bottom_unsafe = self._rank(directions, ids[1], first[1], -1.0, dtype)
        moments = (m2, skew.float(), kurtosis.float(), mean.cpu())
        unsafe = torch.nonzero(top_unsafe | bottom_unsafe).flatten()
        return Readouts(*top, *bottom, *moments), unsafe

    def _slack(self, directions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Bound on |first value − E_t · d|, float64 (n,).

        It holds before the product is rounded to its own precision.
        """
        norm = torch.linalg.vector_norm(directions, dim=1)
        quantised = directions.to(dtype).float()
        gap = torch.linalg.vector_norm(directions - quantised, dim=1)
        residual = self.residual if dtype is torch.bfloat16 else 0.0
        gamma = MARGIN * directions.shape[1] * FLOAT32  # of float32 sums of products
        bound = gap * self.largest + (norm + gap) * residual
        bound = bound + gamma * (norm + gap) * (self.largest + self.residual)
        return 1.001 * bound.cpu().double()  # the bound itself was computed in float32

    def _rank(
        self,
        directions: torch.Tensor,
        ids: torch.Tensor,
        first: torch.Tensor,
        sign: float,
        dtype: torch.dtype,
    ) -> tuple[Ranked, torch.Tensor]:
        """A pole's k best by exact value, and which rows are not safe, bool (n,).

        `ids` and `first` (n, keep) are the survivors and their first values times the pole's
        `sign`, largest first.
        """
        keep, tokens = ids.shape[1], self.shown.to(self.device)[ids]
        exact = (compiled_dots if self.compiled else dots)(self.unembedding, tokens, directions)
        first, ids = first.cpu().double(), ids.cpu()
        order, best = _order(ids, self._rounded(exact, ids, directions) * sign)
        # The CPU's bfloat16 product comes rounded to bfloat16; others come in float32.
        is_rounded = dtype is torch.bfloat16 and self.device.type == "cpu"
        product = MARGIN * BFLOAT16 if is_rounded else 0.0
        margin = self._slack(directions, dtype)[:, None] + product * first.abs()
        unsafe = ~((first - exact * sign).abs() <= margin).all(1)  # NaN is not safe either
        if keep < self.number:
            left_behind = (first[:, -1] + margin[:, -1]).float()
            unsafe |= best[:, self.k - 1] <= left_behind
        return (order[:, : self.k], best[:, : self.k] * sign), unsafe

    def _rounded(
        self, exact: torch.Tensor, ids: torch.Tensor, directions: torch.Tensor
    ) -> torch.Tensor:
        """Float64 sums (n, m) rounded to the float32 next to the true sum.

        Whatever the order they were summed in.
        """
        norm = torch.linalg.vector_norm(directions, dim=1)[:, None].cpu().double()
        error = directions.shape[1] * FLOAT64 * MARGIN * self.largest * norm
        out = (exact - error).float()
        for row, column in torch.nonzero(out != (exact + error).float()).tolist():
            token = self.unembedding[int(self.shown[ids[row, column]])]
            products = token.cpu().double() * directions[row].cpu().double()
            out[row, column] = math.fsum(products.tolist())
        return out

    def _rank_in_full(self, direction: torch.Tensor, sign: float) -> Ranked:
        """One pole of one direction from its full float64 readout: ids (k,) and values (k,)."""
        exact = exact_device(self.device)
        d = direction.to(exact).double()
        chunks = self.chunks(torch.float32)
        z = torch.cat([rows.to(exact).double() @ d for _, rows in chunks]).cpu()
        norm = float(torch.linalg.vector_norm(direction))
        error = len(d) * 2 * FLOAT64 * self.largest * norm
        # Values that round to the same float32 are ties: they belong here.
        level = (z * sign).topk(self.k).values[-1]
        is_near = (z * sign + error).float() >= (level - error).float()
        near = torch.nonzero(is_near).flatten()
        values = self._rounded(z[near][None], near[None], direction[None])
        order, best = _order(near[None], values * sign)
        return order[0, : self.k], best[0, : self.k] * sign


def _scaled_back(readouts: Readouts, exponents: torch.Tensor) -> Readouts:
    """The readouts of the directions as they were given."""
    mean = times_power(readouts.mean[:, None], exponents)[:, 0]
    return readouts._replace(
        top_values=times_power(readouts.top_values, exponents),
        bottom_values=times_power(readouts.bottom_values, exponents),
        variance=torch.ldexp(readouts.variance, 2 * exponents),
        mean=mean,
    )


def _product(rows: torch.Tensor, columns: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """(C, H) times (H, B), in float32 or, where the CPU's bfloat16 product comes so, bfloat16."""
    if rows.dtype is torch.bfloat16 and rows.device.type == "cuda":
        return torch.mm(rows, columns, torch.float32)  # accumulated and given out in float32
    out = workspace.tensor("product", rows, rows.dtype, len(rows), columns.shape[1])
    return torch.mm(rows, columns, out=out)


def _order(ids: torch.Tensor, values: torch.Tensor) -> Ranked:
    """Sort by falling value, equal values by lower id."""
    by_id = ids.argsort(dim=1)
    ids, values = ids.gather(1, by_id), values.gather(1, by_id)
    order = values.argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), values.gather(1, order)
