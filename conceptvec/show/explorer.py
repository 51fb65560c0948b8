"""The explorer: browse the tested vectors of a run in a notebook, and try one out.

Needs ipywidgets (7.7 or later) and the results; no model. With a model the chosen vector is damaged
or amplified in a real forward pass while the text is continued greedily (`show.trial`).
`show.report` writes the static twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptvec.document import load_document
from conceptvec.errors import RequestError
from conceptvec.text import html_table, notebook_html, number, printable

if TYPE_CHECKING:
    from conceptvec.model.network import Model

ALL = "all"
FILTERS = ("concept", "layer", "pole", "verdict")
DROPS = ("concept_drop", "unrelated_drop", "selectivity")
SHOWN_TOKENS = 30
Entry = Mapping[str, Any]


def matching(
    entries: Sequence[Entry],
    filters: Mapping[str, Any],
    scores: tuple[float, float],
    words: str,
) -> list[Entry]:
    """The entries that fit everything that is asked for.

    Args:
        entries: the tested vectors.
        filters: field → value; `ALL` is no filter.
        scores: the lowest and the highest.
        words: each must be part of a token of either pole.
    """
    wanted = printable(words).casefold().split()
    fitting: list[Entry] = []
    for entry in entries:
        is_chosen = all(value in (ALL, entry[name]) for name, value in filters.items())
        if is_chosen and scores[0] <= entry["score"] <= scores[1] and _has(entry, wanted):
            fitting.append(entry)
    return fitting


def _has(entry: Entry, words: Sequence[str]) -> bool:
    """Whether every word is part of one of the tokens."""
    tokens = [token.casefold() for token, _ in entry["top_tokens"] + entry["opposite_tokens"]]
    return all(any(word in token for token in tokens) for word in words)


def card(entry: Entry) -> str:
    """One vector as escaped HTML: verdict, both poles' tokens, damage, contexts, continuations."""
    damage = [[kind, *(number(drops[k]) for k in DROPS)] for kind, drops in entry["damage"].items()]
    headers = ["damage", *(name.replace("_", " ") for name in DROPS)]
    above = [
        *_verdict_lines(entry),
        _tokens_line("promoted", entry["top_tokens"]),
        _tokens_line("suppressed", entry["opposite_tokens"]),
    ]
    below = _activation_lines(entry["activation"])
    for continuation in entry.get("continuations", ()):
        below.append(" · ".join(f"{_safe(k)}: {_safe(text)}" for k, text in continuation.items()))
    table = html_table(damage, headers)
    return notebook_html(f"<p>{'<br>'.join(above)}</p>{table}<p>{'<br>'.join(below)}</p>")


def _safe(value: Any) -> str:
    return escape(printable(str(value)))


def _verdict_lines(entry: Entry) -> list[str]:
    low, high = (number(limit) for limit in entry["ci95"])
    failed = f" ({_safe('; '.join(entry['failed']))})" if entry["failed"] else ""
    verdict = entry["verdict"].replace("_", " ")
    return [
        f"<b>{entry['id']}</b> · {_safe(entry['concept'])} · <b>{verdict}</b>{failed}",
        f"score {number(entry['score'], 2)}, "
        f"selectivity {number(entry['selectivity'])} [{low}, {high}] nats, "
        f"q {number(entry['q_value'])}, n = {entry['n_concept_positions']} own, "
        f"{entry['n_unrelated_positions']} matched positions",
    ]


def _tokens_line(title: str, tokens: Sequence[tuple[str, float]]) -> str:
    shown = (f"<bdi>{_safe(token.strip())}</bdi>" for token, _ in tokens[:SHOWN_TOKENS])
    return f"<b>{title}</b> {' · '.join(shown)}"


def _activation_lines(activation: Mapping[str, Any]) -> list[str]:
    rate = f"{activation['firing_rate']:.1%}"
    strongest = [f"{value:+.2f} {_safe(context)}" for context, value in activation["contexts"]]
    return [f"fires at {rate} of the text; strongest activations", *strongest]


def explore(run: Mapping[str, Any] | str | Path, model: Model | None = None) -> Any:
    """A browser for the tested vectors of a run.

    Args:
        run: results, a results file or a run folder.
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
    browser = Browser(widgets, results["validation_results"])
    parts = [browser.box, browser.card]
    if model is not None and browser.entries:
        from conceptvec.show.trial import controls

        parts += controls(widgets, model, browser, results["configuration"]["seed"])
    return widgets.VBox(parts)


class Browser:
    """Filters, a search field, the list of what fits, and the card of the chosen vector.

    Args:
        widgets: the module ipywidgets.
        entries: the tested vectors.

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
        values = list(dict.fromkeys(entry[name] for entry in self.entries.values()))
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
        self.count.value = f"{len(fitting)} of {len(self.entries)} tested vectors"
        before, ids = self.choice.value, [entry["id"] for entry in fitting]
        self.choice.options = [(_label(entry), entry["id"]) for entry in fitting]
        if ids:
            self.choice.value = before if before in ids else ids[0]
        self._show()

    def _show(self, _: Any = None) -> None:
        self.card.value = card(self.chosen) if self.chosen else "nothing matches"


def _label(entry: Entry) -> str:
    verdict = entry["verdict"].replace("_", " ")
    return f"{entry['id']}  {printable(entry['concept'])}  {verdict}"
