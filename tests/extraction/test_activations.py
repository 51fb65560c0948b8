"""Captured activations, and the check that the MLP output is the sum of its value vectors."""

from __future__ import annotations

import pytest
import torch

from conceptvec.errors import RunError
from conceptvec.extraction.activations import capturing, check_mlp_sums

FAMILIES = ["gemma3_text", "gemma3", "gemma2", "llama", "qwen2"]
IDS = torch.tensor([[2, 10, 11, 12, 13]])


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_activations_times_vectors_is_the_mlp_output(family: str, tiny_of) -> None:
    model = tiny_of(family)
    activations, outputs = {}, {}
    for number, layer in enumerate(model.layers):
        layer.mlp.register_forward_hook(
            lambda _, __, output, number=number: outputs.__setitem__(number, output)
        )
    with capturing(model, range(model.n_layers), activations.__setitem__):
        model.decoder(input_ids=IDS, use_cache=False)
    for number in range(model.n_layers):
        expected = activations[number] @ model.value_vectors(number)
        assert torch.allclose(outputs[number], expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_model_passes_the_check(family: str, tiny_of) -> None:
    model = tiny_of(family)
    check_mlp_sums(model, range(model.n_layers), IDS)


def test_an_mlp_that_writes_otherwise_is_found_out(tiny) -> None:
    tiny.layers[2].mlp.register_forward_hook(lambda _, __, output: output * 1.01)
    with pytest.raises(RunError, match="layer 2 is not the sum"):
        check_mlp_sums(tiny, range(4), IDS)


def test_no_hook_stays_behind(tiny) -> None:
    check_mlp_sums(tiny, range(4), IDS)
    assert not tiny.layers[0].mlp._forward_hooks
    assert not tiny.layers[0].mlp.down_proj._forward_pre_hooks
