"""Write a run as a page of Markdown: what was asked of what, the controls, and twelve vectors as cards.

    python scripts/make_cards.py RUN NAME docs/PAGE.md     the page, and its pictures docs/PAGE….png
    python scripts/make_cards.py RUN NAME docs/PAGE.png    the pictures alone

NAME says in words what the model is. The pictures show the drops of every vector that was damaged,
and the effects that the scan found, by score and by layer. The cards are the validated vectors with
the largest drop: the best of each concept first, then the next ones.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import conceptvec as cv
from conceptvec.show.figures import drops, effect_by_layer, effect_by_score, save_figure
from conceptvec.text import number, printable, table

CARDS = 12
TOKENS = 12
LOSERS = 8
EXAMPLES = 2
PICTURES = {"": drops, "-effect-by-score": effect_by_score, "-effect-by-layer": effect_by_layer}
ROLES = {
    "null neurons": (),
    "candidates under a wrong concept": ("wrong_concept",),
    "vectors moved to other neurons": ("moved",),
}


def page(results: Mapping[str, Any], name: str, picture: str) -> str:
    """The whole page; `picture` is the file beside it."""
    blocks = [
        f"# {name}",
        f"![What the model loses when a vector is damaged]({picture})",
        *source(results, name),
        "## Verdicts by concept",
        by_concept(results),
        "## Controls",
        controls(results),
        f"## {CARDS} of the validated vectors",
        "The validated vector with the largest drop in each concept, then the next largest. The list is "
        "what the vector promotes; *drop* is what its removal costs the model where it acts. A sentence "
        "is running text that the model wrote, up to the word in bold, with the probability of that word "
        "before and after. `explore` and the report show every vector like this.",
        *cards(results),
    ]
    return "\n\n".join(blocks) + "\n"


def source(results: Mapping[str, Any], name: str) -> Iterator[str]:
    """What was measured on what."""
    model, text, stats = results["model"], results["text"], results["pipeline_stats"]
    seconds = sum(results["timings"].values())
    minutes = ", ".join(f"{key} {value / 60:.1f}" for key, value in results["timings"].items())
    yield (
        f"Measured on {name}, {model['dtype']} on {model['device']}, torch "
        f"{results['environment']['torch']}, transformers {results['environment']['transformers']}. "
        f"{stats['filtered_candidates']:,} neurons, both poles; "
        f"{stats['concept_candidates']:,} concept candidates; {text['tokens']:,} tokens of text "
        f"(corpus: {corpus(text)}). {seconds / 60:.0f} minutes (minutes by stage: {minutes})."
    )
    verdicts = results["verdicts"]
    rows = [[verdict.replace("_", " "), f"{count:,}"] for verdict, count in verdicts.items()]
    yield table(rows, ("verdict", "candidates"), "github")


def corpus(text: Mapping[str, Any]) -> str:
    """Where the text came from."""
    return "the model's own" if text["corpus"] == "self" else Path(text["corpus"]).name


def by_concept(results: Mapping[str, Any]) -> str:
    """Candidates, used, validated, and the largest drop, for every concept."""
    rows = []
    for concept, known_words in results["text"]["known_words"].items():
        entries = [e for e in results["validation_results"] if e["concept"] == concept]
        validated = [e for e in entries if e["validated"]]
        best = max((e["concept_drop"] for e in validated), default=None)
        used = sum(bool(e["q_value"] is not None and e["q_value"] <= 0.05) for e in entries)
        rows.append([concept, known_words, len(entries), used, len(validated), number(best, 2)])
    heads = ("concept", "known words", "candidates", "q ≤ .05", "validated", "largest drop (nats)")
    return table(rows, heads, "github")


def controls(results: Mapping[str, Any]) -> str:
    """What passed by chance."""
    calibration = results["null_calibration"]
    rows = []
    for name, path in ROLES.items():
        group = calibration[path[0]] if path else calibration
        low, high = group["ci95"]
        rows.append(
            [
                name,
                f"{group['n']:,}",
                group["used"],
                group["false_validations"],
                f"{100 * group['false_validation_rate']:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
            ]
        )
    return table(rows, ("control", "n", "used", "validated", "rate, 95 % interval"), "github")


def cards(results: Mapping[str, Any]) -> Iterator[str]:
    """The chosen vectors."""
    validated = sorted(
        (e for e in results["validation_results"] if e["validated"]),
        key=lambda entry: -entry["concept_drop"],
    )
    best: dict[str, Any] = {}
    for entry in validated:
        best.setdefault(entry["concept"], entry)
    first = list(best.values())
    chosen = first + [entry for entry in validated if entry not in first]
    for entry in chosen[:CARDS]:
        yield card(entry)


def card(entry: Mapping[str, Any]) -> str:
    """One vector."""
    rotate = entry["damage"].get("rotate", {}).get("concept_drop")
    lines = [
        f"### {entry['id']} · {entry['concept']}",
        "",
        f"**promotes** {words(entry['top_tokens'][:TOKENS])}",
        "",
        f"**drop** {number(entry['concept_drop'], 2)} nats where it acts (a random vector of its norm "
        f"in its place: {number(rotate, 2)}); before other words {number(entry['unrelated_drop'], 2)}; "
        f"q {number(entry['q_value'], 4)}",
        "",
        f"**words that lose most** {losers(entry['words'][:LOSERS])}",
        "",
        *(line for example in examples(entry) for line in (example, "")),
        *continuation(entry),
    ]
    return "\n".join(lines).rstrip()


def words(tokens: Sequence[Sequence[Any]]) -> str:
    """Tokens as code, apart from each other."""
    return " ".join(f"`{printable(token.strip()) or '␣'}`" for token, _ in tokens)


def losers(lost: Sequence[Sequence[Any]]) -> str:
    """Words with the nats that they lose."""
    return ", ".join(f"{printable(word)} {number(drop, 2)}" for word, drop, _ in lost)


def examples(entry: Mapping[str, Any]) -> Iterator[str]:
    """Sentences from the text, the word marked, with its probability before and after."""
    own = [example for example in entry["examples"] if example["own"]]
    for example in own[:EXAMPLES]:
        before, after = (probability(example[key]) for key in ("clean", "damaged"))
        text = escaped(example["text"])
        yield f"> … {text} **{escaped(example['word'].strip())}** ({before} → {after})"


def continuation(entry: Mapping[str, Any]) -> Iterator[str]:
    """How the model goes on, with the vector and without it."""
    for trial in entry["continuations"][:1]:
        ways = ("clean", "removed", "amplified")
        yield "**goes on** " + "; ".join(f"{way}: {escaped(trial[way])!r}" for way in ways)


def escaped(text: str) -> str:
    """One line that Markdown shows as it is."""
    line = " ".join(printable(text, keep="\n").split())
    return "".join("\\" + ch if ch in "\\*_`<>[]#|$" else ch for ch in line)


def probability(log_p: float) -> str:
    """A log-probability in nats as percent."""
    return f"{100 * math.exp(log_p):.2g} %"


def main() -> None:
    """Write the page."""
    run, name, out = sys.argv[1:4]
    results, path = cv.load_results(run), Path(out)
    results["model"]["id"] = name  # the folder's own name says nothing to a reader
    for ending, draw in PICTURES.items():
        save_figure(draw(results), path.with_name(f"{path.stem}{ending}.png"))
    if path.suffix != ".png":
        path.write_text(page(results, name, f"{path.stem}.png"), encoding="utf-8")


if __name__ == "__main__":
    main()
