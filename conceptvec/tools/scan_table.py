"""The scan by itself: which poles each concept's words need most, without Stage 2 beforehand.

The model writes a text, or one is read; one pass over it gives the first-order effect of every
neuron on every concept; the strongest poles of each concept stand beside the tokens that they
promote. All of it is kept in the run folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.concepts import ConceptSet
from conceptvec.config import Config, parse_layers
from conceptvec.effects.everywhere import Everywhere
from conceptvec.effects.named import CARRYING, Named, is_named, named_poles, promoted, strongest
from conceptvec.effects.scan_record import Scan
from conceptvec.effects.significance import MAX_Q
from conceptvec.effects.stage import running_text, scan_text
from conceptvec.effects.survey import survey
from conceptvec.effects.target_words import TargetWords, token_pieces
from conceptvec.errors import RequestError
from conceptvec.extraction.poles import make_projector
from conceptvec.model.ambient import set_aside
from conceptvec.runfolder import Parts
from conceptvec.scoring.lexicon import Lexicon
from conceptvec.text import html_table, notebook_html, number, plain, printable, table, words_of

if TYPE_CHECKING:
    from conceptvec.model.network import Model

LIMIT = 5  # poles listed of each concept
TOKENS = 15  # of a pole
SHOWN_TOKENS = 7
WORDS = "words"  # the name of a concept of the user's words
SEPARATORS = ",;="
LONGEST_NAME = 40  # of the words in a folder's name
HEADERS = ("concept", "pole", "effect", "zero", "next concept", "fires", "q", "promotes")


class ScanTable(dict[str, Any]):
    """The answer of `scan`: model, corpus, concepts, controls; shows itself as a table.

    Attributes:
        effects: every pole and concept, as arrays.
    """

    effects: Everywhere

    def __repr__(self) -> str:
        rows = table(_rows(self), HEADERS)
        return f"{_title(self)}\n\n{rows}\n\n{_legend(self)}"

    def _repr_html_(self) -> str:
        rows = html_table(_rows(self), HEADERS)
        legend = "<br>".join(escape(line) for line in _legend(self).splitlines())
        return notebook_html(f"<p>{escape(_title(self))}</p>{rows}<p>{legend}</p>")


@set_aside
def scan(model: Model, config: Config, parts: Parts | None = None, limit: int = LIMIT) -> ScanTable:
    """Every neuron's first-order effect on the words of every concept.

    Args:
        model: the model; it is never written.
        config: layers, concepts, corpus, corpus_tokens, fold, seed.
        parts: keeps finished parts (a `runfolder.RunFolder`).
        limit: poles listed of each concept.

    Raises:
        RequestError: the corpus cannot be read, or no word of the concepts is a token of the model.
    """
    parts = parts or Parts()
    parts.bind(config, model.facts(), ())
    concepts = parts.concepts(config, with_prompts=False)
    check_words(model, concepts)
    projector, texts, masked = make_projector(model, TOKENS)
    layers = parse_layers(config.layers, model.n_layers)
    text = running_text(model, config, concepts, masked.numpy(), parts)
    scanned = scan_text(text, model, config, layers, [], parts)
    everywhere = survey(scanned, parts)

    listed = {
        concept: strongest(scanned, everywhere, number, limit)
        for number, concept in enumerate(everywhere.concepts)
    }
    poles = [item.pole for items in listed.values() for item in items]
    tokens = iter(promoted(poles, model, config.fold, projector, texts))
    answer = ScanTable(
        model=model.facts(),
        corpus=corpus_facts(scanned, everywhere, config),
        concepts={
            concept: [_entry(item, next(tokens)) for item in items]
            for concept, items in listed.items()
        },
        used=used_counts(scanned, everywhere),
        poles_and_concepts=everywhere.p.size,
        controls=everywhere.about["controls"],
    )
    answer.effects = everywhere
    return answer


def concept_of_words(words: Sequence[str]) -> str:
    """The user's words as a value of ``--concepts``.

    Raises:
        RequestError: one of them is no word.
    """
    for word in words:
        if not word.strip() or any(character in SEPARATORS for character in word):
            raise RequestError(f"--words: got {word!r}, expected words, as in: --words robin eagle")
    return f"{WORDS}={','.join(words)}"


def scan_folder(config: Config, device: str, words: Sequence[str] | None) -> Path:
    """Where a scan is kept: ``--out``, or beside the model's run, one for each choice of words."""
    if config.out:
        return Path(config.out)
    run = config.folder(device)
    chosen = "-".join(re.sub(r"\W+", "", word) for word in words or ())[:LONGEST_NAME]
    return run.with_name("-".join(filter(None, (run.name, "scan", chosen))))


def check_words(model: Model, concepts: ConceptSet) -> None:
    """Refuse concepts none of whose words the model has as one token, before a text is written."""
    pieces = token_pieces(model.tokenizer, model.vocab_size)
    if not len(TargetWords.build(Lexicon.build(concepts), pieces).word_concept):
        raise RequestError(
            f"scan: no word of {', '.join(concepts.names)} is a single token of {model.name}; "
            "give other or shorter words"
        )


def corpus_facts(scanned: Scan, everywhere: Everywhere, config: Config) -> dict[str, Any]:
    """The running text, as the results of a run hold it."""
    passages = scanned.passages
    return {
        "corpus": config.corpus,
        "digest": passages.digest,
        "passages": len(passages),
        "documents": len(np.unique(passages.documents)),
        "tokens": passages.tokens,
        "known_words": everywhere.about["known_words"],
    }


def used_counts(scanned: Scan, everywhere: Everywhere) -> dict[str, int]:
    """How many poles are used for each concept."""
    counts = Counter(item.concept for item in named_poles(scanned, everywhere))
    return {concept: counts[concept] for concept in everywhere.concepts}


def _entry(item: Named, top_tokens: list[Any]) -> dict[str, Any]:
    use = item.use
    return {
        "id": item.pole.id,
        "zero": plain(use.zero),
        "mean": plain(use.mean),
        "largest_other": plain(use.largest_other),
        "largest_other_concept": use.largest_other_concept,
        "words": use.words,
        "firing": plain(use.firing_ratio),
        "p": plain(use.p),
        "q": plain(item.q),
        "used": is_named(item),
        "top_tokens": top_tokens,
    }


def _title(answer: Mapping[str, Any]) -> str:
    model, corpus = answer["model"], answer["corpus"]
    source = "its own text" if corpus["corpus"] == "self" else printable(corpus["corpus"])
    return (
        f"{printable(model['id'])} on {model['device']} in {model['dtype']}, "
        f"{corpus['tokens']:,} tokens of {source}: the poles that each concept's words need most"
    )


def _rows(answer: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for concept, entries in answer["concepts"].items():
        known = answer["corpus"]["known_words"][concept]
        name = f"{printable(concept)}, {known} words, {answer['used'][concept]} used"
        for entry in entries:
            rows.append([name, *_cells(entry)])
            name = ""
        if not entries:
            rows.append([name, "–", *[""] * (len(HEADERS) - 2)])
    return rows


def _cells(entry: Mapping[str, Any]) -> list[str]:
    """The columns behind the concept; an asterisk marks what is used."""
    other = f"{number(entry['largest_other'])} {printable(entry['largest_other_concept'] or '')}"
    return [
        entry["id"],
        number(entry["mean"]),
        number(entry["zero"]),
        other,
        f"{entry['firing']:.1f} ×",
        number(entry["q"]) + (" *" if entry["used"] else ""),
        words_of(token for token, _ in entry["top_tokens"][:SHOWN_TOKENS]),
    ]


def _legend(answer: Mapping[str, Any]) -> str:
    controls = answer["controls"]
    return "\n".join(
        [
            "effect: nats that the concept's words lose (the third that the pole promotes most)",
            "        when its activation no longer follows the text: mean ablation, first order",
            "zero:   nats that all words of the concept lose when the pole is removed",
            "next concept: the largest effect on another one",
            "fires:  activation before the concept's words over that before other concepts' words",
            f"q:      false discovery rate over all {answer['poles_and_concepts']:,} poles and "
            "concepts",
            f"*:      used for the concept: q ≤ {MAX_Q}, other concepts lose at most half as much, "
            f"{CARRYING} words at least",
            f"controls at the same cut-off: {controls['moved']['used']} of "
            f"{controls['moved']['n']:,} vectors fired by other neurons, "
            f"{controls['permuted_words']['used']} of {controls['permuted_words']['n']:,} "
            "with the words shuffled",
        ]
    )
