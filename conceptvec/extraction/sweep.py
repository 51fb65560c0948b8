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

    def tensor(
        self, name: str, like: torch.Tensor, dtype: torch.dtype, *shape: int
    ) -> torch.Tensor:
        """Uninitialised memory of a shape, on the device of `like`; what was there under the same name is lost."""
        found = self.get(name)
        if found is None or (found.shape, found.dtype) != (torch.Size(shape), dtype):
            found = self[name] = torch.empty(shape, dtype=dtype, device=like.device)
        return found


class Scan:
    """What a batch of n readouts leaves behind: the `keep` best tokens so far of both poles, and the power sums.

    A chunk's `keep` best tokens lie in its `keep` best blocks. No shape depends on the data, so that a GPU never waits
    for the CPU, and MPS, which compiles and keeps a graph for every shape, compiles few.

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
        self.ids = torch.zeros(
            2, n, keep, dtype=torch.int64, device=device
        )  # indices of shown tokens
        self.values = torch.full((2, n, keep), -math.inf, device=device)

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
        extremes = (
            torch.stack([tiles.amax(1), tiles.amin(1).neg_()]).transpose(1, 2).contiguous()
        )  # (2, n, C / BLOCK)
        block = extremes.topk(min(keep, extremes.shape[2]), dim=2, sorted=False).indices
        token = (block[..., None] * BLOCK + torch.arange(BLOCK, device=z.device)).flatten(2)
        rest = torch.arange(
            whole, len(z), device=z.device
        )  # the vocabulary's last, incomplete block
        token = torch.cat([token, rest.expand(2, n, -1)], 2)
        turned = z.T.contiguous()
        inside = torch.stack([turned.gather(1, token[0]), -turned.gather(1, token[1])])
        best = torch.cat([self.values, inside], 2).topk(keep, dim=2)
        self.values, self.ids = (
            best.values,
            torch.cat([self.ids, token + start], 2).gather(2, best.indices),
        )

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The survivors of both poles, as ids (2, n, keep) and values (2, n, keep), largest first."""
        return self.ids, self.values


def exact_device(device: torch.device) -> torch.device:
    """Where the few exact sums are taken: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def dots(matrix: torch.Tensor, ids: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """``matrix[ids] · directions`` in float64, for ids (n, m) and directions (n, H): (n, m) on the CPU."""
    n, m = ids.shape
    exact = exact_device(matrix.device)
    out = torch.empty(n, m, dtype=torch.float64)
    step = max(1, SLICE[matrix.device.type] // (m * directions.shape[1]))
    for i in range(0, n, step):
        rows = matrix.index_select(0, ids[i : i + step].flatten()).to(exact).double()
        d = directions[i : i + step].to(exact).double()
        out[i : i + step] = torch.bmm(rows.view(len(d), m, -1), d[:, :, None]).squeeze(2)
    return out
