"""What `calibrate` found: how much Stage 3 finds of what is there, and of what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conceptvec.show.figures.drawing import note, style_for
from conceptvec.show.style import GREEN, INK, RED, frame
from conceptvec.validation.rule import RULE

FALSE_GROUPS = ("random", "null", "wrong_concept", "moved")


def calibration(document: Mapping[str, Any]) -> Figure:
    """Power against the worth of planted vectors, and what is validated where nothing is there."""
    with matplotlib.rc_context(style_for(())):
        title = "Stage 3 tested on itself"
        figure, (left, right) = frame(document, title, 3.9, columns=2)
        _power(left, [row for row in document["planted"] if row["planted"]])
        _false(right, document)
        return figure


def _power(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """The share of planted vectors that is validated, with its interval, by what they are worth."""
    worth = [row["effect"] for row in rows]
    rates = [row["rate"] for row in rows]
    _with_intervals(axes, worth, rates, [row["ci95"] for row in rows], GREEN)
    for row in rows:
        text = f"{row['validated']} of {row['planted']}"
        note(axes, text, (row["effect"], row["rate"]), (6, -12))
    axes.axvline(RULE.drop, color=INK, ls=":", lw=0.8)
    note(axes, "floor", (RULE.drop, 0.9), (3, 0))
    axes.set_xscale("log")
    axes.set_xticks(worth, [f"{x:g}" for x in worth])
    axes.minorticks_off()
    axes.set_xlabel("worth of a planted vector (nats)")
    axes.set_ylabel("validated (share)")
    axes.set_ylim(-0.08, 1.05)
    axes.margins(x=0.15)


def _false(axes: Axes, document: Mapping[str, Any]) -> None:
    """The share that is validated of what is no concept vector, by kind."""
    nulls = document["null_calibration"]
    groups = {"random": document["random"], "null": nulls}
    groups |= {name: nulls[name] for name in FALSE_GROUPS[2:]}
    for place, group in enumerate(groups.values()):
        text = "none to test"
        rate = 0.0
        if group["n"]:
            rate = group["false_validations"] / group["n"]
            _with_intervals(axes, [place], [rate], [group["ci95"]], RED)
            text = f"{group['false_validations']} of {group['n']}"
        note(axes, text, (place, rate), (0, 30), ha="center")
    axes.set_xticks(range(len(groups)), [name.replace("_", "\n") for name in groups])
    axes.set_xlabel("validated where nothing was planted")
    axes.margins(x=0.15)


def _with_intervals(
    axes: Axes,
    x: Sequence[float],
    rates: Sequence[float],
    intervals: Sequence[Sequence[float]],
    color: str,
) -> None:
    values, ends = np.array(rates), np.array(intervals).reshape(-1, 2).T
    errors = np.maximum([values - ends[0], ends[1] - values], 0)
    axes.errorbar(x, values, errors, marker="o", capsize=3, color=color, clip_on=False)
