"""Lexical evidence: whether a list of tokens, most promoted first, is made of a concept's words.

The rule, the same for one list and for all lists of a model:

1. A token is normalised (▁ and spaces off, NFKC, case folded) and reduced to a **lemma** (Snowball stem); the forms of
   one word count once, at the rank of the first. Tokens without two letters or a digit are not words and are left out.
2. A lemma **hits** a concept by a whole-word match: 1, or ½ where the word is a marked homograph, or appears only with
   a capital although its concept's words are no names (`Penguins` beside `Raptors` is a team). A word of two concepts
   hits neither.
3. With rank weights w(r) = 2^(-r/10) over the distinct words, the **share** S is the weighted part that hits, N the sum
   of the hits. The score is min(f(S), N/4), f linear through f(0)=0, f(0.3)=0.75, f(0.6)=1, halved where a second
   concept has more than two thirds of the share.

So 0.75 means: three distinct words of the concept, and 30 % of the rank-weighted distinct words. Nothing imports torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import snowballstemmer

from conceptvec.concepts import ConceptSet, load_concepts

HALF_LIFE = 10  # ranks after which a word's weight has halved
SHARE_AT_THRESHOLD, SHARE_AT_ONE, WORDS_AT_ONE = 0.3, 0.6, 4
RIVAL = 2 / 3  # share of the best concept's share from which a second concept makes a list mixed
LEXICAL = 0.5  # part of the words' weight on lemmas with several forms, from which a list is one of word forms
_ROMAN = re.compile(r"(?=..)x{0,3}(ix|iv|v?i{0,3})")
_YEAR = re.compile(r"1\d{3}|20\d{2}")


def normalise(token: str) -> str:
    """The token's word: ▁, #, spaces and invisible characters off, NFKC, case folded."""
    text = unicodedata.normalize("NFKC", token.replace("▁", " ").replace("Ġ", " ")).casefold()
    return "".join(ch for ch in text if unicodedata.category(ch)[0] != "C").strip(" #'\"`.,:;!?()[]{}<>*_-/\\|")


@cache
def _stemmer() -> Any:
    return snowballstemmer.stemmer("english")


@cache
def lemma(word: str) -> str:
    """The key under which the forms of a normalised word meet; empty where it is not a word.

    A word has a letter (two in an alphabetic script) or is a number. Digits of all scripts are one word per value.
    """
    if not word:
        return ""
    if word.isnumeric():
        return "".join(str(unicodedata.numeric(ch)).removesuffix(".0") if ch.isdigit() else ch for ch in word)
    if not any(ch.isalpha() for ch in word) or (len(word) == 1 and unicodedata.category(word) != "Lo"):
        return ""
    if word.isascii() and word.isalpha() and len(word) > 3:
        return _stemmer().stemWord(word)
    return word


def is_numeral(word: str) -> bool:
    """Digits of any script (years left out: they are dates) or a Roman number of two letters or more."""
    if word.isdigit() or (word.isnumeric() and not unicodedata.category(word[0]).startswith("L")):
        return not _YEAR.fullmatch(word)
    return bool(_ROMAN.fullmatch(word)) and word not in ("xx", "xxx")


@dataclass(frozen=True)
class Lexicon:
    """The concepts' words as lookup tables: lemma or word → (concept index, hit)."""

    names: tuple[str, ...]
    by_word: dict[str, tuple[int, float, bool]]

    @classmethod
    def build(cls, concepts: ConceptSet) -> Lexicon:
        """Collect every word under itself and under its lemma; what two concepts claim belongs to none."""
        claims: dict[str, dict[int, tuple[float, bool]]] = {}
        for i, concept in enumerate(concepts.concepts):
            homographs = {normalise(w) for w in concept.homographs}
            proper = {normalise(w) for w in concept.proper}
            for word in sorted({normalise(w) for w in concept.words} - {""}):
                hit = 0.5 if word in homographs else 1.0
                for key in {word, "=" + lemma(word)} - {"="}:
                    old = claims.setdefault(key, {}).get(i, (0.0, False))
                    claims[key][i] = max(old, (hit, word in proper or not word.isascii()))
        one = {key: next(iter(c.items())) for key, c in claims.items() if len(c) == 1}
        return cls(tuple(concepts.names), {k: (i, hit, proper) for k, (i, (hit, proper)) in one.items()})

    def find(self, token: str) -> tuple[str, int, float]:
        """A token's lemma, the concept it hits (-1: none) and how much the hit counts."""
        word = normalise(token)
        key = lemma(word)
        if not key:
            return "", -1, 0.0
        if is_numeral(word) and "numbers" in self.names:
            return key, self.names.index("numbers"), 1.0
        concept, hit, proper = self.by_word.get(word) or self.by_word.get("=" + key) or (-1, 0.0, False)
        letters = token.strip(" ▁Ġ#")
        named = letters[:1].isupper() and not letters.isupper() and not proper
        return key, concept, hit / 2 if named else hit


@dataclass(frozen=True)
class Evidence:
    """Lexical evidence for n lists: best and second concept, score and its parts, all of length n."""

    concept: np.ndarray  # index of the best concept, -1 where nothing hits
    score: np.ndarray
    share: np.ndarray
    words: np.ndarray  # sum of the hits
    rival_share: np.ndarray
    repeated: np.ndarray  # part of the weight on lemmas that appear in several forms
    distinct: np.ndarray  # distinct words in the list
    first: np.ndarray  # bool (n, k): the token is the first form of its word


def weigh(lemmas: np.ndarray, concepts: np.ndarray, hits: np.ndarray, n_concepts: int) -> Evidence:
    """Apply the rule to n lists of k tokens.

    Args:
        lemmas: (n, k) integers, one per lemma, -1 for what is not a word.
        concepts: (n, k) index of the concept that the token hits, -1 for none.
        hits: (n, k) how much the hit counts.
        n_concepts: number of concepts.
    """
    n, k = lemmas.shape
    order = np.argsort(lemmas, axis=1, kind="stable")
    rows = np.arange(n)[:, None]
    ordered = lemmas[rows, order]
    new = np.ones((n, k), bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.flatnonzero(new)
    best_hit = np.maximum.reduceat(hits[rows, order].ravel(), starts) if n * k else np.zeros(0)
    sizes = np.diff(np.append(starts, n * k))
    first, group_hit, group_size = np.zeros((n, k), bool), np.zeros((n, k)), np.zeros((n, k), int)
    at = (starts // max(k, 1), order.ravel()[starts])
    first[at], group_hit[at], group_size[at] = True, best_hit, sizes
    first &= lemmas >= 0
    rank = np.cumsum(first, axis=1) - 1
    weight = np.where(first, 0.5 ** (rank / HALF_LIFE), 0.0)
    total = np.maximum(weight.sum(1), 1e-12)
    value = group_hit * first
    share, words = np.zeros((n, n_concepts + 1)), np.zeros((n, n_concepts + 1))
    for c in range(n_concepts):
        mine = concepts == c
        share[:, c] = (weight * value * mine).sum(1) / total
        words[:, c] = (value * mine).sum(1)
    # A list of fewer than four words cannot reach the share of four by having nothing else in it.
    share *= np.minimum(first.sum(1) / WORDS_AT_ONE, 1)[:, None]
    best = share.argmax(1)
    top = share[rows[:, 0], best]
    second = np.partition(share, -2, axis=1)[:, -2] if n_concepts else np.zeros(n)
    curve = np.interp(top, [0, SHARE_AT_THRESHOLD, SHARE_AT_ONE], [0, 0.75, 1])
    score = np.minimum(curve, words[rows[:, 0], best] / WORDS_AT_ONE)
    score = np.where(second > RIVAL * top, score / 2, score)
    return Evidence(
        np.where(top > 0, best, -1), score, top, words[rows[:, 0], best], second,
        (weight * (group_size > 1)).sum(1) / total, first.sum(1), first,
    )  # fmt: skip


def answer(score: float, threshold: float, name: str, repeated: float, rival: bool) -> str:
    """The list's label without a model: a concept, ``lexical``, ``mixed`` or ``none``."""
    if score >= threshold:
        return name
    if repeated >= LEXICAL:
        return "lexical"
    return "mixed" if rival or score >= threshold / 2 else "none"


def score_tokens(
    tokens: Sequence[str], concepts: ConceptSet | str | None = None, threshold: float = 0.75
) -> dict[str, Any]:
    """Score a bare list of tokens, most promoted first, by lexical evidence alone (no model).

    Args:
        tokens: the tokens as a tokenizer writes them (▁ or a leading space mark the start of a word).
        concepts: the concepts, or the path of a concepts file; None takes the built-in twelve.
        threshold: smallest score of a concept.

    Returns:
        ``{"concept", "score", "components"}``; concept is a name, ``lexical``, ``mixed`` or ``none``.
    """
    if concepts is None or isinstance(concepts, str):
        concepts = load_concepts(concepts, with_prompts=False)
    lexicon = Lexicon.build(concepts)
    found = [lexicon.find(t) for t in tokens]
    lemmas, concept, hits = encode(found)
    e = weigh(lemmas[None], concept[None], hits[None], len(lexicon.names))
    score = float(e.score[0]) if len(tokens) else 0.0
    best = lexicon.names[int(e.concept[0])] if e.concept[0] >= 0 else "none"
    rival = bool(e.rival_share[0] > RIVAL * e.share[0] > 0 and e.words[0] >= 2)
    matched = [t for t, (_, c, h) in zip(tokens, found, strict=True) if h and c == e.concept[0]]
    components = {
        "best_concept": best, "share": round(float(e.share[0]), 6), "words": float(e.words[0]),
        "rival_share": round(float(e.rival_share[0]), 6), "repeated": round(float(e.repeated[0]), 6),
        "distinct_words": int(e.distinct[0]), "matched": matched,
    }  # fmt: skip
    label = answer(score, threshold, best, float(e.repeated[0]), rival)
    return {"concept": label, "score": round(score, 6), "components": components}


def encode(found: Iterable[tuple[str, int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lemmas as integers (-1: not a word), concepts and hits as arrays."""
    ids: dict[str, int] = {"": -1}
    rows = [(ids.setdefault(key, len(ids)), c, h) for key, c, h in found]
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2]
