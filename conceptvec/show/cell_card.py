"""One vector as escaped HTML for a notebook's cell, and one pole that is no candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from conceptvec.show.tables import signs_line
from conceptvec.text import html_table, notebook_html, number, printable

DROPS = ("concept_drop", "unrelated_drop", "selectivity")
SHOWN_TOKENS, SHOWN_WORDS, SHOWN_EXAMPLES = 30, 10, 5
SHOWN_TEXT = 120  # characters of an example, before its word
FULL_BAR = 16  # em
Entry = Mapping[str, Any]


def card(entry: Entry) -> str:
    """One vector: both poles' tokens, effects, and what its test gave where it was tested."""
    blocks = [_lines([*_verdict_lines(entry), *_token_lines(entry)])]
    if effects := entry.get("scan", {}).get("by_concept"):
        blocks.append(effects_chart(effects))
    if "damage" in entry:
        blocks += _tested_blocks(entry)
    return notebook_html("".join(blocks))


def pole_card(
    title: str,
    words: Sequence[str],
    others: Sequence[str],
    effects: Mapping[str, float | None] | None,
) -> str:
    """One pole by its words.

    Args:
        title: what it is.
        words: that it promotes.
        others: words of the neuron's other pole.
        effects: concept → nats, where a scan measured them.
    """
    lines = [f"<b>{safe(title)}</b>", _tokens_line("promoted", words)]
    if others:
        lines.append(_tokens_line("the other pole", others))
    return notebook_html(_lines(lines) + (effects_chart(effects) if effects else ""))


def effects_chart(effects: Mapping[str, float | None]) -> str:
    """Effects on every concept as bars, in nats."""
    largest = max((abs(effect) for effect in effects.values() if effect is not None), default=0.0)
    rows: list[str] = []
    for concept, effect in effects.items():
        width = FULL_BAR * abs(effect or 0.0) / (largest or 1.0)
        color = "#0072b2" if (effect or 0.0) >= 0 else "#b86e00"
        bar = f"display:inline-block;height:.6em;width:{width:.2f}em;background:{color}"
        cells = f'<td style="text-align:left">{safe(concept)}</td><td>{number(effect)}</td>'
        place = f'<td style="text-align:left"><span style="{bar}"></span></td>'
        rows.append(f"<tr>{cells}{place}</tr>")
    title = "<p>effect on every concept, first order (nats)</p>"
    return f"{title}<table>{''.join(rows)}</table>"


def safe(value: Any) -> str:
    """Any text as escaped text."""
    return escape(printable(str(value)))


def _lines(lines: Iterable[str]) -> str:
    return f"<p>{'<br>'.join(lines)}</p>"


def _verdict_lines(entry: Entry) -> list[str]:
    name = f"<b>{entry['id']}</b> · {safe(entry['concept'])}"
    score = f"score {number(entry['score'], 2)}"
    if "verdict" not in entry:
        return [f"{name} · candidate, not tested", score]
    low, high = (number(limit) for limit in entry["ci95"])
    failed = f" ({safe('; '.join(entry['failed']))})" if entry["failed"] else ""
    verdict = entry["verdict"].replace("_", " ")
    return [
        f"{name} · <b>{verdict}</b>{failed}",
        f"{score}, selectivity {number(entry['selectivity'])} [{low}, {high}] nats, "
        f"q {number(entry['q_value'])}, n = {entry['n_concept_positions']} own, "
        f"{entry['n_unrelated_positions']} matched positions",
    ]


def _token_lines(entry: Entry) -> list[str]:
    return [
        _tokens_line("promoted", [token for token, _ in entry["top_tokens"]]),
        _tokens_line("suppressed", [token for token, _ in entry["opposite_tokens"]]),
    ]


def _tokens_line(title: str, tokens: Sequence[str]) -> str:
    shown = (f"<bdi>{safe(token.strip())}</bdi>" for token in tokens[:SHOWN_TOKENS])
    return f"<b>{title}</b> {' · '.join(shown)}"


def _tested_blocks(entry: Entry) -> list[str]:
    """Damage, words, signs, examples, activations and continuations."""
    damage = [[kind, *(number(drops[k]) for k in DROPS)] for kind, drops in entry["damage"].items()]
    headers = ["damage", *(name.replace("_", " ") for name in DROPS)]
    below = [*_words_lines(entry), *_example_lines(entry)]
    below += _activation_lines(entry["activation"])
    for continuation in entry.get("continuations", ()):
        below.append(" · ".join(f"{safe(k)}: {safe(text)}" for k, text in continuation.items()))
    return [html_table(damage, headers), _lines(below)]


def _words_lines(entry: Entry) -> list[str]:
    """The words that lose most, and in which signs the neuron fires before them."""
    lost = [f"{safe(word)} {number(drop, 2)}" for word, drop, _ in entry["words"][:SHOWN_WORDS]]
    lines = [f"<b>words that lose most</b> {' · '.join(lost)}"] if lost else []
    signs = signs_line(entry)
    return [*lines, signs] if signs else lines


def _example_lines(entry: Entry) -> list[str]:
    """Running text with the word marked, and the word's probability with the vector and without."""
    of_concept = [example for example in entry["examples"] if example["own"]]
    lines = (
        ["<b>examples</b>: the word's probability with the vector → without"] if of_concept else []
    )
    for example in of_concept[:SHOWN_EXAMPLES]:
        text = safe(example["text"][-SHOWN_TEXT:])
        change = " → ".join(_probability(example[key]) for key in ("clean", "damaged"))
        lines.append(f"{text} <mark>{safe(example['word'].strip())}</mark> {change}")
    return lines


def _probability(log_p: float | None) -> str:
    return number(None) if log_p is None else f"{100 * math.exp(log_p):.2g} %"


def _activation_lines(activation: Mapping[str, Any]) -> list[str]:
    rate = f"{activation['firing_rate']:.1%}"
    strongest = [f"{value:+.2f} {safe(context)}" for context, value in activation["contexts"]]
    return [f"fires at {rate} of the text; strongest activations", *strongest]
