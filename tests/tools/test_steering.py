"""Steering: what it adds, at which tokens, and that a control vector added by hand does the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import conceptvec as cv
from conceptvec import RequestError
from conceptvec.model.network import Model
from conceptvec.results import Results
from tests.documents import document, entry

PROMPT = torch.tensor([[2, 10, 11, 12, 13]])
NEW = 7
FAMILIES = ["gemma3_text", "gemma2", "llama", "qwen2"]


@torch.inference_mode()
def generated(model: Model, **options: Any) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and the logits (new tokens, V) that they were taken from."""
    done = model.hf.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return done.sequences[0].tolist(), torch.stack(done.logits)[:, 0]


@torch.inference_mode()
def logits(model: Model) -> torch.Tensor:
    return model.hf(input_ids=PROMPT, use_cache=False).logits[0]


@contextmanager
def recorded(model: Model, layer: int) -> Iterator[list[torch.Tensor]]:
    """What a layer's successor gets, less what the layer itself gave: (T, H) of every call.

    Entered before `steer`, its hook comes before that of `steer`.
    """
    given: list[torch.Tensor] = []
    added: list[torch.Tensor] = []

    def gives(_: Any, __: Any, output: Any) -> None:
        given.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    def gets(_: Any, args: Any) -> None:
        added.append(args[0][0] - given[-1])

    handles = [
        model.layers[layer].register_forward_hook(gives),
        model.layers[layer + 1].register_forward_pre_hook(gets),
    ]
    try:
        yield added
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("use_cache", [True, False])
def test_every_decoded_token_is_steered(tiny: Model, use_cache: bool) -> None:
    with recorded(tiny, 1) as added, cv.steer(tiny, {"L01_N0003+": 4.0}):
        generated(tiny, use_cache=use_cache)
    seen = [len(states) for states in added]
    lengths = [PROMPT.shape[1] + step for step in range(NEW)]
    assert seen == ([PROMPT.shape[1]] + [1] * (NEW - 1) if use_cache else lengths)
    for states in added:  # by the strength, at every position
        assert states.norm(dim=1).numpy() == pytest.approx(4.0, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_added_is_what_the_neuron_writes(
    family: str, tiny_of: Callable[[str], Model]
) -> None:
    model = tiny_of(family)
    with recorded(model, 2) as added, cv.steer(model, {"L02_N0007-": 2.0}):
        logits(model)
    column = model.layers[2].mlp.down_proj.weight[:, 7].detach()
    if model.family.post_norm:
        norm = getattr(model.layers[2], model.family.post_norm).weight.detach()
        column = column * (model.family.norm_offset + norm)
    assert torch.allclose(added[0], (-2 * column / column.norm()).expand_as(added[0]), atol=1e-5)


def test_a_cache_changes_nothing(tiny: Model) -> None:
    with cv.steer(tiny, {"L00_N0003+": 3.0, "L02_N0001-": 1.5}):
        (with_cache, a), (without, b) = (generated(tiny, use_cache=c) for c in (True, False))
    assert with_cache == without
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_a_control_vector_added_by_hand_does_the_same(
    family: str, tiny_of: Callable[[str], Model], tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    model, strength = tiny_of(family), 5.0
    entries = [entry(1), entry(5), entry(2), entry(3)]
    run = Results(document(entries) | {"model": model.facts()})
    run.export(tmp_path / "c.gguf", to="gguf", concept="animals", model=model)
    directions = {
        int(tensor.name.removeprefix("direction.")): np.array(tensor.data)
        for tensor in gguf.GGUFReader(tmp_path / "c.gguf").tensors
    }

    def adding(direction: np.ndarray) -> Callable[..., Any]:
        def add(_: Any, __: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            changed = states + strength * torch.from_numpy(direction)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return add

    handles = [model.layers[n].register_forward_hook(adding(d)) for n, d in directions.items()]
    by_hand, hand_logits = generated(model)
    for handle in handles:
        handle.remove()
    with cv.steer(model, {tested["id"]: strength for tested in entries}):
        steered, steered_logits = generated(model)
    clean, _ = generated(model)
    assert by_hand == steered != clean
    assert torch.allclose(hand_logits, steered_logits, atol=1e-4)


def test_vectors_of_one_layer_add_up(tiny: Model) -> None:
    with cv.steer(tiny, {"L01_N0003+": 2.0, "L01_N0004+": -1.0}):
        together = logits(tiny)
    with cv.steer(tiny, {"L01_N0003+": 2.0}), cv.steer(tiny, {"L01_N0004-": 1.0}):
        nested = logits(tiny)
    assert torch.allclose(together, nested, atol=1e-5)


def test_nothing_stays_after_an_error(tiny: Model) -> None:
    before = logits(tiny)
    with pytest.raises(KeyError), cv.steer(tiny, {"L01_N0003+": 9.0}):
        raise KeyError
    assert torch.equal(logits(tiny), before)


@pytest.mark.parametrize(
    ("strengths", "said"),
    [
        ({"L01": 1.0}, "such as"),
        ({"L09_N0000+": 1.0}, "4 layers"),
        ({"L01_N0003+": float("nan")}, "finite number"),
    ],
)
def test_bad_requests(tiny: Model, strengths: dict[str, float], said: str) -> None:
    with pytest.raises(RequestError, match=said), cv.steer(tiny, strengths):
        pass


def test_a_removed_vector_is_a_column_of_zeros(tiny: Model) -> None:
    with cv.damaging(tiny, ["L01_N0003+", "L02_N0005-", "L02_N0005+"]):
        damaged = logits(tiny)
    with torch.no_grad():
        for layer, neuron in ((1, 3), (2, 5)):
            tiny.layers[layer].mlp.down_proj.weight[:, neuron] = 0
    assert torch.allclose(damaged, logits(tiny), atol=1e-5)


def test_a_vector_that_is_not_there_can_not_be_removed(tiny: Model) -> None:
    with pytest.raises(RequestError, match="24 neurons"), cv.damaging(tiny, ["L01_N0024+"]):
        pass
