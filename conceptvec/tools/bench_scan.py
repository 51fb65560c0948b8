"""Key `scan` of ``conceptvec bench``: writing the text, and the scan over it.

* The **scan** (forward, backward, sums) against one clean forward pass over the same passages: the
  decoder, and the logits of the scored words.
* **Writing** against the bare matrix products that it needs: at every step the projections of all
  layers for one token a row, and the unembedding.

Weights and tokens are random, and every word counts as known; as many tokens are words of twelve
concepts as in text that Gemma 3 270M writes. Seconds are those of a text of `WHOLE_TEXT` tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.effects.gradients import LOGIT_ROWS, TOKENS, Gradients
from conceptvec.effects.moved import draw_moved, draw_poles, draws_for, side_by_side
from conceptvec.effects.passages import Passages
from conceptvec.effects.rows import Targets, targets_of
from conceptvec.effects.stage import HELD_OUT, SAMPLE, SAMPLE_DRAWS
from conceptvec.effects.writing import WrittenPart, write
from conceptvec.errors import RunError
from conceptvec.model.device import now
from conceptvec.tools.bench_model import (
    BOS,
    FIRST_WORD,
    GEMMA_270M,
    TOLERANCE,
    padded,
    random_model,
    random_passages,
)

if TYPE_CHECKING:
    from conceptvec.model.network import Model

WHOLE_TEXT = 58_000  # tokens for which seconds are given
CONCEPTS, WORDS_OF_ONE = 12, 40
WORD_SHARE = 0.04  # of the tokens are words of a concept
CANDIDATES = 250  # whose vectors are moved
PASSAGES = 96
TEXTS, NEW_TOKENS = 256, 8  # rows that are written side by side, as in a run, and tokens of each
REPEATS = 3


def bench_scan(
    device: str = "cpu",
    dtype: str = "float32",
    shape: Mapping[str, int] | None = None,
    passages: int = PASSAGES,
    texts: int = TEXTS,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Seconds of text and scan, and their ratios to what they cannot do without.

    Args:
        device: cpu, cuda, cuda:N or mps.
        dtype: float32 or bfloat16.
        shape: changes of the shape of Gemma 3 270M.
        passages: that are scanned.
        texts: rows that are written side by side.
        repeats: turns of which the medians are taken.

    Returns:
        ``ratio_to_forward`` (scan), ``ratio_text_to_products``, and the seconds of text, scan and
        what they are compared with, for `WHOLE_TEXT` tokens.

    Raises:
        RunError: the scan and the clean pass disagree.
    """
    model = random_model(device, getattr(torch, dtype), shape)
    text = random_passages(passages, model.vocab_size)
    targets = _targets(text)
    gradients = _gradients(model)
    part = WrittenPart(_openings(texts, model.vocab_size), seed=0)
    steps = len(part.openings[0]) + NEW_TOKENS + 1
    variants: dict[str, Callable[[], Any]] = {
        "forward": lambda: _forward(model, text, targets),
        "scan": lambda: _scan(gradients, text, targets),
        "products": lambda: _products(model, texts, steps),
        "text": lambda: write(model, part, np.zeros(model.vocab_size, bool), NEW_TOKENS),
    }

    # A first turn, which is not timed, shows that both passes say the same.
    first = {name: variant() for name, variant in variants.items()}
    difference = float(np.abs(first["scan"] - first["forward"]).max())
    if not difference <= TOLERANCE[model.dtype]:
        raise RunError(
            f"bench: the scan and a clean pass differ by {difference:.3g} nats; run conceptvec "
            "selfcheck"
        )
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            start = now(model.device)
            variant()
            seconds[name].append(now(model.device) - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    of_scan = WHOLE_TEXT / len(text.ids)
    of_text = WHOLE_TEXT / (texts * NEW_TOKENS)
    return {
        "ratio_to_forward": median["scan"] / median["forward"],
        "ratio_text_to_products": median["text"] / median["products"],
        "seconds_text": median["text"] * of_text,
        "seconds_scan": median["scan"] * of_scan,
        "seconds_products": median["products"] * of_text,
        "seconds_forward": median["forward"] * of_scan,
        "tokens": WHOLE_TEXT,
        "tokens_scanned": len(text.ids),
        "tokens_written": texts * NEW_TOKENS,
        "words": len(targets),
        "moved": gradients.size.moved,
        "spread": max(max(times) / min(times) - 1 for times in seconds.values()),
        "repeats": repeats,
        "dtype": dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "shape": {**GEMMA_270M, **(shape or {})},
        "largest_difference": difference,
    }


def _targets(text: Passages) -> Targets:
    """Random tokens as words of the concepts, none before a passage's third token."""
    stream = np.random.default_rng(33)
    passage = np.repeat(np.arange(len(text)), text.lengths)
    position = np.arange(len(text.ids)) - text.starts[passage]
    chosen = np.flatnonzero((position >= 2) & (stream.random(len(position)) < WORD_SHARE))
    word = stream.integers(0, CONCEPTS * WORDS_OF_ONE, len(chosen))
    return targets_of(passage[chosen], position[chosen], word, seed=0)


def _gradients(model: Model) -> Gradients:
    """The scan of all layers, with as many moved vectors as a run's; every word counts as known."""
    layers, neurons = range(model.n_layers), model.intermediate_size
    candidates = draw_poles(CANDIDATES, layers, neurons, seed=34)
    sample = draw_poles(SAMPLE, layers, neurons, seed=0)
    taken = {(pole.layer, pole.neuron) for pole in candidates}
    draws = draws_for(len(candidates)) + HELD_OUT
    moved = side_by_side(
        draw_moved(candidates, draws, neurons, taken, seed=0),
        draw_moved(sample, SAMPLE_DRAWS + HELD_OUT, neurons, taken, seed=0),
        len(candidates),
    )
    every_token = torch.ones(model.vocab_size, dtype=torch.bool)
    return Gradients(model, layers, every_token, moved)


def _scan(gradients: Gradients, text: Passages, targets: Targets) -> np.ndarray:
    """The scan; log-probabilities of the words, (n,)."""
    numbers = np.arange(len(text))
    effects, _ = gradients.part([text.passage(int(i)) for i in numbers], numbers, targets)
    return effects.log_p


@torch.inference_mode()
def _forward(model: Model, text: Passages, targets: Targets) -> np.ndarray:
    """The clean pass: decoder over all passages, log-probabilities of the words, (n,)."""
    order = np.argsort(text.lengths, kind="stable")
    size = max(1, TOKENS[model.device.type] // int(text.lengths.max()))
    log_p = np.zeros(len(targets))
    for start in range(0, len(order), size):
        members = order[start : start + size]
        inside = np.flatnonzero(np.isin(targets.passage, members))
        row_of = np.zeros(len(text), np.int64)
        row_of[members] = np.arange(len(members))
        rows = torch.from_numpy(row_of[targets.passage[inside]]).to(model.device)
        at = torch.from_numpy(targets.position[inside]).to(model.device)

        ids = padded(text, members).to(model.device)
        hidden = model.decoder(input_ids=ids, use_cache=False).last_hidden_state
        states, words = hidden[rows, at - 1].split(LOGIT_ROWS), ids[rows, at].split(LOGIT_ROWS)
        values = [_log_p(model, part, of_part) for part, of_part in zip(states, words, strict=True)]
        log_p[inside] = np.concatenate(values) if values else 0.0
    return log_p


def _log_p(model: Model, states: torch.Tensor, words: torch.Tensor) -> np.ndarray:
    """Log-probabilities of words (n,) after normalised states (n, H)."""
    logits = (states @ model.unembedding.T).float()
    of_words = logits.gather(1, words[:, None])[:, 0]
    return (of_words - logits.logsumexp(1)).cpu().double().numpy()


def _openings(texts: int, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """One random word behind the beginning of each text."""
    words = np.random.default_rng(35).integers(FIRST_WORD, vocabulary, texts)
    return tuple((BOS, int(word)) for word in words)


@torch.inference_mode()
def _products(model: Model, rows: int, steps: int) -> None:
    """The products of `steps` tokens of each row: every matrix of the decoder."""
    matrices = [p for block in model.layers for p in block.parameters() if p.ndim == 2]
    states = {
        size: torch.ones(rows, size, dtype=model.dtype, device=model.device)
        for size in {matrix.shape[1] for matrix in matrices} | {model.hidden_size}
    }
    for _ in range(steps - 1):  # the last token is drawn and never read
        for matrix in matrices:
            _ = states[matrix.shape[1]] @ matrix.T
        _ = states[model.hidden_size] @ model.unembedding.T
