"""Lexical evidence: whether a list of tokens, most promoted first, is made of a concept's words.

The rule, the same for one list and for all lists of a model:

1. A token is normalised (▁ and spaces off, NFKC, case folded) and reduced to a **lemma**; the forms of one word count
   once, at the rank of the first. Tokens without two letters or a digit are not words and are left out.
2. A lemma **hits** a concept by a whole-word match, as it is listed or inflected (`words`): 1, or ½ where the word is a
   marked homograph, or appears only with a capital although its concept's words are no names (`Penguins` beside
   `Raptors` is a team). A word of two concepts hits neither.
3. With rank weights w(r) = 2^(-r/10) over the distinct words, the **share** S is the weighted part that hits, N the sum
   of the hits. The score is min(f(S), N/4), f linear through f(0)=0, f(0.3)=0.75, f(0.6)=1, halved where a second
   concept has more than two thirds of the share.

So 0.75 means: three distinct words of the concept, and 30 % of the rank-weighted distinct words. Nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conceptvec.concepts import ConceptSet, load_concepts
from conceptvec.errors import RequestError
from conceptvec.scoring.words import BARE, is_numeral, languages, lemma, normalise, not_forms, stems

HALF_LIFE = 10  # ranks after which a word's weight has halved
SHARE_AT_THRESHOLD, SHARE_AT_ONE, WORDS_AT_ONE = 0.3, 0.6, 4
RIVAL = 2 / 3  # share of the best concept's share from which a second concept makes a list mixed
LEXICAL = 0.5  # part of the words' weight on lemmas with several forms, from which a list is one of word forms
Match = tuple[str, int, float, bool]  # lemma, concept, hit, whether the word is a name


@dataclass(frozen=True)
class Lexicon:
    """The concepts' words as lookup tables. Concepts are in alphabetical order, whatever the order they came in."""

    names: tuple[str, ...]
    by_word: dict[str, Match]
    by_stem: dict[str, dict[str, Match]]  # language → stem

    @classmethod
    def build(cls, concepts: ConceptSet) -> Lexicon:
        """Collect every word under itself and under its stems; what two concepts claim belongs to none."""
        words: dict[str, Match] = {}
        by_stem: dict[str, dict[str, Match]] = {}
        ordered = sorted(concepts.concepts, key=lambda c: c.name)
        for i, concept in enumerate(ordered):
            for language, listed in concept.words.items():
                # The package's own lists are kept normalised (a test looks); the user's may be written in any way.
                known = dict.fromkeys(listed if language else filter(None, map(normalise, listed)))
                homographs, proper = concept.homographs, concept.proper
                for word in known:
                    code = language or next(iter(languages(word)), "")
                    if code == "en":
                        stem, key = word, next((s for s in stems(word, code) if s in known), word)
                    else:
                        stem = key = stems(word, code)[0]
                    match = (
                        key,
                        i,
                        0.5 if word in homographs else 1.0,
                        word in proper or not word.isascii(),
                    )
                    if words.setdefault(word, match) is not match:
                        _claim(words, word, match)
                    table = by_stem.setdefault(code, {})
                    if table.setdefault(stem, match) is not match:
                        _claim(table, stem, match)
        return cls(tuple(c.name for c in ordered), words, by_stem)

    def find(self, token: str) -> tuple[str, int, float]:
        """A token's lemma, the concept it hits (-1: none, -2: several, so none) and how much the hit counts."""
        word = normalise(token)
        if is_numeral(word) and "numbers" in self.names:
            return lemma(word) or word, self.names.index("numbers"), 1.0
        found = self.by_word.get(word) or self._inflected(word)
        if found is None or found[1] < 0:
            return (found[0] if found else lemma(word)), (found[1] if found else -1), 0.0
        key, concept, hit, name = found
        letters = token.strip(" ▁Ġ#")
        named = letters[:1].isupper() and not letters.isupper() and not name
        return key, concept, hit / 2 if named else hit

    def _inflected(self, word: str) -> Match | None:
        """The listed word of which this is another form, None without one; of no concept where languages disagree."""
        if len(word) < 3 or word in not_forms():
            return None
        found = [
            match
            for language in languages(word)
            for stem in stems(word, language)
            if (len(stem) < len(word) or language in BARE)
            and (match := self.by_stem.get(language, {}).get(stem))
        ]
        if len({m[1] for m in found}) > 1:
            return lemma(word), -2, 0.0, False
        return found[0] if found else None


def _claim(table: dict[str, Match], key: str, match: Match) -> None:
    """Claim a word again. One of two concepts stays in the table, for none: no inflection may give it back to one."""
    old = table[key]
    if old[1] != match[1]:
        table[key] = (old[0], -2, 0.0, False)
    elif old[2:] != match[2:]:
        table[key] = (old[0], old[1], max(old[2], match[2]), old[3] or match[3])


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


class Groups:
    """The forms of each word in n lists of k tokens, gathered once; any number of weighings share it.

    Args:
        lemmas: (n, k) integers, one per lemma, -1 for what is not a word.
    """

    def __init__(self, lemmas: np.ndarray) -> None:
        n, k = self.shape = lemmas.shape
        order = np.argsort(lemmas, axis=1, kind="stable")
        ordered = np.take_along_axis(lemmas, order, axis=1)
        new = np.ones((n, k), bool)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        self.starts = np.flatnonzero(new)  # of the groups, among the ordered tokens
        self.flat = (
            order + np.arange(n)[:, None] * k
        ).ravel()  # position of each ordered token in (n, k)
        self.at = self.flat[self.starts]  # position of each group's first form
        word = lemmas.ravel()[self.at] >= 0
        self.first = np.zeros(n * k, bool)
        self.first[self.at[word]] = True
        self.first = self.first.reshape(n, k)
        rank = np.cumsum(self.first, axis=1) - 1
        self.weight = np.where(self.first, (0.5 ** (np.arange(k + 1) / HALF_LIFE))[rank], 0.0)
        self.total = np.maximum(self.weight.sum(1), 1e-12)
        several = np.zeros(n * k, bool)
        several[self.at] = np.diff(np.append(self.starts, n * k)) > 1
        self.repeated = (self.weight * several.reshape(n, k)).sum(1) / self.total
        self.distinct = self.first.sum(1)

    def weigh(self, concepts: np.ndarray, hits: np.ndarray, n_concepts: int) -> Evidence:
        """Apply the rule: `concepts` (n, k) holds the concept that each token hits (-1: none), `hits` how much."""
        n, k = self.shape
        # A word counts as its best form does; quarter hits are exact as integers.
        code = np.rint(hits * 4).astype(np.int64) * (n_concepts + 1) + concepts + 1
        code = np.maximum.reduceat(code.ravel()[self.flat], self.starts) if n * k else code.ravel()
        kept = self.first.ravel()[self.at] & (code > n_concepts)
        at, hit, concept = (
            self.at[kept],
            code[kept] // (n_concepts + 1) / 4,
            code[kept] % (n_concepts + 1) - 1,
        )
        cell = (
            at // max(k, 1) * (n_concepts + 1) + concept
        )  # one more column, always empty: it wins where nothing hits
        size = n * (n_concepts + 1)
        share, words = (
            np.bincount(cell, x, size).reshape(n, n_concepts + 1)
            for x in (hit * self.weight.ravel()[at], hit)
        )
        share = share / self.total[:, None]
        # A list of fewer than four words cannot reach the share of four by having nothing else in it.
        share *= np.minimum(self.distinct / WORDS_AT_ONE, 1)[:, None]
        rows = np.arange(n)
        best = share.argmax(1)
        top, count = share[rows, best], words[rows, best]
        second = np.partition(share, -2, axis=1)[:, -2] if n_concepts else np.zeros(n)
        return Evidence(
            np.where(top > 0, best, -1), combine(top, count, second), top, count, second,
            self.repeated, self.distinct, self.first,
        )  # fmt: skip


def combine(share: np.ndarray, words: np.ndarray, rival_share: np.ndarray) -> np.ndarray:
    """The score in [0, 1] from its three parts: rule 3 of the module."""
    curve = np.interp(share, [0, SHARE_AT_THRESHOLD, SHARE_AT_ONE], [0, 0.75, 1])
    score = np.minimum(curve, words / WORDS_AT_ONE)
    return np.where(rival_share > RIVAL * share, score / 2, score)


def answer(score: float, threshold: float, name: str, repeated: float, rival: bool) -> str:
    """The list's label without a model: a concept, ``lexical``, ``mixed`` or ``none``."""
    if score >= threshold:
        return name
    if repeated >= LEXICAL:
        return "lexical"
    return "mixed" if rival or score >= threshold / 2 else "none"


def score_tokens(
    tokens: Iterable[str],
    concepts: ConceptSet | Lexicon | str | Path | None = None,
    threshold: float = 0.75,
) -> dict[str, Any]:
    """Score a bare list of tokens, most promoted first, by lexical evidence alone (no model).

    Args:
        tokens: the tokens as a tokenizer writes them (▁ or a leading space mark the start of a word).
        concepts: the concepts, the path of a concepts file or words (``load_concepts``); None takes the built-in
            twelve. A `Lexicon` saves building it for every list.
        threshold: smallest score of a concept.

    Returns:
        ``{"concept", "score", "components"}``; concept is a name, ``lexical``, ``mixed`` or ``none``.

    Raises:
        RequestError: a token is no text, or the concepts cannot be used.
    """
    tokens = list(tokens) if not isinstance(tokens, str) else [tokens]
    if bad := [t for t in tokens if not isinstance(t, str)]:
        raise RequestError(f"score_tokens: got {bad[0]!r} among the tokens, expected text")
    if concepts is None or isinstance(concepts, str | Path):
        concepts = load_concepts(None if concepts is None else str(concepts), with_prompts=False)
    lexicon = concepts if isinstance(concepts, Lexicon) else Lexicon.build(concepts)
    found = [lexicon.find(t) for t in tokens]
    lemmas, concept, hits = encode(found)
    e = Groups(lemmas[None]).weigh(concept[None], hits[None], len(lexicon.names))
    score = float(e.score[0])
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
