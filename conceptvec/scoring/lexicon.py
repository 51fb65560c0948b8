"""Bare lists of tokens, scored by the lexicons alone: no model, no torch.

The formula is that of `evidence`; what only a model knows is left out. A word counts as its listing
says (1, a homograph ½), its neighbours do not count, nothing is known of the readout that the list
comes from (standout 0), and a word's translations are other words. So a list needs more here than
with a model: listed words for a share of 0.37.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conceptvec.concepts import ConceptSet, load_concepts
from conceptvec.errors import RequestError
from conceptvec.scoring import evidence as ev
from conceptvec.scoring.listed import Lexicon
from conceptvec.scoring.table import Reader, TokenTable

__all__ = ["Lexicon", "score_tokens"]

MIXED = 2 / 3  # of the first theme's share, from which a second one makes a list mixed
WEAK = 0.14  # share that both need for that


def score_tokens(
    tokens: Iterable[str],
    concepts: ConceptSet | Reader | str | Path | None = None,
    threshold: float = 0.75,
) -> dict[str, Any]:
    """Score a bare list of tokens, most promoted first, by lexical evidence alone (no model).

    Args:
        tokens: the tokens as a tokenizer writes them (▁ or a leading space mark the start of a
            word).
        concepts: the concepts, the path of a concepts file or words (``load_concepts``); None takes
            the built-in twelve. A `Reader` saves building it for every list.
        threshold: smallest score of a concept.

    Returns:
        ``{"concept", "score", "components"}``; concept is a name, ``lexical``, ``mixed`` or
        ``none``.

    Raises:
        RequestError: a token is no text, or the concepts cannot be used.
    """
    tokens = [tokens] if isinstance(tokens, str) else list(tokens)
    if bad := [token for token in tokens if not isinstance(token, str)]:
        raise RequestError(f"score_tokens: got {bad[0]!r} among the tokens, expected text")
    if concepts is None or isinstance(concepts, str | Path):
        concepts = load_concepts(None if concepts is None else str(concepts), with_prompts=False)
    reader = concepts if isinstance(concepts, Reader) else Reader(concepts)
    table = reader.lexical_table(tokens)
    ids = np.arange(len(tokens))[None]
    evidence = ev.read(table, ids)
    one_word = ev.forms(table, ids[:, : ev.RANKS]).max(1, initial=0.0)
    score = float(ev.combine(evidence, np.zeros(1), one_word)[0])
    best = int(evidence.concept[0])
    name = reader.names[best] if best >= 0 else "none"
    components = {
        "evidence": "lexicon",  # no model was asked
        "best_concept": name,
        "share": round(float(evidence.share[0]), 6),
        "rival": table.themes[evidence.rival[0]] if evidence.rival_share[0] > 0 else None,
        "rival_share": round(float(evidence.rival_share[0]), 6),
        "words": round(float(evidence.words[0]), 6),
        "one_word": round(float(one_word[0]), 6),
        "distinct_words": int(evidence.distinct[0]),
        "matched": _matched(table, tokens, best),
    }
    label = _answer(score, threshold, name, evidence, float(one_word[0]))
    return {"concept": label, "score": round(score, 6), "components": components}


def _answer(
    score: float, threshold: float, name: str, evidence: ev.Evidence, one_word: float
) -> str:
    """The list's label without a model: a concept, ``lexical``, ``mixed`` or ``none``."""
    if score >= threshold and name != "none":
        return name
    if one_word >= ev.ONE_WORD:
        return "lexical"
    shares = sorted((float(evidence.share[0]), float(evidence.rival_share[0])))
    return "mixed" if shares[0] >= max(WEAK, MIXED * shares[1]) else "none"


def _matched(table: TokenTable, tokens: Sequence[str], concept: int) -> list[str]:
    """The tokens that hit the concept."""
    belongs = ((table.theme == concept) & (table.weight > 0)).any(1)
    return [token for token, hit in zip(tokens, belongs, strict=True) if hit and concept >= 0]
