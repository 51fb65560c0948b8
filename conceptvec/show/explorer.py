"""The explorer: browse the vectors of a run in a notebook, and try one out.

Needs ipywidgets (7.7 or later) and the results; no model. With a model the chosen vector is damaged
or amplified in a real forward pass while the text is continued greedily (`show.trial`).
`show.report` writes the static twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptvec.document import candidates, load_document
from conceptvec.errors import RequestError
from conceptvec.show.cell_card import card
from conceptvec.show.pole_browser import PoleBrowser
from conceptvec.show.run_lists import RunLists, run_lists
from conceptvec.text import printable

if TYPE_CHECKING:
    from conceptvec.model.network import Model

ALL = "all"
FILTERS = ("concept", "layer", "pole", "verdict")
UNTESTED = "not tested"  # instead of a verdict
Entry = Mapping[str, Any]


def matching(
    entries: Sequence[Entry],
    filters: Mapping[str, Any],
    scores: tuple[float, float],
    words: str,
) -> list[Entry]:
    """The entries that fit everything that is asked for.

    Args:
        entries: tested vectors and candidates that were not tested.
        filters: field → value; `ALL` is no filter.
        scores: the lowest and the highest.
        words: each must be part of a token of either pole.
    """
    wanted = printable(words).casefold().split()
    fitting: list[Entry] = []
    for entry in entries:
        is_chosen = all(value in (ALL, _value(entry, name)) for name, value in filters.items())
        if is_chosen and scores[0] <= entry["score"] <= scores[1] and _has(entry, wanted):
            fitting.append(entry)
    return fitting


def _value(entry: Entry, name: str) -> Any:
    """What an entry has in a filter's field."""
    return entry.get(name, UNTESTED) if name == "verdict" else entry[name]


def _has(entry: Entry, words: Sequence[str]) -> bool:
    """Whether every word is part of one of the tokens."""
    tokens = [token.casefold() for token, _ in entry["top_tokens"] + entry["opposite_tokens"]]
    return all(any(word in token for token in tokens) for word in words)


def explore(run: Mapping[str, Any] | str | Path, model: Model | None = None) -> Any:
    """A browser for the candidates of a run, tested or not, and for all of its poles.

    Args:
        run: results, a results file or a run folder; the poles are listed where it is a folder,
            or a file in one.
        model: the run's loaded model; with it the chosen vector can be damaged and amplified.

    Returns:
        an ipywidgets box that a notebook cell shows.

    Raises:
        RequestError: ipywidgets is missing, or the model is not the run's.
    """
    try:
        import ipywidgets as widgets
    except ImportError:
        raise RequestError(
            "the explorer needs ipywidgets: pip install ipywidgets, then run this cell again"
        ) from None
    results = load_document(run) if isinstance(run, str | Path) else run
    if model is not None and model.fingerprint != results["model"]["fingerprint"]:
        raise RequestError(
            f"the results are of {results['model']['id']} with other weights than the model "
            "given here; load the model with the run's configuration"
        )
    browser = Browser(widgets, candidates(results))
    parts = [browser.box, browser.card]
    if model is not None and browser.entries:
        from conceptvec.show.trial import controls

        parts += controls(widgets, model, browser, results["configuration"]["seed"])
    lists = run_lists(run, results) if isinstance(run, str | Path) else RunLists()
    if lists.poles is not None:
        parts.append(PoleBrowser(widgets, lists.poles, lists.scan).box)
    return widgets.VBox(parts)


class Browser:
    """Filters, a search field, the list of what fits, and the card of the chosen vector.

    Args:
        widgets: the module ipywidgets.
        entries: tested vectors and candidates that were not tested.

    Attributes:
        box: the controls and the list.
        card: the card.
        choice: the list; its value is the chosen vector's id.
    """

    def __init__(self, widgets: Any, entries: Sequence[Entry]) -> None:
        self.entries = {entry["id"]: entry for entry in entries}
        self.filters = {name: self._filter(widgets, name) for name in FILTERS}
        self.scores = widgets.FloatRangeSlider(
            value=(0.0, 1.0), min=0.0, max=1.0, step=0.05, description="score"
        )
        self.words = widgets.Text(placeholder="a word among the tokens", description="search")
        self.choice = widgets.Select(rows=10, layout=widgets.Layout(width="30em"))
        self.count, self.card = widgets.HTML(), widgets.HTML()
        controls = [*self.filters.values(), self.scores, self.words]
        for control in controls:
            control.observe(self._refresh, "value")
        self.choice.observe(self._show, "value")
        self._refresh()
        right = widgets.VBox([self.count, self.choice])
        self.box = widgets.HBox([widgets.VBox(controls), right])

    @property
    def chosen(self) -> Entry | None:
        """The entry that is chosen in the list."""
        return self.entries.get(self.choice.value)

    def _filter(self, widgets: Any, name: str) -> Any:
        """A choice among the values of one field."""
        values = list(dict.fromkeys(_value(entry, name) for entry in self.entries.values()))
        if name == "layer":
            values.sort()
        options = [(ALL, ALL)]
        options += [(printable(str(value)).replace("_", " "), value) for value in values]
        layout = widgets.Layout(width="15em")
        return widgets.Dropdown(options=options, description=name, layout=layout)

    def _refresh(self, _: Any = None) -> None:
        """List what fits now; what was chosen stays chosen where it still fits."""
        filters = {name: control.value for name, control in self.filters.items()}
        entries = list(self.entries.values())
        fitting = matching(entries, filters, self.scores.value, self.words.value)
        self.count.value = f"{len(fitting)} of {len(self.entries)} candidates"
        before, ids = self.choice.value, [entry["id"] for entry in fitting]
        self.choice.options = [(_label(entry), entry["id"]) for entry in fitting]
        if ids:
            self.choice.value = before if before in ids else ids[0]
        self._show()

    def _show(self, _: Any = None) -> None:
        self.card.value = card(self.chosen) if self.chosen else "nothing matches"


def _label(entry: Entry) -> str:
    verdict = _value(entry, "verdict").replace("_", " ")
    return f"{entry['id']}  {printable(entry['concept'])}  {verdict}"
