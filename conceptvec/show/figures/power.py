"""What `calibrate` found: how much Stage 3 finds of what is there, and of what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conceptvec.show.figures.drawing import note, style_for
from conceptvec.show.style import BLUE, GREEN, INK, ORANGE, PALE, RED, frame
from conceptvec.validation.rule import RULE

LOOKS = {"random": (BLUE, "-"), "firing": (ORANGE, "--"), "permuted": (RED, "-.")}


def calibration(document: Mapping[str, Any]) -> Figure:
    """Power against the worth of planted vectors, and p-values where nothing is there."""
    with matplotlib.rc_context(style_for(())):
        figure, (left, right) = frame(document, "Stage 3 tested on itself", 3.9, columns=2)
        _power(left, [row for row in document["planted"] if row["vectors"]])
        for name in LOOKS:
            _p_values(right, name, document[name])
        right.plot([0, 1], [0, 1], color=PALE, lw=0.8)
        right.set_xlabel("p (share of the tested false candidates at most p)")
        right.set_xlim(0, 1)
        right.legend(loc="upper left")
        return figure


def _power(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """The share of planted vectors that is validated, with its interval, by what they are worth."""
    rates = np.array([[row["rate"], *row["ci95"]] for row in rows]).reshape(-1, 3).T
    errors = np.maximum([rates[0] - rates[1], rates[2] - rates[0]], 0)
    worth = [row["effect"] for row in rows]
    axes.errorbar(worth, rates[0], errors, marker="o", capsize=3, color=GREEN)
    for row, rate in zip(rows, rates[0], strict=True):
        text = f"{row['validated']} of {row['vectors']}"
        note(axes, text, (row["effect"], rate), (6, 16 if rate < 0.1 else -11))
    axes.axhline(RULE.q, color=INK, ls=":", lw=0.8)
    axes.set_xlabel("worth of a planted vector (nats)")
    axes.set_ylabel("planted vectors validated (share)")
    axes.set_ylim(-0.05, 1.05)
    axes.margins(x=0.15)


def _p_values(axes: Axes, name: str, group: Mapping[str, Any]) -> None:
    """The distribution of p in a group where nothing is there: at most the diagonal."""
    p = np.sort([value for value in group["p_values"] if value is not None])
    share = np.append(np.arange(1, len(p) + 1), len(p)) / max(len(p), 1)
    color, line = LOOKS[name]
    label = f"{name}: {group['validated']} of {group['vectors']} validated"
    axes.step(np.append(p, 1), share, where="post", color=color, ls=line, label=label)
