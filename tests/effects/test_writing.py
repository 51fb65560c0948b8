"""The model's text: drawn with the model's own probabilities, the same however it is batched."""

import dataclasses

import numpy as np
import pytest
import torch

from conceptvec.effects.passages import Passages
from conceptvec.effects.writing import (
    WrittenPart,
    _as_passages,
    _cache,
    ending_tokens,
    next_states,
    part_seed,
    write,
)
from conceptvec.model.memory import Batch
from tests.conftest import make_hf, wrap

FAMILIES = ["gemma3_text", "gemma3", "gemma2", "llama", "mistral", "qwen2", "qwen3"]
OPENINGS = ((2,), (2, 9), (2, 10, 11), (2, 12, 13, 14)) * 3
NOTHING_CONTINUES = np.zeros(300, bool)


def exact(family: str = "gemma3_text", **changes):
    """A tiny model in float64, in which batches of any size give the same text."""
    return wrap(make_hf(family, **changes).double(), family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", [4, 64])
def test_every_step_sees_the_whole_text(family, window):
    """Against a forward pass over the finished text; a window of 4 is shorter than the text."""
    windowed = family.startswith("gemma") or family == "mistral"
    model = exact(family, **({"sliding_window": window} if windowed else {}))
    ids = torch.randint(9, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.decoder(input_ids=ids, use_cache=False).last_hidden_state
        cache = _cache(model, ids.shape[1])
        for step in range(3, ids.shape[1]):
            states = next_states(model, ids[:, :step].unbind(1), cache)
            torch.testing.assert_close(states, expected[:, step - 1], rtol=1e-5, atol=2e-5)


def test_the_first_tokens_have_the_models_probabilities():
    model = exact()
    n = 4000
    openings = ((2, 20),) * n
    passages = write(model, WrittenPart(openings, part_seed(0, "x", 0)), NOTHING_CONTINUES, 1)
    with torch.inference_mode():
        probabilities = model.hf(input_ids=torch.tensor([[2, 20]])).logits[0, -1].softmax(0)
    ends = ending_tokens(model)
    starts = passages.starts
    observed = np.bincount(passages.ids[starts + 2], minlength=len(probabilities))
    expected = n * probabilities.numpy()
    expected[ends] = 0
    frequent = expected > 5
    chi2 = ((observed - expected)[frequent] ** 2 / expected[frequent]).sum()
    degrees = frequent.sum()
    assert abs(chi2 - degrees) < 5 * np.sqrt(2 * degrees)


def test_texts_begin_with_their_openings():
    passages = write(exact(), WrittenPart(OPENINGS, 1), NOTHING_CONTINUES, 8)
    for i in range(len(passages)):
        opening = OPENINGS[passages.documents[i]]
        assert tuple(passages.passage(i)[: len(opening)]) == opening
        assert passages.scored_from[i] == max(len(opening), 2)


def test_texts_hold_no_token_that_ends_one():
    model = exact()
    passages = write(model, WrittenPart(OPENINGS, 1), NOTHING_CONTINUES, 8)
    written = [
        passages.passage(i)[len(OPENINGS[passages.documents[i]]) :] for i in range(len(passages))
    ]
    assert not np.isin(np.concatenate(written), ending_tokens(model)).any()


def test_texts_that_are_cut_end_at_one_length():
    passages = write(exact(), WrittenPart(OPENINGS, 1), NOTHING_CONTINUES, 8)
    assert passages.lengths.max() == max(map(len, OPENINGS)) + 8


def test_the_same_seed_writes_the_same_text():
    model = exact()
    texts = [
        write(model, WrittenPart(OPENINGS, seed), NOTHING_CONTINUES).digest for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_smaller_batches_write_the_same_text(monkeypatch):
    model = exact()
    whole = write(model, WrittenPart(OPENINGS, 5), NOTHING_CONTINUES)
    monkeypatch.setattr(
        "conceptvec.effects.writing.Batch", lambda size, what: Batch(max(1, size // 5), what)
    )
    assert write(model, WrittenPart(OPENINGS, 5), NOTHING_CONTINUES).digest == whole.digest


def test_streams_and_parts_have_seeds_of_their_own():
    seeds = {
        part_seed(seed, stream, part)
        for seed in (0, 1, 11)
        for stream in ("text", "more text")
        for part in (0, 1, 11)
    }
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


def cut_rows(rows: list[list[int]], starts: list[int], ends: list[int]) -> Passages:
    continues = np.zeros(20, bool)
    continues[10:] = True  # tokens from 10 on go on with a word
    openings = [row[:start] for row, start in zip(rows, starts, strict=True)]
    return _as_passages(np.array(rows, np.int32), openings, ends, continues)


def test_a_text_ends_where_the_model_ends_it():
    passages = cut_rows([[2, 5, 6, 7, 1, 8, 8]], [2], [1])
    assert passages.passage(0).tolist() == [2, 5, 6, 7]


def test_a_cut_text_ends_with_a_whole_word():
    # The last token of a row shows whether the one before it goes on.
    passages = cut_rows(
        [[2, 5, 6, 7, 8, 9], [2, 5, 6, 7, 8, 12], [2, 5, 6, 7, 11, 12]], [2] * 3, [1]
    )
    assert [passages.passage(i).tolist() for i in range(3)] == [
        [2, 5, 6, 7, 8],
        [2, 5, 6, 7],
        [2, 5, 6],
    ]


def test_special_tokens_of_an_opening_end_nothing():
    passages = cut_rows([[1, 5, 6, 7, 8]], [1], [1])
    assert passages.passage(0).tolist() == [1, 5, 6, 7]


def test_a_text_that_ends_at_once_is_left_out():
    passages = cut_rows([[2, 5, 1, 7, 8], [2, 5, 6, 7, 8]], [2, 2], [1])
    assert passages.documents.tolist() == [1]


def test_weights_that_are_no_numbers_end_with_a_message():
    from conceptvec.errors import RunError

    model = wrap(make_hf())
    with torch.no_grad():
        model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(RunError, match="NaN"):
        write(model, WrittenPart(OPENINGS, 5), NOTHING_CONTINUES)


def test_parts_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WrittenPart(OPENINGS, 0).seed = 1  # type: ignore[misc]
