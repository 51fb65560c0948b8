"""The model writes: running text without a data set, in which the concepts' words occur.

A text begins with an **opening**, one word of a concept or nothing at all, and goes on as the model
goes on: sampled at temperature 1 with nothing cut off, so that it is a sample of what the model
itself expects. The opening gives a subject, not a sentence to fill in; its tokens are never scored.

The rows of a part are written side by side, one token of each at every step, over the cache of keys
and values. They all begin at position 0 and nothing is padded: while a row still has tokens of its
opening to go, these are taken instead of what was drawn (`sampling`).

A text **ends** where the model ends it, with any special token; the end is dropped, and so is what
the row goes on to draw behind it. Every other text is cut after `length` tokens. One more token is
drawn to see whether the last word goes on, and the text is cut back to the end of a whole word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.effects.passages import Passages
from conceptvec.effects.sampling import UNIFORMS, Draw, drawer
from conceptvec.model.memory import Batch
from conceptvec.model.network import check_finite

if TYPE_CHECKING:
    from conceptvec.model.network import Model

LENGTH = 40  # tokens that are written after the longest opening of a part


@dataclass(frozen=True)
class WrittenPart:
    """What one part of a written text is made of.

    Attributes:
        openings: token ids, the tokenizer's start first, at least one token each.
        seed: the seed of this part's draws (`part_seed`).
    """

    openings: tuple[tuple[int, ...], ...]
    seed: int


def part_seed(seed: int, stream: str, part: int) -> int:
    """The seed of one part of a named stream of random numbers."""
    digest = hashlib.sha256(f"{seed}/{stream}/{part}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # generators take 63 bits


def ending_tokens(model: Model) -> list[int]:
    """The tokens that end a text: the model's own, and every special token of the tokenizer."""
    generation: Any = getattr(model.hf, "generation_config", None)
    named = getattr(generation, "eos_token_id", None)
    listed = named if isinstance(named, list | tuple) else [named]
    special = set(model.tokenizer.all_special_ids) | {end for end in listed if end is not None}
    return sorted(end for end in special if end < model.vocab_size)


def write(model: Model, part: WrittenPart, continues: np.ndarray, length: int = LENGTH) -> Passages:
    """Write one part; each opening gives one passage and is one document.

    Args:
        model: the model.
        part: openings and seed.
        continues: whether a token goes on with the word before it: bool (V,).
        length: tokens written after the longest opening.

    A text that ends with its opening leaves no passage. How many rows run side by side changes
    nothing but rounding: every row has its own random numbers.

    Raises:
        RunError: the forward pass gives NaN or infinity, or not even one row fits into memory.
    """
    longest = max(len(opening) for opening in part.openings)
    generator = torch.Generator().manual_seed(part.seed)
    # One more step than tokens that are kept: it shows whether the last word goes on.
    steps = longest + length + 1
    uniforms = torch.rand(len(part.openings), steps, UNIFORMS, generator=generator)
    draw = drawer(model)

    def compute(rows: slice) -> np.ndarray:
        return _write_rows(model, draw, part.openings[rows], uniforms[rows])

    batch = Batch(len(part.openings), "texts")
    ids = np.concatenate(batch.map(len(part.openings), compute))
    return _as_passages(ids, part.openings, ending_tokens(model), continues)


@torch.inference_mode()
def _write_rows(
    model: Model, draw: Draw, openings: Sequence[Sequence[int]], uniforms: torch.Tensor
) -> np.ndarray:
    """Every row's opening and what follows: int32 (B, T), all rows of one length."""
    rows, width = len(openings), uniforms.shape[1]
    lengths = torch.tensor([len(opening) for opening in openings])
    given = torch.zeros(rows, width, dtype=torch.long)
    for row, opening in enumerate(openings):
        given[row, : len(opening)] = torch.tensor(opening)
    is_given = (torch.arange(width) < lengths[:, None]).to(model.device)
    given, uniforms = given.to(model.device), uniforms.to(model.device)

    # What all rows have in common is read at once, the rest is a column for each step.
    shortest = int(lengths.min())
    columns = list(given[:, :shortest].unbind(1))
    cache = _cache(model, width)
    states = given.new_zeros(0)
    for step in range(shortest, width):
        states = next_states(model, columns, cache)
        drawn = draw(states, uniforms[:, step])
        columns.append(torch.where(is_given[:, step], given[:, step], drawn))
    check_finite(states, model.n_layers - 1)
    return torch.stack(columns, 1).cpu().numpy().astype(np.int32)


def next_states(model: Model, columns: Sequence[torch.Tensor], cache: Any) -> torch.Tensor:
    """The states (B, H) that decide what follows the columns (B,), all but one in the cache."""
    is_new = cache is None or cache.get_seq_length() == 0
    fed = torch.stack(list(columns if is_new else columns[-1:]), 1)
    output = model.decoder(input_ids=fed, past_key_values=cache, use_cache=cache is not None)
    return output.last_hidden_state[:, -1]


def _cache(model: Model, length: int) -> Any:
    """A cache of keys and values for texts of a length, None where each step reads all of a text.

    Before transformers 4.53 the cache is wrong beyond a sliding window. A real model's window is
    longer than any text here; the demo's of 16 tokens is not.
    """
    import transformers

    version = tuple(int(number) for number in transformers.__version__.split(".")[:2])
    window = getattr(model.hf.config.get_text_config(), "sliding_window", None)
    if version < (4, 53) and window is not None and length > window:
        return None
    return transformers.DynamicCache()


def _as_passages(
    ids: np.ndarray, openings: Sequence[Sequence[int]], endings: list[int], continues: np.ndarray
) -> Passages:
    """Rows as passages that end with a whole word, without those in which nothing was written."""
    is_end = np.isin(ids, endings)
    kept: list[tuple[int, int, np.ndarray]] = []
    for row, opening in enumerate(openings):
        ends = np.flatnonzero(is_end[row, len(opening) :])
        end = len(opening) + int(ends[0]) if len(ends) else _last_boundary(ids[row], continues)
        # The token behind the first has nothing before it whose effect could be told: never scored.
        scored_from = max(len(opening), 2)
        if end > scored_from:
            kept.append((row, scored_from, ids[row, :end]))
    return Passages.of_lists(
        passages=[text for _, _, text in kept],
        scored_from=[scored_from for _, scored_from, _ in kept],
        documents=[row for row, _, _ in kept],
    )


def _last_boundary(ids: np.ndarray, continues: np.ndarray) -> int:
    """Where a cut text ends: before the last token that does not go on with a word."""
    boundaries = np.flatnonzero(~continues[ids])
    return int(boundaries[-1]) if len(boundaries) else len(ids) - 1
