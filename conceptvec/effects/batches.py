"""What a batch of the pass leaves, and how the batches of a part add up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from conceptvec.effects import activity, sums
from conceptvec.effects.activity import Activity
from conceptvec.effects.rows import Targets
from conceptvec.effects.sums import Effects


@dataclass(frozen=True)
class Size:
    """How much a scan looks at.

    Attributes:
        layers: the numbers of the L layers, ascending.
        neurons: I, of a layer.
        moved: M, vectors under other neurons' firing.
    """

    layers: tuple[int, ...]
    neurons: int
    moved: int


@dataclass(frozen=True)
class Done:
    """A finished batch of R rows. It is added to the sums as a whole, or not at all."""

    targets: np.ndarray  # (n,), indices of the part's targets
    log_p: np.ndarray  # (n,)
    better: np.ndarray  # (n,)
    rows: np.ndarray  # (R,), indices of the part's targets
    zero: torch.Tensor  # (L, 2, R, I)
    gradient: torch.Tensor  # (L, R, I)
    firing: torch.Tensor  # (L, 2, R, I)
    moved: torch.Tensor  # (R, M)
    activity: Activity


class BatchRows:
    """Place for what the backward passes of a batch of R rows leave.

    Args:
        size: of the scan.
        n: R.
        device: of the model.
    """

    def __init__(self, size: Size, n: int, device: torch.device) -> None:
        n_layers = len(size.layers)
        self.zero = torch.zeros(n_layers, 2, n, size.neurons, device=device)
        self.gradient = torch.zeros(n_layers, n, size.neurons, device=device)
        self.moved = torch.zeros(n, size.moved, device=device)


class PartSums:
    """The sums of a part, filled batch by batch in main memory.

    Args:
        size: of the scan.
        targets: the part's.
    """

    def __init__(self, size: Size, targets: Targets) -> None:
        words = np.unique(targets.word)
        self.targets = targets
        self.sums = sums.empty(size.layers, words, size.neurons, size.moved)
        self.activity = activity.nothing(size.layers, size.neurons)
        self.better = np.zeros(len(targets), np.int32)
        self.log_p = np.zeros(len(targets), np.float32)
        self.chosen = np.zeros(len(targets), bool)

    def add(self, done: Done) -> None:
        """Take in a batch."""
        self.better[done.targets] = done.better
        self.log_p[done.targets] = done.log_p
        self.chosen[done.rows] = True
        self.activity = activity.add([self.activity, done.activity])
        zero, gradient = done.zero.cpu().numpy(), done.gradient.cpu().numpy()
        firing, moved = done.firing.cpu().numpy(), done.moved.cpu().numpy()
        for row, word in enumerate(self.sums.index(self.targets.word[done.rows])):
            self.sums.rows[word] += 1
            self.sums.zero[:, :, word] += zero[:, :, row]
            self.sums.gradient[:, word] += gradient[:, row]
            self.sums.firing[:, :, word] += firing[:, :, row]
            self.sums.moved[word] += moved[row]

    def effects(self) -> Effects:
        """The part's sums, without words none of whose occurrences became a row."""
        place = np.stack([self.targets.passage, self.targets.position], 1)
        return self.sums.seen(place.astype(np.int32), self.better, self.log_p, self.chosen)
