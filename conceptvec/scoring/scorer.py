"""The score of a list of tokens, from the lexicon and the model's own unembedding.

The score is the lexical rule of `lexicon`, with one addition where a model is at hand: a word that the lexicon lacks
counts ½ towards the share (never towards the three words that a concept needs) when its embedding lies as near to the
concept's centroid as half of the concept's own words do, each judged without itself.

Recorded with every list, and not in the score: coherence (mean pairwise cosine of the distinct top words on
mean-centred embeddings; its percentile among the nulls), because lists of any theme cohere and it cannot tell which
theme; the embedding margin, because what it says of words is in the soft hits already; kurtosis, because it is large
for one-word lists too. Coherence decides the answer `other`: a list outside the concepts, more coherent than 99 % of
the nulls, and made of whole words by half at least (pieces of words that a model hardly trained lie close together).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from conceptvec.concepts import ConceptSet
from conceptvec.scoring import lexicon as lex

COHERENT = 0.99  # percentile of the null from which a list outside the concepts is called `other`
NEAR = 0.995  # a soft hit is among the nearest half percent of the vocabulary
COHERENCE_WORDS, SKETCH = (
    20,
    128,
)  # words compared; dimensions of the random projection used for that


@dataclass
class Lists:
    """What the scorer says of n lists; arrays of length n."""

    label: np.ndarray  # index of the concept, or below zero: LABELS
    concept: np.ndarray
    score: np.ndarray
    components: dict[str, np.ndarray]


LABELS = {-1: "none", -2: "mixed", -3: "lexical", -4: "other"}


class Scorer:
    """The rule over a whole vocabulary, as lookup tables.

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
        self.lexicon = lex.Lexicon.build(concepts)
        self.names, self.threshold = self.lexicon.names, threshold
        found = (
            self.lexicon.find(t) if not m else ("", -1, 0.0)
            for t, m in zip(tokens, masked, strict=True)
        )
        self.lemma, self.concept, self.hit = lex.encode(found)
        self.fragment = np.array(
            [t[:1].islower() for t in tokens]
        )  # goes on with a word, or is a piece of one
        shown = torch.as_tensor(~masked, device=unembedding.device)
        size = unembedding.shape[1]
        mean = torch.zeros(size, device=unembedding.device)
        for rows, use in zip(unembedding.split(2**15), shown.split(2**15), strict=True):
            mean += rows[use].float().sum(0) / shown.sum()
        sketch = torch.eye(size)
        if size > SKETCH:
            sketch = torch.randn(
                size, SKETCH, generator=torch.Generator().manual_seed(0)
            ) / math.sqrt(SKETCH)
        sketch = sketch.to(unembedding.device)
        centroids, near, small = self._centroids(unembedding, mean, masked), [], []
        for rows in unembedding.split(2**15):
            unit = torch.nn.functional.normalize(rows.float() - mean, dim=1)
            near.append((unit @ centroids.T).cpu())
            small.append(torch.nn.functional.normalize(unit @ sketch, dim=1).cpu())
        self.similarity = torch.cat(near).numpy()
        self.embedding = torch.cat(small).numpy()
        self._soft_hits(~masked)

    def _centroids(
        self, unembedding: torch.Tensor, mean: torch.Tensor, masked: np.ndarray
    ) -> torch.Tensor:
        """Unit centroids (C, H) of the concepts' words; zero where the vocabulary has fewer than three of them."""
        out = torch.zeros(len(self.names), unembedding.shape[1], device=unembedding.device)
        self.members = []
        for c in range(len(self.names)):
            ids = np.flatnonzero((self.concept == c) & (self.hit >= 1) & ~masked)
            self.members.append(ids)
            if len(ids) >= 3:
                rows = unembedding[torch.as_tensor(ids, device=unembedding.device)].float() - mean
                rows = torch.nn.functional.normalize(rows, dim=1)
                out[c] = torch.nn.functional.normalize(rows.sum(0), dim=0)
        return out

    def _soft_hits(self, shown: np.ndarray) -> None:
        """Give ½ to words outside the lexicon that lie as near to a centroid as its own words do."""
        self.soft = np.full((len(self.lemma)), -1)
        if not len(self.names):
            return
        nearest = self.similarity.argmax(1)
        for c, ids in enumerate(self.members):
            if len(ids) < 10:
                continue
            column = self.similarity[:, c]
            # A member's own share in its centroid is taken out: r = ‖Σ‖, cos' = (r·cos − 1)/‖Σ − u‖.
            r = column[ids].sum()
            own = (r * column[ids] - 1) / np.sqrt(np.maximum(r * r - 2 * r * column[ids] + 1, 1e-9))
            level = np.quantile(column[shown], NEAR)
            if np.median(own) >= level:
                near = (column >= max(level, np.median(own))) & (nearest == c)
                self.soft[near & shown & (self.concept == -1) & (self.lemma >= 0)] = c

    def __call__(
        self, ids: np.ndarray, kurtosis: np.ndarray, null: np.ndarray | None = None
    ) -> Lists:
        """Score n lists of token ids (n, k), strongest first; `null` holds the sorted coherences of the nulls."""
        groups = lex.Groups(self.lemma[ids])
        hard = groups.weigh(self.concept[ids], self.hit[ids], len(self.names))
        soft = self.soft[ids]
        wide = groups.weigh(
            np.where(soft >= 0, soft, self.concept[ids]),
            np.where(soft >= 0, 0.5, self.hit[ids]),
            len(self.names),
        )
        score = lex.combine(wide.share, hard.words, wide.rival_share)
        same = (wide.concept == hard.concept) & (hard.concept >= 0)
        score = np.where(same, score, np.minimum(hard.score, score))
        rival = (wide.rival_share > lex.RIVAL * wide.share) & (hard.words >= 2)
        coherence = self.coherence(ids, hard.first)
        percentile = (
            np.searchsorted(null, coherence) / len(null) if null is not None else np.zeros(len(ids))
        )
        margin = self._margin(ids, hard.first)
        label = np.where(score >= self.threshold / 2, -2, -1)
        words, real = central(ids, hard.first)
        whole = (self.fragment[words] & real).sum(1) <= real.sum(1) / 2
        label = np.where((percentile >= COHERENT) & whole, -4, label)
        label = np.where(rival, -2, label)
        label = np.where(hard.repeated >= lex.LEXICAL, -3, label)
        label = np.where((score >= self.threshold) & (hard.concept >= 0), hard.concept, label)
        components = {
            "share": wide.share, "lexicon_share": hard.share, "words": hard.words, "rival_share": wide.rival_share,
            "repeated": hard.repeated, "distinct_words": hard.distinct, "embedding_margin": margin,
            "coherence": coherence, "coherence_percentile": percentile, "kurtosis": kurtosis,
        }  # fmt: skip
        return Lists(label, hard.concept, score, components)

    def coherence(self, ids: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Mean pairwise cosine of the first 20 distinct words of each list."""
        ids, use = central(ids, first)
        n = use.sum(1)
        total = np.zeros((len(ids), self.embedding.shape[1]), np.float32)
        for column in range(ids.shape[1]):
            total += self.embedding[ids[:, column]] * use[:, column, None]
        return np.where(n > 1, ((total**2).sum(1) - n) / np.maximum(n * (n - 1), 1), 0.0)

    def _margin(self, ids: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Mean cosine to the nearest centroid minus that to the runner-up, over the distinct words."""
        if len(self.names) < 2:
            return np.zeros(len(ids))
        mean = np.zeros((len(ids), len(self.names)), np.float32)
        for column in range(ids.shape[1]):
            mean += self.similarity[ids[:, column]] * first[:, column, None]
        ordered = np.sort(mean / np.maximum(first.sum(1), 1)[:, None], axis=1)
        return ordered[:, -1] - ordered[:, -2]


def central(ids: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first `COHERENCE_WORDS` distinct words of each list: ids (n, w), and bool (n, w) which of them are real."""
    at = np.argsort(~first, axis=1, kind="stable")[:, :COHERENCE_WORDS]
    return np.take_along_axis(ids, at, axis=1), np.take_along_axis(first, at, axis=1)
