"""All scored poles of a run in a notebook: a search field, what fits, and the card of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from conceptvec.effects.everywhere import Everywhere
from conceptvec.scoring.poles import PoleTable, ScoredPole
from conceptvec.show.cell_card import pole_card
from conceptvec.text import number, plain, printable, words_of

SHOWN = 200  # poles listed at once; a list of all would take a notebook seconds
LABEL_WORDS = 6


def fitting(poles: PoleTable, words: Sequence[str]) -> np.ndarray:
    """The rows of the poles that hold every word as a part of one of theirs, best score first."""
    texts = [printable(text).casefold() for text in poles.texts]
    fits = np.ones(len(poles), bool)
    for word in words:
        # One place more, for the −1 of a list that has no more words.
        has_word = np.array([word in text for text in texts] + [False])
        fits &= has_word[poles.words].any(1)
    order = np.argsort(-poles.score, kind="stable")
    return order[fits[order]]


class PoleBrowser:
    """A search field, the list of poles that fit, and the chosen one's card.

    Args:
        widgets: the module ipywidgets.
        poles: every scored pole.
        scan: effects of every pole, where they were measured.

    Attributes:
        box: all of it.
    """

    def __init__(self, widgets: Any, poles: PoleTable, scan: Everywhere | None) -> None:
        self.poles, self.scan = poles, scan
        self.words = widgets.Text(placeholder="a word of the list", description="all poles")
        self.choice = widgets.Select(rows=10, layout=widgets.Layout(width="45em"))
        self.count, self.card = widgets.HTML(), widgets.HTML()
        self.words.observe(self._refresh, "value")
        self.choice.observe(self._show, "value")
        self._refresh()
        self.box = widgets.VBox([self.words, self.count, self.choice, self.card])

    def _refresh(self, _: Any = None) -> None:
        """List the first poles that fit now."""
        rows = fitting(self.poles, printable(self.words.value).casefold().split())
        first = rows[:SHOWN].tolist()
        shown = f", the first {SHOWN} are listed" if len(rows) > SHOWN else ""
        self.count.value = f"{len(rows):,} of {len(self.poles):,} poles{shown}"
        self.choice.options = [(_label(self.poles[row]), row) for row in first]
        self.choice.value = first[0] if first else None
        self._show()

    def _show(self, _: Any = None) -> None:
        row = self.choice.value
        self.card.value = "nothing matches" if row is None else self._card(row)

    def _card(self, row: int) -> str:
        pole = self.poles[row]
        score = f"score {number(pole.score, 2)} for {pole.nearest}" if pole.nearest else "no score"
        title = f"{pole.pole.id} · {_answer(pole)} · {score}"
        return pole_card(title, pole.words, self._others(row), self._effects(row))

    def _others(self, row: int) -> Sequence[str]:
        """The words of the same neuron's other pole, which stands beside this one."""
        pole = self.poles[row].pole
        for beside in (row - 1, row + 1):
            if 0 <= beside < len(self.poles):
                other = self.poles[beside]
                if (other.pole.layer, other.pole.neuron) == (pole.layer, pole.neuron):
                    return other.words
        return ()

    def _effects(self, row: int) -> dict[str, float | None] | None:
        """Concept → nats; None where no scan holds the pole."""
        pole, scan = self.poles[row].pole, self.scan
        if scan is None or pole.layer not in scan.layers:
            return None
        at = scan.layers.index(pole.layer), pole.neuron, int(pole.sign == "-")
        known = scan.about["known_words"]  # of none, nothing could be measured
        return {
            name: plain(scan.mean[(c, *at)]) if known[name] else None
            for c, name in enumerate(scan.concepts)
        }


def _answer(pole: ScoredPole) -> str:
    return pole.concept or pole.label


def _label(pole: ScoredPole) -> str:
    words = words_of(pole.words[:LABEL_WORDS])
    return f"{pole.pole.id}  {printable(_answer(pole))}  {number(pole.score, 2)}  {words}"
