"""What moved vectors write, in the pass: gradients along the sources times the receivers' firing."""

from __future__ import annotations

import numpy as np
import torch

from conceptvec.effects.moved import Moved

PRODUCTS = 2**24  # rows × receivers × sources that are multiplied at a time


class MovedOfLayer:
    """The moved vectors of one layer, as tensors."""

    def __init__(self, moved: Moved, layer: int, device: torch.device) -> None:
        columns = np.flatnonzero(moved.layer == layer)
        self.columns = torch.from_numpy(columns).to(device)
        # Many pairs share a receiver or a source: each is taken once.
        poles = 2 * moved.receiver[columns] + (moved.receiver_sign[columns] < 0)
        receivers, at_receiver = np.unique(poles, return_inverse=True)
        sources, at_source = np.unique(moved.source[columns], return_inverse=True)
        self.receivers = torch.from_numpy(receivers // 2).to(device)
        self.receiver_signs = torch.from_numpy(1.0 - 2.0 * (receivers % 2)).float().to(device)
        self.sources = torch.from_numpy(sources).to(device)
        self.at = torch.from_numpy(at_receiver * len(sources) + at_source).to(device)
        self.source_sign = torch.from_numpy(moved.source_sign[columns]).float().to(device)
        self.rows_at_once = max(1, PRODUCTS // max(len(receivers) * len(sources), 1))

    def effect(self, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """The receivers' positive activations (R, T, I) times the gradient along the sources: (R, m)."""
        strength = (a[..., self.receivers] * self.receiver_signs).clamp(min=0)
        by_receiver = strength.transpose(1, 2).contiguous()  # (R, r, T)
        along = g[..., self.sources]  # (R, T, s)
        pairs = zip(
            by_receiver.split(self.rows_at_once), along.split(self.rows_at_once), strict=True
        )
        effects = [(left @ right).flatten(1)[:, self.at] for left, right in pairs]
        return torch.cat(effects) * self.source_sign
