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
from tests.model.test_ambient import SETTINGS, state

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
        ({"L01_N0003+": 1e39}, "finite number"),
        ({"L01_N0003+": 10**400}, "finite number"),
        ({"L01_N0003+": "4"}, "got the strength '4', expected a finite number"),
        ({"L01_N0003+": None}, "finite number"),
    ],
)
def test_bad_requests(tiny: Model, strengths: dict[str, Any], said: str) -> None:
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


@pytest.mark.parametrize("times", [float("nan"), float("inf"), None, "0"])
def test_a_factor_that_is_no_number_is_refused(tiny: Model, times: Any) -> None:
    with (
        pytest.raises(RequestError, match="finite number"),
        cv.damaging(tiny, ["L01_N0003+"], times),
    ):
        pass


def test_one_name_is_no_list_of_names(tiny: Model) -> None:
    with pytest.raises(RequestError, match="expected a list"), cv.damaging(tiny, "L01_N0003+"):
        pass


CONTEXTS = {
    "steer": lambda model: cv.steer(model, {"L01_N0003+": 4.0, "L01_N0004-": 0.3}),
    "damaging": lambda model: cv.damaging(model, ["L01_N0003+", "L01_N0004+", "L02_N0005-"]),
}
VALUES = ("float64", "bfloat16", "float16", "medium", "inference", "autocast", "device", "numpy")


@pytest.mark.parametrize("setting", VALUES)
@pytest.mark.parametrize("name", CONTEXTS)
def test_a_setting_of_the_session_changes_nothing(name: str, setting: str, tiny: Model) -> None:
    """What is added is worked out under the libraries' own settings."""
    with CONTEXTS[name](tiny):
        expected = logits(tiny)
    context = CONTEXTS[name](tiny)
    with SETTINGS[setting]():
        context.__enter__()
    assert torch.equal(logits(tiny), expected)
    context.__exit__(None, None, None)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CONTEXTS)
def test_the_users_own_pass_keeps_its_settings(name: str, setting: str, tiny: Model) -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("an old torch, whose setting is read otherwise")
    with SETTINGS[setting]():
        before = state()
        with CONTEXTS[name](tiny):
            assert state() == before
            seen = []
            hook = tiny.norm.register_forward_hook(lambda *_: seen.append(state()))
            if setting != "device":  # on which there is nothing to compute with
                tiny.hf(input_ids=PROMPT, use_cache=False)
                assert seen == [before]
            hook.remove()
        assert state() == before


def test_gradients_pass_through(tiny: Model) -> None:
    """A session may train something of its own on the steered model."""
    states = tiny.decoder.get_input_embeddings()(PROMPT).detach().requires_grad_()
    with cv.damaging(tiny, ["L01_N0003+"]), cv.steer(tiny, {"L01_N0004+": 2.0}):
        tiny.hf(inputs_embeds=states, use_cache=False).logits.sum().backward()
    assert states.grad is not None and bool(states.grad.abs().sum() > 0)


def test_under_autocast_a_removed_vector_is_gone(tiny: Model) -> None:
    """The product is rounded once, with the output, and not before."""
    place = tiny.layers[1].mlp.down_proj
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    watch = place.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with cv.damaging(tiny, ["L01_N0003+"]):
        told = place.register_forward_hook(lambda _, __, output: seen.append((output, output)))
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            tiny.hf(input_ids=PROMPT, use_cache=False)
    (activations, clean), (damaged, _) = seen
    exact = clean.float() - activations[..., 3:4].float() * place.weight[:, 3].detach()
    assert torch.equal(damaged, exact.to(damaged.dtype))
    for handle in (watch, told):
        handle.remove()
