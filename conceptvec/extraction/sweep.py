"""One pass over readouts: the best tokens of both poles, the power sums, and exact dot products.

Written in PyTorch for every device. `fast` has the same for processors, and is held against this by
the tests.
"""

from __future__ import annotations

import math

import torch

BLOCK = 16  # tokens per block extreme
SLICE = {"cpu": 2**20, "mps": 2**24, "cuda": 2**26}  # elements of rows in float64 at a time


class Workspace(dict[str, torch.Tensor]):
    """Memory that is used again from chunk to chunk: fresh pages cost more than the arithmetic."""

    def tensor(
        self, name: str, like: torch.Tensor, dtype: torch.dtype, *shape: int
    ) -> torch.Tensor:
        """Uninitialised memory of a shape, on the device of `like`.

        What was there under the same name is lost.
        """
        memory = self.get(name)
        if memory is None or (memory.shape, memory.dtype) != (torch.Size(shape), dtype):
            memory = self[name] = torch.empty(shape, dtype=dtype, device=like.device)
        return memory


class Scan:
    """What a batch of n readouts leaves behind: the best tokens of both poles, and power sums.

    A chunk's `keep` best tokens lie in its `keep` best blocks. No shape depends on the data, so
    that a GPU never waits for the CPU, and MPS, which compiles and keeps a graph for every shape,
    compiles few.

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
        # Indices of shown tokens, and their values; the lower pole's are negated, so that larger
        # is better for both.
        self.ids = torch.zeros(2, n, keep, dtype=torch.int64, device=device)
        self.values = torch.full((2, n, keep), -math.inf, device=device)

    def add(self, z: torch.Tensor, start: int) -> None:
        """Take in a chunk of readouts, float32 or bfloat16 (C, n), from shown token `start` on.

        It is overwritten.
        """
        if z.dtype is not torch.float32:
            z = self.workspace.tensor("wide", z, torch.float32, *z.shape).copy_(z)
        self._select(z, start)
        power = self.workspace.tensor("power", z, torch.float32, *z.shape)
        torch.square(z.sub_(self.mean), out=power)
        self.sums[0] += power.sum(0)
        self.sums[1] += z.mul_(power).sum(0)
        self.sums[2] += power.square_().sum(0)

    def _select(self, z: torch.Tensor, start: int) -> None:
        """Merge a chunk's best tokens into the best so far."""
        n, keep = z.shape[1], self.ids.shape[2]
        # The best blocks by their extremes, (2, n, C / BLOCK).
        whole = len(z) // BLOCK * BLOCK
        tiles = z[:whole].view(whole // BLOCK, BLOCK, n)
        extremes = torch.stack([tiles.amax(1), tiles.amin(1).neg_()])
        extremes = extremes.transpose(1, 2).contiguous()
        block = extremes.topk(min(keep, extremes.shape[2]), dim=2, sorted=False).indices
        # Their tokens, and those of the vocabulary's last, incomplete block.
        inside = torch.arange(BLOCK, device=z.device)
        token = (block[..., None] * BLOCK + inside).flatten(2)
        rest = torch.arange(whole, len(z), device=z.device)
        token = torch.cat([token, rest.expand(2, n, -1)], 2)
        # The best of these and of those that were kept.
        turned = z.T.contiguous()
        chunk = torch.stack([turned.gather(1, token[0]), -turned.gather(1, token[1])])
        best = torch.cat([self.values, chunk], 2).topk(keep, dim=2)
        ids = torch.cat([self.ids, token + start], 2)
        self.values, self.ids = best.values, ids.gather(2, best.indices)

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The survivors of both poles, ids (2, n, keep) and values (2, n, keep), largest first."""
        return self.ids, self.values


def exact_device(device: torch.device) -> torch.device:
    """Where the few exact sums are taken: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def dots(matrix: torch.Tensor, ids: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """``matrix[ids] · directions`` in float64 on the CPU.

    For ids (n, m) and directions (n, H): (n, m).
    """
    n, m = ids.shape
    exact = exact_device(matrix.device)
    out = torch.empty(n, m, dtype=torch.float64)
    step = max(1, SLICE[matrix.device.type] // (m * directions.shape[1]))
    for start in range(0, n, step):
        part = slice(start, start + step)
        rows = matrix.index_select(0, ids[part].flatten()).to(exact).double()
        d = directions[part].to(exact).double()
        out[part] = torch.bmm(rows.view(len(d), m, -1), d[:, :, None]).squeeze(2)
    return out
