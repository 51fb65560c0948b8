"""One tested vector on a card: its tokens, its damage, the contexts that excite it most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conceptvec.show.figures.drawing import NOTE_SIZE, drawing, name_rows, was_tested
from conceptvec.show.style import BLUE, GREEN, INK, MUTED, ORANGE, RED, WIDTH, Plot, drawable
from conceptvec.show.tables import signs_line
from conceptvec.text import number

TOKENS, CONTEXTS = 14, 4  # shown on a card
PANEL = {"loc": "left", "fontsize": 10}


@drawing(was_tested, "No candidate was tested, so there is nothing to draw.", shows_tokens=True)
def vector_card(results: Mapping[str, Any], vector: str | None = None) -> Figure:
    """One tested vector: its tokens on both poles, its damage, the contexts that excite it most.

    Args:
        results: the results.
        vector: its id, such as ``L12_N0345+``; the best one where none is given.
    """
    entry = _entry(results["validation_results"], vector)
    figure = Plot(figsize=(WIDTH, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(3.3, 1.1), width_ratios=(1, 1, 0.9))
    figure.suptitle(_title(entry), x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    turned = "" if entry["pole"] == "+" else " by negative a"
    _tokens(figure.add_subplot(grid[0, 0]), entry["top_tokens"], "promoted" + turned, BLUE)
    _tokens(figure.add_subplot(grid[0, 1]), entry["opposite_tokens"], "suppressed", ORANGE)
    _damage(figure.add_subplot(grid[0, 2]), entry["damage"])
    _facts(figure.add_subplot(grid[1, :]), entry)
    return figure


def _entry(entries: Sequence[Mapping[str, Any]], vector: str | None) -> Mapping[str, Any]:
    entry = next((e for e in entries if vector in (None, e["id"])), None)
    if entry is None:
        raise ValueError(
            f"{vector!r} is not among the {len(entries)} tested vectors; "
            "see results['validation_results']"
        )
    return entry


def _title(entry: Mapping[str, Any]) -> str:
    verdict = entry["verdict"].replace("_", " ")
    score = f"score {number(entry['score'], 2)}"
    return "   ".join([entry["id"], drawable(entry["concept"]), verdict, score])


def _tokens(axes: Axes, tokens: Sequence[tuple[str, float]], title: str, color: str) -> None:
    """The strongest tokens of one pole as bars."""
    strongest = tokens[:TOKENS]
    axes.set_title(title, **PANEL)
    axes.barh(range(len(strongest)), [abs(v) for _, v in strongest], color=color, height=0.7)
    name_rows(axes, [token for token, _ in strongest], width=16)
    axes.set_xlabel("|readout|")


def _damage(axes: Axes, damage: Mapping[str, Mapping[str, float | None]]) -> None:
    """Concept and unrelated drop under every kind of damage, side by side."""
    axes.set_title("damage", **PANEL)
    for shift, key, color in ((-0.2, "concept_drop", GREEN), (0.2, "unrelated_drop", RED)):
        bars = [(place + shift, drops[key]) for place, drops in enumerate(damage.values())]
        measured = [(place, drop) for place, drop in bars if drop is not None]
        axes.bar(
            [place for place, _ in measured],
            [drop for _, drop in measured],
            width=0.38,
            color=color,
            label=key.split("_")[0],
        )
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend
    axes.set_xticks(range(len(damage)), list(damage))
    axes.set_ylabel("drop (nats)")
    axes.legend(fontsize=8)


def _facts(axes: Axes, entry: Mapping[str, Any]) -> None:
    """Statistics and the strongest contexts as text."""
    activation = entry["activation"]
    low, high = (number(limit, 2) for limit in entry["ci95"])
    lines = [
        f"selectivity {number(entry['selectivity'])} [{low}, {high}] nats, "
        f"q {number(entry['q_value'])}, n = {entry['n_concept_positions']} own and "
        f"{entry['n_unrelated_positions']} matched positions",
        signs_line(entry),
        f"fires at {activation['firing_rate']:.1%} of the text, "
        f"largest |a| {activation['max_abs']:.3g}; strongest activations a:",
    ]
    for text, value in activation["contexts"][:CONTEXTS]:
        lines.append(f"{value:+.2f}  {drawable(text, 88)}")
    axes.set_axis_off()
    axes.text(
        0,
        1,
        "\n".join(filter(None, lines)),
        va="top",
        fontsize=NOTE_SIZE,
        color=MUTED,
        linespacing=1.5,
    )
