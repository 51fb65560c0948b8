"""What the scorer says of a list of tokens: one of the concepts, or one of four other answers.

- a **concept** where the score (`evidence`) reaches the threshold;
- **lexical** where the list is essentially one word: its forms, its spellings, its translations; or
  one sign;
- **mixed** where two themes of the same strength share the list;
- **other** where the list's words are more alike than 99 % of the null lists', and whole words by
  half at least;
- **none** for the rest, unless two themes are there, both weak: then it is mixed.

Coherence, the mean pairwise cosine of the distinct words, decides *other* alone. It is not in the
score: lists of any theme cohere, and it cannot tell which theme.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np
import torch

from conceptvec.concepts import ConceptSet
from conceptvec.scoring import evidence as ev
from conceptvec.scoring.answers import LEXICAL, MIXED, NONE, OTHER, Lists
from conceptvec.scoring.kinship import Kinship

COHERENT = 0.99  # percentile of the null from which a list outside the concepts is called `other`
COHERENCE_WORDS = 20  # words compared
ALIKE = 0.1  # coherence from which a list may be made of translations
TRANSLATION = 0.3  # cosine from which a word of another language counts as the same word
SIGNS = 0.6  # part of a list on signs from which it is a list of signs, no words
ONE_SIGN = 0.7  # part of such a list that has the same sign
SECOND, STRONG, WEAK = 2 / 3, 0.25, 0.14  # of the second theme: against the first; alone


class Scorer:
    """Scores lists over one vocabulary.

    Args:
        tokens: text of every token, length V.
        masked: bool (V,).
        unembedding: (V, H).
        concepts: the concepts.
        threshold: smallest score of a concept.
    """

    def __init__(
        self,
        tokens: list[str],
        masked: np.ndarray,
        unembedding: torch.Tensor,
        concepts: ConceptSet,
        threshold: float,
    ) -> None:
        self.tokens, self.threshold = tokens, threshold
        self.kinship = Kinship(tokens, masked, unembedding, concepts)
        self.table = self.kinship.table
        self.names = self.table.themes[: self.table.concepts]

    def __call__(
        self, ids: np.ndarray, standout: np.ndarray, null: np.ndarray | None = None
    ) -> Lists:
        """Score n lists.

        Args:
            ids: (n, k) token ids, strongest first.
            standout: (n,) how far each list rises out of its readout (`evidence.standout`).
            null: the sorted coherences of the null lists; without them nothing is `other`.
        """
        evidence = ev.read(self.table, ids)
        coherence = self.coherence(ids, evidence.first)
        percentile = np.zeros(len(ids))
        if null is not None:
            percentile = np.searchsorted(null, coherence) / len(null)
        one_word = self.one_word(ids, evidence, coherence)
        score = ev.combine(evidence, standout, one_word)
        components = {
            "share": evidence.share,
            "rival_share": evidence.rival_share,
            "words": evidence.words,
            "standout": standout,
            "one_word": one_word,
            "distinct_words": evidence.distinct,
            "signs": evidence.signs,
            "coherence": coherence,
            "coherence_percentile": percentile,
        }
        label = self._label(ids, evidence, score, one_word, percentile)
        return Lists(label, evidence.concept, score, components, evidence.first)

    def _label(
        self,
        ids: np.ndarray,
        evidence: ev.Evidence,
        score: np.ndarray,
        one_word: np.ndarray,
        percentile: np.ndarray,
    ) -> np.ndarray:
        """The answers of the module's first lines, the first that holds."""
        strong, weak = (
            np.maximum(evidence.share, evidence.rival_share),
            np.minimum(evidence.share, evidence.rival_share),
        )
        signs = evidence.signs >= SIGNS
        even = (weak >= STRONG) & (weak >= SECOND * strong)
        answers = [
            (score >= self.threshold) & (evidence.concept >= 0),
            signs & (self._one_sign(ids, signs) >= ONE_SIGN),
            (one_word >= ev.ONE_WORD) & ~signs,
            even,
            (percentile >= COHERENT) & ~signs & self._whole(ids, evidence.first),
            weak >= WEAK,
        ]
        return np.select(answers, [evidence.concept, LEXICAL, LEXICAL, MIXED, OTHER, MIXED], NONE)

    def _whole(self, ids: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Whether at most half of a list's distinct words could continue another, bool (n,).

        Such tokens lie close together in any model that hardly trained them apart.
        """
        ids, use = central(ids, first)
        return (self.table.continues[ids] & use).sum(1) <= use.sum(1) / 2

    def coherence(self, ids: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Mean pairwise cosine of the first distinct words of each list, (n,)."""
        ids, use = central(ids, first)
        n = use.sum(1)
        total = np.zeros((len(ids), self.kinship.sketch.shape[1]), np.float32)
        for column in range(ids.shape[1]):
            total += self.kinship.sketch[ids[:, column]] * use[:, column, None]
        pairs = np.maximum(n * (n - 1), 1)
        return np.where(n > 1, ((total**2).sum(1) - n) / pairs, 0.0)

    def one_word(self, ids: np.ndarray, evidence: ev.Evidence, coherence: np.ndarray) -> np.ndarray:
        """The weighted part of each list on its strongest word with forms and translations, (n,).

        The strongest word is that with the most weight on its forms. A word of another language is
        its translation where its row lies near. Of English one word counts, so a list of kin words
        (*mother, father*) is not one word. Lists that hardly cohere have no translations in them.
        """
        ids = ids[:, : ev.RANKS]
        forms = ev.forms(self.table, ids)
        head = forms.argmax(1)
        part = forms[np.arange(len(ids)), head]
        # Where the word has a theme of names, its neighbours are other names, no translations.
        proper = self.table.proper[evidence.rival] & (evidence.rival_share > evidence.share)
        open_rows = np.flatnonzero((part < ev.ONE_WORD) & ~proper & (coherence >= ALIKE))
        if len(open_rows):
            part[open_rows] += self._translations(ids[open_rows], forms[open_rows], head[open_rows])
        return part

    def _translations(self, ids: np.ndarray, forms: np.ndarray, head: np.ndarray) -> np.ndarray:
        """The weight of words of other languages by the word at `head`, one of English, (n,)."""
        sketch, language = self.kinship.sketch, self.kinship.language[ids]
        rows = np.arange(len(ids))
        near = np.einsum("nks,ns->nk", sketch[ids], sketch[ids[rows, head]]) >= TRANSLATION
        foreign = language != language[rows, head][:, None]
        candidate = np.where(near & foreign, forms, 0.0)
        english = language == self.kinship.english
        return np.where(english, 0, candidate).sum(1) + np.where(english, candidate, 0).max(1)

    def _one_sign(self, ids: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The weighted part of the lists `which` whose tokens hold their commonest sign, (n,)."""
        part = np.zeros(len(ids))
        weights = ev.rank_weights(min(ids.shape[1], ev.RANKS))
        for row in np.flatnonzero(which):
            count: Counter[str] = Counter()
            for token, weight in zip(ids[row, : ev.RANKS], weights, strict=True):
                text = unicodedata.normalize("NFKC", self.tokens[token].strip())
                count.update(dict.fromkeys(text, weight))
            part[row] = max(count.values(), default=0.0)
        return part


def central(ids: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first distinct words of each list: ids (n, w), and which of them are real, bool."""
    ids = ids[:, : first.shape[1]]
    at = np.argsort(~first, axis=1, kind="stable")[:, :COHERENCE_WORDS]
    return np.take_along_axis(ids, at, axis=1), np.take_along_axis(first, at, axis=1)
