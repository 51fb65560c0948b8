"""The explorer: browse the tested vectors of a run in a notebook, and try one out where the model is loaded.

Needs ipywidgets (7.7 or later) and the results; no model. With a model the chosen vector is damaged or amplified in a
real forward pass (`damage.damaging`) while the text is continued greedily. `report` writes the static twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptvec.document import load_document
from conceptvec.errors import RequestError
from conceptvec.text import html_table, number, printable

if TYPE_CHECKING:
    from conceptvec.model.network import Model

ALL = "all"
CONTINUED = 20  # tokens
CHANGES = ("remove it", "noise of twice its norm", "its mean activation", "amplify it")
_KINDS = {"remove it": "zero", "noise of twice its norm": "noise", "its mean activation": "mean"}


def matching(
    entries: Sequence[Mapping[str, Any]],
    filters: Mapping[str, Any],
    scores: tuple[float, float],
    words: str,
) -> list[Mapping[str, Any]]:
    """The entries whose fields equal the filters (`all` is none), within the scores, with every word in a token."""
    wanted = printable(words).casefold().split()
    found = []
    for e in entries:
        tokens = [t.casefold() for t, _ in [*e["top_tokens"], *e.get("opposite_tokens", ())]]
        fits = all(value in (ALL, e[name]) for name, value in filters.items())
        if (
            fits
            and scores[0] <= e["score"] <= scores[1]
            and all(any(w in t for t in tokens) for w in wanted)
        ):
            found.append(e)
    return found


def card(e: Mapping[str, Any]) -> str:
    """One vector as escaped HTML: verdict, both poles' tokens, damage, contexts, continuations."""
    text = lambda value: escape(printable(str(value)))
    low, high = (number(x) for x in e["ci95"])
    failed = f" ({text('; '.join(e['failed']))})" if e["failed"] else ""
    lines = [
        f"<b>{e['id']}</b> · {text(e['concept'])} · <b>{e['verdict'].replace('_', ' ')}</b>{failed}",
        f"score {number(e['score'], 2)}, selectivity {number(e['selectivity'])} [{low}, {high}] nats, "
        f"q {number(e['q_value'])}, n = {e['n_concept_prompts']} concept, {e['n_unrelated_prompts']} unrelated prompts",
    ]
    for name, tokens in (
        ("promoted", e["top_tokens"]),
        ("suppressed", e.get("opposite_tokens", [])),
    ):
        if tokens:
            lines.append(
                f"<b>{name}</b> "
                + " · ".join(f"<bdi>{text(t.strip())}</bdi>" for t, _ in tokens[:30])
            )
    keys = ("concept_drop", "unrelated_drop", "selectivity")
    damage = html_table(
        [[kind, *(number(d[k]) for k in keys)] for kind, d in e["damage"].items()],
        ["damage", *(k.replace("_", " ") for k in keys)],
    )
    a = e["activation"]
    after = [f"fires on {a['firing_rate']:.1%} of the corpus; strongest activations"]
    after += [f"{value:+.2f} {text(context)}" for context, value in a["contexts"]]
    for c in e.get("continuations") or []:
        after.append(" · ".join(f"{text(k)}: {text(v)}" for k, v in c.items()))
    return f"<p>{'<br>'.join(lines)}</p>{damage}<p>{'<br>'.join(after)}</p>"


def changes(model: Model, e: Mapping[str, Any], change: str, times: float, seed: int) -> list[Any]:
    """What a choice of `CHANGES` adds to the vector's layer; `times` is the factor of `amplify it`."""
    from conceptvec.validation.damage import Damage, damages

    layer, neuron = e["layer"], e["neuron"]
    if change in _KINDS:
        return damages(
            model, layer, neuron, _KINDS[change], e["activation"]["mean"], 1, 2.0, None, seed
        )
    return [Damage(neuron, times - 1.0, 0.0, model.value_vectors(layer)[neuron].float())]


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
        import ipywidgets as w
    except ImportError:
        raise RequestError(
            "the explorer needs ipywidgets: pip install ipywidgets, then run this cell again"
        ) from None
    results = load_document(run) if isinstance(run, str | Path) else run
    if model is not None and model.fingerprint != results["model"]["fingerprint"]:
        raise RequestError(
            f"the results are of {results['model']['id']} with other weights than the model given here"
        )
    entries = {e["id"]: e for e in results["validation_results"]}
    layout = w.Layout(width="15em")
    filters = {}
    for name in ("concept", "layer", "pole", "verdict"):
        values = list(dict.fromkeys(e[name] for e in entries.values()))
        values = sorted(values) if name == "layer" else values
        options = [(ALL, ALL), *((printable(str(v)).replace("_", " "), v) for v in values)]
        filters[name] = w.Dropdown(options=options, description=name, layout=layout)
    scores = w.FloatRangeSlider(value=(0.0, 1.0), min=0.0, max=1.0, step=0.05, description="score")
    words = w.Text(placeholder="a word among the tokens", description="search")
    listed = w.Select(rows=10, layout=w.Layout(width="30em"))
    count, shown = w.HTML(), w.HTML()

    def refresh(_: Any = None) -> None:
        found = matching(
            list(entries.values()),
            {k: f.value for k, f in filters.items()},
            scores.value,
            words.value,
        )
        count.value = f"{len(found)} of {len(entries)} tested vectors"
        before = listed.value
        labels = [
            f"{e['id']}  {printable(e['concept'])}  {e['verdict'].replace('_', ' ')}" for e in found
        ]
        listed.options = list(zip(labels, [e["id"] for e in found], strict=True))
        if found:
            ids = [e["id"] for e in found]
            listed.value = before if before in ids else ids[0]
        choose()

    def choose(_: Any = None) -> None:
        shown.value = card(entries[listed.value]) if listed.value in entries else "nothing matches"

    for control in (*filters.values(), scores, words):
        control.observe(refresh, "value")
    listed.observe(choose, "value")
    refresh()
    browser = w.HBox([w.VBox([*filters.values(), scores, words]), w.VBox([count, listed])])
    parts = [browser, shown]
    if model is not None and entries:
        parts += _trial(w, model, entries, listed, results["configuration"]["seed"])
    return w.VBox(parts)


def _trial(w: Any, model: Model, entries: Mapping[str, Any], listed: Any, seed: int) -> list[Any]:
    """Controls that continue a text clean and with the chosen vector damaged or amplified."""
    from conceptvec.validation.damage import continuation

    text = w.Text(description="text", layout=w.Layout(width="40em"))
    change = w.Dropdown(options=CHANGES, description="vector")
    times = w.FloatSlider(
        value=5.0, min=-10.0, max=20.0, step=0.5, description="times", disabled=True
    )
    button, out = w.Button(description="Continue the text"), w.HTML()

    def propose(
        _: Any = None,
    ) -> None:  # the text that excites the vector most, up to the exciting token
        contexts = (
            entries[listed.value]["activation"]["contexts"] if listed.value in entries else []
        )
        text.value = contexts[0][0].partition("«")[0].replace("»", "") if contexts else ""

    def toggle(_: Any) -> None:
        times.disabled = change.value in _KINDS

    def go(_: Any) -> None:
        if listed.value not in entries:
            out.value = "choose a vector"
            return
        e = entries[listed.value]
        rows = []
        try:
            added = changes(model, e, change.value, times.value, seed)
            for name, some in (("clean", []), (f"{e['id']}: {change.value}", added)):
                new, chances = continuation(model, text.value, {e["layer"]: some}, CONTINUED)
                likely = [
                    (model.tokenizer.decode([int(i)]), float(chances[i]))
                    for i in chances.topk(5).indices
                ]
                first = ", ".join(f"{t.strip()} {p:.1%}" for t, p in likely)
                rows.append([name, printable(new), printable(first)])
            out.value = html_table(rows, ["", "greedy continuation", "likeliest next tokens"])
        except (RequestError, RuntimeError) as error:
            out.value = escape(str(error))

    propose()
    listed.observe(propose, "value")
    change.observe(toggle, "value")
    button.on_click(go)
    return [w.HBox([text, change]), w.HBox([times, button]), out]
