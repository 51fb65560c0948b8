"""Stage 2: which poles stand for a concept, and what the scorer says of everything else.

**Null directions**, Gaussian mixtures of the layer's own columns, pass through the same masks and the same scorer; the
share of them that reaches the threshold is reported per layer, as it is. In a model of few neurons such mixtures are
dominated by its concept columns, and the share is high.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from conceptvec.concepts import ConceptSet, load_concepts
from conceptvec.config import Config
from conceptvec.extraction.projection import Projector
from conceptvec.extraction.stage import Candidates, Projections, null_directions
from conceptvec.records import SIGNS, Candidate, PoleScores, candidate_of
from conceptvec.scoring import lexicon as lex
from conceptvec.scoring.scorer import COHERENCE_WORDS, LABELS, Scorer
from conceptvec.text import html_table, listed, number, plain, words_of

if TYPE_CHECKING:
    from conceptvec.model.weights import Weights

NULL_DIRECTIONS = 200  # per layer; each gives two lists
SAME_GROUP = 0.5  # cosine of two lists' mean embeddings from which they are one group of `other`
BINS = 50
SHOWN_ROWS, SHOWN_TOKENS = 25, 8  # of a notebook cell


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
        pole_scores: of all poles that have a word of some concept.
    """

    entries: list[dict[str, Any]]
    labels: dict[str, int]
    filtered: int
    others: list[dict[str, Any]]
    null: dict[str, Any]
    histogram: dict[str, list[int]]
    candidates: Candidates
    concepts: ConceptSet = field(repr=False)
    seconds: float = 0.0
    pole_scores: PoleScores = field(default_factory=PoleScores.nothing, repr=False)

    @property
    def candidates_found(self) -> list[Candidate]:
        """The concept candidates as records, best first."""
        return [candidate_of(entry) for entry in self.entries]

    def __repr__(self) -> str:
        return f"Scored({len(self.entries)} concept candidates; {self.labels})"

    def _repr_html_(self) -> str:
        rows = [
            [
                entry["id"],
                entry["concept"],
                number(entry["score"], 2),
                words_of(token for token, _ in entry["top_tokens"][:SHOWN_TOKENS]),
            ]
            for entry in self.entries[:SHOWN_ROWS]
        ]
        answers = escape(listed(self.labels))
        return f"<p>{len(self.entries)} concept candidates; answers: {answers}</p>" + html_table(
            rows, ("vector", "concept", "score", "tokens")
        )


def score(candidates: Candidates, model: Weights, config: Config) -> Scored:
    """Stage 2 over everything that passes the filter.

    Args:
        candidates: Stage 1.
        model: the model (its unembedding and value vectors are read; no forward pass).
        config: concepts, score_threshold, min_kurtosis, seed.

    Returns:
        the candidates, the other answers counted, the null calibration.
    """
    start, concepts = time.perf_counter(), load_concepts(config.concepts)
    masked = candidates.masked
    scorer = Scorer(candidates.tokens, masked, model.unembedding, concepts, config.score_threshold)
    projector = Projector(model.unembedding, torch.as_tensor(masked), config.top_k)
    entries: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    labels: Counter[str] = Counter()
    histogram = {"poles": np.zeros(BINS, int), "null": np.zeros(BINS, int)}
    per_layer, filtered = [], 0
    pole_scores: list[PoleScores] = []
    for projections in tqdm(candidates.layers, desc="Stage 2: scoring", unit="layer"):
        null_lists, kurtosis = _null_lists(model, projector, projections.layer, config)
        null_coherence = np.sort(
            scorer.coherence(null_lists, lex.Groups(scorer.lemma[null_lists]).first)
        )
        null = scorer(null_lists, kurtosis, null_coherence)
        histogram["null"] += _histogram(null.score)
        reached = int((null.label >= 0).sum())
        per_layer.append({"layer": projections.layer, "lists": len(null_lists), "reached": reached})
        passing = np.flatnonzero(candidates.passing(projections, config.min_kurtosis))
        filtered += len(passing)
        for pole in SIGNS:
            ids, values = (x[passing] for x in projections.pole(pole))
            lists = scorer(ids, projections.kurtosis[passing], null_coherence)
            histogram["poles"] += _histogram(lists.score)
            pole_scores.append(
                PoleScores.of(
                    projections.layer,
                    projections.neurons[passing],
                    pole,
                    np.array([*scorer.names, ""])[lists.concept],
                    lists.score,
                )
            )
            labels.update(scorer.names[i] if i >= 0 else LABELS[int(i)] for i in lists.label)
            for row in np.flatnonzero((lists.label >= 0) | (lists.label == -4)):
                entry = _entry(
                    projections, int(passing[row]), pole, candidates.tokens, ids[row], values[row]
                )
                entry["score_components"] = {k: plain(v[row]) for k, v in lists.components.items()}
                entry["score_components"]["null_percentile"] = plain(
                    (null.score < lists.score[row]).mean()
                )
                entry["score"] = plain(lists.score[row])
                if lists.label[row] >= 0:
                    entries.append(entry | {"concept": scorer.names[lists.label[row]]})
                else:
                    others.append(
                        entry
                        | {"words": ids[row][lex.Groups(scorer.lemma[ids[row]][None]).first[0]]}
                    )
    entries.sort(key=lambda e: (-e["score"], e["id"]))
    total = sum(x["lists"] for x in per_layer)
    reached = sum(x["reached"] for x in per_layer)
    return Scored(
        entries, dict(sorted(labels.items())), filtered, group(others, scorer.embedding, candidates.tokens),
        {"lists": total, "reached_threshold": reached, "share": reached / max(total, 1), "layers": per_layer},
        {k: v.tolist() for k, v in histogram.items()}, candidates, concepts, round(time.perf_counter() - start, 3),
        PoleScores.joined(pole_scores),
    )  # fmt: skip


def _histogram(scores: np.ndarray) -> np.ndarray:
    return np.histogram(scores, BINS, (0, 1))[0]


def _null_lists(
    model: Weights, projector: Projector, layer: int, config: Config
) -> tuple[np.ndarray, np.ndarray]:
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


def group(
    others: list[dict[str, Any]], embedding: np.ndarray, tokens: list[str]
) -> list[dict[str, Any]]:
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
            home = {
                "mean": mean,
                "ids": [],
                "words": [],
                "coherence": entry["score_components"]["coherence"],
            }
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
