"""One pass over readouts, chunk by chunk: the best tokens of both poles and the power sums; and exact dot products.

Written in PyTorch for every device. `compiled` has the same for processors, and is held against this by the tests.
"""

from __future__ import annotations

import math

import torch

BLOCK = 16  # tokens per block extreme
SLICE = {"cpu": 2**20, "mps": 2**24, "cuda": 2**26}  # elements of rows in float64 at a time


class Workspace(dict[str, torch.Tensor]):
    """Memory that is used again from chunk to chunk: fresh pages cost more than the arithmetic."""

    def tensor(self, name: str, like: torch.Tensor, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Uninitialised memory of a shape, on the device of `like`; what was there under the same name is lost."""
        found = self.get(name)
        if found is None or (found.shape, found.dtype) != (torch.Size(shape), dtype):
            found = self[name] = torch.empty(shape, dtype=dtype, device=like.device)
        return found


class Scan:
    """What a batch of n readouts leaves behind: the `keep` best tokens so far of both poles, and the power sums.

    Newcomers wait until the tokens seen have doubled since the last merge: till then the level they must pass is a
    little low, which costs fewer of them than merging every chunk would.

    Args:
        mean: (n,) about which the powers are summed.
        keep: tokens kept per pole.
        workspace: memory shared by the batches of a pass.

    Attributes:
        sums: (3, n), of the second to fourth powers of the centred readouts.
    """

    def __init__(self, mean: torch.Tensor, keep: int, workspace: Workspace) -> None:
        n, device = len(mean), mean.device
        self.mean, self.workspace = mean, workspace
        accumulator = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, n, dtype=accumulator, device=device)
        # The lower pole's values are negated: larger is better for both.
        self.ids = torch.zeros(2, n, keep, dtype=torch.int64, device=device)  # indices of shown tokens
        self.values = torch.full((2, n, keep), -math.inf, device=device)
        self.waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # (row of 2n, token, value)
        self.due = 0

    def add(self, z: torch.Tensor, start: int) -> None:
        """Take in a chunk of readouts, float32 or bfloat16 (C, n), from shown token `start` on. It is overwritten."""
        if z.dtype is not torch.float32:
            z = self.workspace.tensor("wide", z, torch.float32, *z.shape).copy_(z)
        self._select(z, start)
        power = self.workspace.tensor("power", z, torch.float32, *z.shape)
        torch.square(z.sub_(self.mean), out=power)
        self.sums[0] += power.sum(0)
        self.sums[1] += z.mul_(power).sum(0)
        self.sums[2] += power.square_().sum(0)

    def _select(self, z: torch.Tensor, start: int) -> None:
        n, keep = z.shape[1], self.ids.shape[2]
        whole = len(z) // BLOCK * BLOCK
        tiles = z[:whole].view(whole // BLOCK, BLOCK, n)
        extremes = torch.stack([tiles.amax(1), tiles.amin(1).neg_()])  # (2, C / BLOCK, n)
        level, passes = self.values[:, :, -1], torch.gt
        if start == 0 and extremes.shape[1] >= keep:  # at least `keep` tokens are as large as the keep-th block
            level, passes = extremes.topk(keep, dim=1).values[:, -1], torch.ge
        pole, block, row = passes(extremes, level[:, None]).nonzero(as_tuple=True)
        inside = tiles[block, :, row] * (1 - 2 * pole)[:, None]  # (m, BLOCK)
        pair, lane = passes(inside, level[pole, row][:, None]).nonzero(as_tuple=True)
        self.waiting.append(((pole * n + row)[pair], block[pair] * BLOCK + lane + start, inside[pair, lane]))
        if whole < len(z):  # the vocabulary's last, incomplete block
            rest = torch.stack([z[whole:], -z[whole:]])
            pole, last, row = passes(rest, level[:, None]).nonzero(as_tuple=True)
            self.waiting.append((pole * n + row, last + whole + start, rest[pole, last, row]))
        if start + len(z) >= self.due:
            self._merge()
            self.due = 2 * (start + len(z))

    def _merge(self) -> None:
        """Sort what waits into the best so far."""
        row, token, value = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = [(row[:0], token[:0], value[:0])]
        if not len(row):
            return
        n, keep = self.ids.shape[1:]
        # Ragged to rectangular: the i-th newcomer of a row goes into column i.
        order = row.argsort(stable=True)
        row, token, value = row[order], token[order], value[order]
        count = torch.bincount(row, minlength=2 * n)
        column = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        width = int(count.max())
        values = torch.full((2 * n, width), -math.inf, device=row.device)
        ids = torch.zeros(2 * n, width, dtype=torch.int64, device=row.device)
        values[row, column], ids[row, column] = value, token
        best = torch.cat([self.values, values.view(2, n, width)], 2).topk(keep, dim=2)
        self.ids = torch.cat([self.ids, ids.view(2, n, width)], 2).gather(2, best.indices)
        self.values = best.values

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The survivors of both poles, as ids (2, n, keep) and values (2, n, keep), largest first."""
        self._merge()
        return self.ids, self.values


def dots(matrix: torch.Tensor, ids: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """``matrix[ids] · directions`` in float64, for ids (n, m) and directions (n, H): (n, m) on the CPU."""
    n, m = ids.shape
    # float64 is missing on MPS; there the few exact sums are taken on the CPU.
    exact = torch.device("cpu") if matrix.device.type == "mps" else matrix.device
    out = torch.empty(n, m, dtype=torch.float64)
    step = max(1, SLICE[matrix.device.type] // (m * directions.shape[1]))
    for i in range(0, n, step):
        rows = matrix.index_select(0, ids[i : i + step].flatten()).to(exact).double()
        d = directions[i : i + step].to(exact).double()
        out[i : i + step] = torch.bmm(rows.view(len(d), m, -1), d[:, :, None]).squeeze(2)
    return out
