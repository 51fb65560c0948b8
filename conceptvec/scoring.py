"""Stage 2: which poles stand for a concept, from the pattern of their tokens and the model's own unembedding.

The score is the lexical rule of `lexicon`, with one addition where a model is at hand: a word that the lexicon lacks
counts ½ towards the share (never towards the three words that a concept needs) when its embedding lies as near to the
concept's centroid as half of the concept's own words do, each judged without itself.

**Null directions**, Gaussian mixtures of the layer's own columns, pass through the same masks and the same scorer; the
share of them that reaches the threshold is reported per layer, as it is. In a model of few neurons such mixtures are
dominated by its concept columns, and the share is high.

Recorded with every list, and not in the score: coherence (mean pairwise cosine of the distinct top words on
mean-centred embeddings; its percentile among the nulls), because lists of any theme cohere and it cannot tell which
theme; the embedding margin, because what it says of words is in the soft hits already; kurtosis, because it is large
for one-word lists too. Coherence decides the answer `other`: a list outside the concepts, more coherent than 99 % of
the nulls, and made of whole words by half at least (pieces of words that a model hardly trained lie close together).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from conceptvec import lexicon as lex
from conceptvec.concepts import ConceptSet, load_concepts
from conceptvec.config import Config
from conceptvec.extraction import Candidates, Projections, null_directions
from conceptvec.projection import Projector
from conceptvec.store import plain

if TYPE_CHECKING:
    from conceptvec.models import Model

NULL_DIRECTIONS = 200  # per layer; each gives two lists
COHERENT = 0.99  # percentile of the null from which a list outside the concepts is called `other`
NEAR = 0.995  # a soft hit is among the nearest half percent of the vocabulary
COHERENCE_WORDS, SKETCH = 20, 128  # words compared; dimensions of the random projection used for that
SAME_GROUP = 0.5  # cosine of two lists' mean embeddings from which they are one group of `other`
BINS = 50


@dataclass
class Lists:
    """What the scorer says of n lists; arrays of length n."""

    label: np.ndarray  # index of the concept, or below zero: LABELS
    concept: np.ndarray
    score: np.ndarray
    components: dict[str, np.ndarray]


LABELS = {-1: "none", -2: "mixed", -3: "lexical", -4: "other"}


@dataclass
class Scored:
    """The concept candidates and what the scorer said of everything else.

    Attributes:
        entries: one dict per concept candidate (id, layer, neuron, pole, concept, score, score_components, top_tokens,
            opposite_tokens).
        labels: number of poles per answer.
        others: groups of coherent poles outside the concepts.
        null: what the null directions gave.
        histogram: counts of scores in 50 bins of [0, 1], of the poles and of the nulls.
    """

    entries: list[dict[str, Any]]
    labels: dict[str, int]
    filtered: int
    others: list[dict[str, Any]]
    null: dict[str, Any]
    histogram: dict[str, list[int]]
    candidates: Candidates
    concepts: ConceptSet = field(repr=False)

    def __repr__(self) -> str:
        return f"Scored({len(self.entries)} concept candidates; {self.labels})"

    def _repr_html_(self) -> str:
        from conceptvec.display import scored_html

        return scored_html(self)


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
        self, tokens: list[str], masked: np.ndarray, unembedding: torch.Tensor, concepts: ConceptSet, threshold: float
    ) -> None:
        self.lexicon = lex.Lexicon.build(concepts)
        self.names, self.threshold = self.lexicon.names, threshold
        found = (self.lexicon.find(t) if not m else ("", -1, 0.0) for t, m in zip(tokens, masked, strict=True))
        self.lemma, self.concept, self.hit = lex.encode(found)
        self.fragment = np.array([t[:1].islower() for t in tokens])  # goes on with a word, or is a piece of one
        shown = torch.as_tensor(~masked, device=unembedding.device)
        size = unembedding.shape[1]
        mean = torch.zeros(size, device=unembedding.device)
        for rows, use in zip(unembedding.split(2**15), shown.split(2**15), strict=True):
            mean += rows[use].float().sum(0) / shown.sum()
        sketch = torch.eye(size)
        if size > SKETCH:
            sketch = torch.randn(size, SKETCH, generator=torch.Generator().manual_seed(0)) / math.sqrt(SKETCH)
        sketch = sketch.to(unembedding.device)
        centroids, near, small = self._centroids(unembedding, mean, masked), [], []
        for rows in unembedding.split(2**15):
            unit = torch.nn.functional.normalize(rows.float() - mean, dim=1)
            near.append((unit @ centroids.T).cpu())
            small.append(torch.nn.functional.normalize(unit @ sketch, dim=1).cpu())
        self.similarity = torch.cat(near).numpy()
        self.embedding = torch.cat(small).numpy()
        self._soft_hits(~masked)

    def _centroids(self, unembedding: torch.Tensor, mean: torch.Tensor, masked: np.ndarray) -> torch.Tensor:
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

    def __call__(self, ids: np.ndarray, kurtosis: np.ndarray, null: np.ndarray | None = None) -> Lists:
        """Score n lists of token ids (n, k), strongest first; `null` holds the sorted coherences of the nulls."""
        groups = lex.Groups(self.lemma[ids])
        hard = groups.weigh(self.concept[ids], self.hit[ids], len(self.names))
        soft = self.soft[ids]
        wide = groups.weigh(
            np.where(soft >= 0, soft, self.concept[ids]), np.where(soft >= 0, 0.5, self.hit[ids]), len(self.names)
        )
        score = lex.combine(wide.share, hard.words, wide.rival_share)
        same = (wide.concept == hard.concept) & (hard.concept >= 0)
        score = np.where(same, score, np.minimum(hard.score, score))
        rival = (wide.rival_share > lex.RIVAL * wide.share) & (hard.words >= 2)
        coherence = self.coherence(ids, hard.first)
        percentile = np.searchsorted(null, coherence) / len(null) if null is not None else np.zeros(len(ids))
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


def score(candidates: Candidates, model: Model, config: Config) -> Scored:
    """Stage 2 over everything that passes the filter.

    Args:
        candidates: Stage 1.
        model: the model (its unembedding and value vectors are read; no forward pass).
        config: concepts, score_threshold, min_kurtosis, seed.

    Returns:
        the candidates, the other answers counted, the null calibration.
    """
    concepts = load_concepts(config.concepts)
    masked = candidates.masked
    scorer = Scorer(candidates.tokens, masked, model.unembedding, concepts, config.score_threshold)
    projector = Projector(model.unembedding, torch.as_tensor(masked), config.top_k)
    entries: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    labels: Counter[str] = Counter()
    histogram = {"poles": np.zeros(BINS, int), "null": np.zeros(BINS, int)}
    per_layer, filtered = [], 0
    for projections in tqdm(candidates.layers, desc="Stage 2: scoring", unit="layer"):
        null_lists, kurtosis = _null_lists(model, projector, projections.layer, config)
        null_coherence = np.sort(scorer.coherence(null_lists, lex.Groups(scorer.lemma[null_lists]).first))
        null = scorer(null_lists, kurtosis, null_coherence)
        histogram["null"] += _histogram(null.score)
        reached = int((null.label >= 0).sum())
        per_layer.append({"layer": projections.layer, "lists": len(null_lists), "reached": reached})
        passing = np.flatnonzero(candidates.passing(projections, config.min_kurtosis))
        filtered += len(passing)
        for pole in "+-":
            ids, values = (x[passing] for x in projections.pole(pole))
            lists = scorer(ids, projections.kurtosis[passing], null_coherence)
            histogram["poles"] += _histogram(lists.score)
            labels.update(scorer.names[i] if i >= 0 else LABELS[int(i)] for i in lists.label)
            for row in np.flatnonzero((lists.label >= 0) | (lists.label == -4)):
                entry = _entry(projections, int(passing[row]), pole, candidates.tokens, ids[row], values[row])
                entry["score_components"] = {k: plain(v[row]) for k, v in lists.components.items()}
                entry["score_components"]["null_percentile"] = plain((null.score < lists.score[row]).mean())
                entry["score"] = plain(lists.score[row])
                if lists.label[row] >= 0:
                    entries.append(entry | {"concept": scorer.names[lists.label[row]]})
                else:
                    others.append(entry | {"words": ids[row][lex.Groups(scorer.lemma[ids[row]][None]).first[0]]})
    entries.sort(key=lambda e: (-e["score"], e["id"]))
    total = sum(x["lists"] for x in per_layer)
    reached = sum(x["reached"] for x in per_layer)
    return Scored(
        entries, dict(sorted(labels.items())), filtered, group(others, scorer.embedding, candidates.tokens),
        {"lists": total, "reached_threshold": reached, "share": reached / max(total, 1), "layers": per_layer},
        {k: v.tolist() for k, v in histogram.items()}, candidates, concepts,
    )  # fmt: skip


def central(ids: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first `COHERENCE_WORDS` distinct words of each list: ids (n, w), and bool (n, w) which of them are real."""
    at = np.argsort(~first, axis=1, kind="stable")[:, :COHERENCE_WORDS]
    return np.take_along_axis(ids, at, axis=1), np.take_along_axis(first, at, axis=1)


def _histogram(scores: np.ndarray) -> np.ndarray:
    return np.histogram(scores, BINS, (0, 1))[0]


def _null_lists(model: Model, projector: Projector, layer: int, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Both poles of the layer's null directions: (2·n, k) token ids, and their readouts' kurtosis."""
    directions = null_directions(model, layer, config.fold, NULL_DIRECTIONS, config.seed)
    found = projector(directions, config.batch_size)
    return torch.cat([found.top_ids, found.bottom_ids]).numpy(), found.kurtosis.repeat(2).numpy()


def vector_id(layer: int, neuron: int, pole: str) -> str:
    """The name of one pole of one value vector, as in ``L12_N0345+``."""
    return f"L{layer:02d}_N{neuron:04d}{pole}"


def _entry(
    p: Projections, row: int, pole: str, tokens: list[str], ids: np.ndarray, values: np.ndarray
) -> dict[str, Any]:
    neuron = int(p.neurons[row])
    opposite = (x[row] for x in p.pole("-" if pole == "+" else "+"))
    return {
        "id": vector_id(p.layer, neuron, pole), "layer": p.layer, "neuron": neuron, "pole": pole,
        "top_tokens": [[tokens[i], plain(v)] for i, v in zip(ids, values, strict=True)],
        "opposite_tokens": [[tokens[i], plain(v)] for i, v in zip(*opposite, strict=True)],
    }  # fmt: skip


def group(others: list[dict[str, Any]], embedding: np.ndarray, tokens: list[str]) -> list[dict[str, Any]]:
    """Coherent lists outside the concepts, gathered by cosine and named by their central tokens, largest first.

    The most coherent list opens a group; a list joins the first group whose opener's mean embedding is within
    `SAME_GROUP` of its own. A group's central tokens are nearest to its mean, weighted by how many lists have them.

    Args:
        others: entries with their distinct words as token ids under ``words``.
        embedding: unit rows (V, s).
        tokens: text of every token.
    """
    groups: list[dict[str, Any]] = []
    for entry in sorted(others, key=lambda e: (-e["score_components"]["coherence"], e["id"])):
        words = entry["words"][:COHERENCE_WORDS]
        mean = _unit(embedding[words].sum(0))
        home = next((g for g in groups if float(g["mean"] @ mean) >= SAME_GROUP), None)
        if home is None:
            home = {"mean": mean, "ids": [], "words": [], "coherence": entry["score_components"]["coherence"]}
            groups.append(home)
        home["ids"].append(entry["id"])
        home["words"].append(words)
    for home in groups:
        ids, count = np.unique(np.concatenate(home.pop("words")), return_counts=True)
        near = embedding[ids] @ _unit((embedding[ids] * count[:, None]).sum(0)) * count
        best = dict.fromkeys(tokens[ids[i]].strip() for i in np.lexsort((ids, -near)))
        home["tokens"] = list(best)[:10]
        home["name"] = ", ".join(home["tokens"][:3])
        del home["mean"]
    return sorted(groups, key=lambda g: (-len(g["ids"]), g["name"]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
