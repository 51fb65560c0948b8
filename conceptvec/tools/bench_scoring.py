"""How long Stage 2 takes at the size of Gemma 3 1B: all poles of all layers over a synthetic vocabulary."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from conceptvec.concepts import load_concepts
from conceptvec.scoring.scorer import Scorer

LAYERS, NEURONS, VOCABULARY, HIDDEN, TOP_K = 26, 6912, 262_144, 1152, 50


def bench_scoring(
    layers: int = LAYERS, vocabulary: int = VOCABULARY, hidden: int = HIDDEN
) -> dict[str, Any]:
    """Score random lists, layer by layer as a run does, over the lexicon's words and random letters.

    Like Gemma's, the vocabulary writes a word in about three ways: with a space, without, with a capital.

    Returns:
        seconds to tabulate the vocabulary, seconds to score the lists, lists per second, processor seconds of both
        (what counts on a busy machine), the share of the random lists that reach the threshold, and the largest
        resident size of this process in bytes.
    """
    from conceptvec.model.memory import peak_memory

    rng = np.random.default_rng(0)
    concepts = load_concepts(None, with_prompts=False)
    listed = [f" {w}" for c in concepts.concepts for words in c.words.values() for w in words]
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    made = ["".join(x) for x in rng.choice(letters, (vocabulary // 3, 6))]
    tokens = (listed + [form for w in made for form in (w, f" {w}", f" {w.title()}")])[:vocabulary]
    unembedding = torch.randn(
        vocabulary, hidden, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16
    )
    start, used = time.perf_counter(), time.process_time()
    scorer = Scorer(tokens, np.zeros(vocabulary, bool), unembedding, concepts, 0.75)
    tabulated = time.perf_counter()
    null = np.linspace(-1, 1, 400)
    reached = 0
    for _ in range(layers):
        for _ in "+-":
            ids = rng.integers(0, vocabulary, (NEURONS, TOP_K))
            reached += int((scorer(ids, np.ones(NEURONS), null).label >= 0).sum())
    seconds = time.perf_counter() - tabulated
    lists = 2 * NEURONS * layers
    return {
        "lists": lists, "top_k": TOP_K, "vocabulary": vocabulary, "tabulate_seconds": round(tabulated - start, 3),
        "score_seconds": round(seconds, 3), "lists_per_second": round(lists / seconds),
        "processor_seconds": round(time.process_time() - used, 3), "reached": reached / lists,
        "threads": torch.get_num_threads(), "peak_memory_bytes": peak_memory(),
    }  # fmt: skip
