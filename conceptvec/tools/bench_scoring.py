"""How long Stage 2 takes at the size of Gemma 3 1B, over a synthetic vocabulary."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from conceptvec.concepts import ConceptSet, load_concepts
from conceptvec.model.memory import peak_memory
from conceptvec.scoring.scorer import Scorer

LAYERS, NEURONS, VOCABULARY, HIDDEN, TOP_K = 26, 6912, 262_144, 1152, 50
THRESHOLD = 0.75
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def bench_scoring(
    layers: int = LAYERS, vocabulary: int = VOCABULARY, hidden: int = HIDDEN
) -> dict[str, Any]:
    """Score random lists, layer by layer as a run does, of the lexicon's words and random letters.

    Returns:
        seconds to tabulate the vocabulary, seconds to score the lists, lists per second, processor
        seconds of both (what counts on a busy machine), the share of the random lists that reach
        the threshold, and the largest resident size of this process in bytes.
    """
    rng = np.random.default_rng(0)
    concepts = load_concepts(None, with_prompts=False)
    tokens = _tokens(concepts, vocabulary, rng)
    generator = torch.Generator().manual_seed(0)
    unembedding = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.bfloat16)

    start, processor_start = time.perf_counter(), time.process_time()
    nothing = np.zeros(vocabulary, bool)
    scorer = Scorer(tokens, nothing, unembedding, concepts, THRESHOLD)
    tabulated = time.perf_counter()
    null_coherence = np.linspace(-1, 1, 400)
    reached = 0
    for _ in range(layers):
        for _ in "+-":
            ids = rng.integers(0, vocabulary, (NEURONS, TOP_K))
            reached += int((scorer(ids, np.ones(NEURONS), null_coherence).label >= 0).sum())
    seconds = time.perf_counter() - tabulated
    lists = 2 * NEURONS * layers
    return {
        "lists": lists,
        "top_k": TOP_K,
        "vocabulary": vocabulary,
        "tabulate_seconds": round(tabulated - start, 3),
        "score_seconds": round(seconds, 3),
        "lists_per_second": round(lists / seconds),
        "processor_seconds": round(time.process_time() - processor_start, 3),
        "reached": reached / lists,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak_memory(),
    }


def _tokens(concepts: ConceptSet, vocabulary: int, rng: np.random.Generator) -> list[str]:
    """The lexicon's words, then random ones, each in about three forms as in Gemma's vocabulary."""
    known = [
        f" {word}"
        for concept in concepts.concepts
        for words in concept.words.values()
        for word in words
    ]
    random = ["".join(letters) for letters in rng.choice(LETTERS, (vocabulary // 3, 6))]
    forms = [form for word in random for form in (word, f" {word}", f" {word.title()}")]
    return (known + forms)[:vocabulary]
