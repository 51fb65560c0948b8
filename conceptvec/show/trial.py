"""A vector tried out: the text goes on clean, and with the vector damaged or amplified."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from conceptvec.errors import RequestError
from conceptvec.text import html_table, printable
from conceptvec.validation.damage import Damage, Damager, continuation

if TYPE_CHECKING:
    from conceptvec.model.network import Model
    from conceptvec.show.explorer import Browser

CONTINUED, LIKELIEST = 20, 5  # tokens
AMPLIFY = "amplify it"
KINDS = {
    "remove it": "zero",
    "a random vector in its place": "rotate",
    "its mean activation": "mean",
    "noise of twice its norm": "noise",
}
CHANGES = (*KINDS, AMPLIFY)


def changes(
    model: Model, entry: Mapping[str, Any], change: str, times: float, seed: int
) -> list[Damage]:
    """What a choice of `CHANGES` adds to the vector's layer; `times` is the factor of `AMPLIFY`."""
    layer, neuron = entry["layer"], entry["neuron"]
    if change == AMPLIFY:
        return [Damage(neuron, times - 1.0, 0.0, model.value_vectors(layer)[neuron].float())]
    vector = model.value_vectors(layer)[neuron].float()
    mean = entry["activation"]["mean"]
    return Damager(seed)(KINDS[change], vector, (layer, neuron), mean)[:1]


def controls(widgets: Any, model: Model, browser: Browser, seed: int) -> list[Any]:
    """Controls that continue a text, and the place where the continuations appear."""
    text = widgets.Text(description="text", layout=widgets.Layout(width="40em"))
    change = widgets.Dropdown(options=CHANGES, description="vector")
    times = widgets.FloatSlider(
        value=5.0, min=-10.0, max=20.0, step=0.5, description="times", disabled=True
    )
    button, shown = widgets.Button(description="Continue the text"), widgets.HTML()

    def propose(_: Any = None) -> None:
        text.value = exciting_text(browser.chosen)

    def toggle(_: Any) -> None:
        times.disabled = change.value != AMPLIFY

    def go(_: Any) -> None:
        entry = browser.chosen
        if entry is None:
            shown.value = "choose a vector"
            return
        try:
            damage = changes(model, entry, change.value, times.value, seed)
            title = f"{entry['id']}: {change.value}"
            rows = [
                continuation_row(model, text.value, entry["layer"], "clean", []),
                continuation_row(model, text.value, entry["layer"], title, damage),
            ]
            shown.value = html_table(rows, ["", "greedy continuation", "likeliest next tokens"])
        except (RequestError, RuntimeError) as error:
            shown.value = escape(str(error))

    propose()
    browser.choice.observe(propose, "value")
    change.observe(toggle, "value")
    button.on_click(go)
    return [widgets.HBox([text, change]), widgets.HBox([times, button]), shown]


def exciting_text(entry: Mapping[str, Any] | None) -> str:
    """The text that excites the vector most, up to and with the exciting token."""
    contexts = entry["activation"]["contexts"] if entry else []
    if not contexts:
        return ""
    before_the_end, _, _ = contexts[0][0].partition("«")
    return before_the_end.replace("»", "")


def continuation_row(
    model: Model, text: str, layer: int, title: str, damage: list[Damage]
) -> list[str]:
    """One row of the table: the title, the greedy continuation, the likeliest next tokens."""
    if not text.strip():
        raise RequestError("the text to continue is empty; type its beginning")
    words, chances = continuation(model, model.encode(text), {layer: damage}, CONTINUED)
    likeliest = [
        f"{model.tokenizer.decode([int(token)]).strip()} {float(chances[token]):.1%}"
        for token in chances.topk(LIKELIEST).indices
    ]
    return [title, printable(words), printable(", ".join(likeliest))]
