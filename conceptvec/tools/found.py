"""The answer of `find`: a document that shows itself as a table."""

from __future__ import annotations

from html import escape
from typing import Any

from conceptvec.text import html_table, notebook_html, number, printable, table, words_of

TOKENS = 8  # shown of a pole
HEADERS = ("vector", "standing", "strength", "best form and its rank", "tokens")
LEGEND = (
    "Strength: the words' mean readout in standard deviations of the neuron's own; "
    "standing: that, against its layer's neurons."
)


class Found(dict[str, Any]):
    """The words' forms, the neurons examined, and the best poles; plain JSON."""

    def __repr__(self) -> str:
        return f"{self._title()}\n\n{table(self._rows(), HEADERS)}\n\n{LEGEND}"

    def _repr_html_(self) -> str:
        rows = html_table(self._rows(), HEADERS)
        return notebook_html(f"<p>{escape(self._title())}</p>{rows}<p>{escape(LEGEND)}</p>")

    def _title(self) -> str:
        forms = (f"{word}: {printable(' | '.join(f))}" for word, f in self["words"].items())
        return f"{self['neurons_examined']:,} neurons of {self['model']}, forms {'; '.join(forms)}"

    def _rows(self) -> list[list[str]]:
        rows = []
        for pole in self["results"]:
            best_forms = (
                f"{printable(form['token'].strip())} #{form['rank']}"
                for form in pole["words"].values()
            )
            rows.append(
                [
                    pole["id"],
                    number(pole["standing"], 1),
                    number(pole["strength"], 1),
                    ", ".join(best_forms),
                    words_of(token for token, _ in pole["top_tokens"][:TOKENS]),
                ]
            )
        return rows
