"""The fingerprint names what decides the results, and nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_hf, wrap


def test_equal_models_have_one_fingerprint(tiny) -> None:
    assert wrap(make_hf()).fingerprint == tiny.fingerprint


def test_a_weight_counts(tiny) -> None:
    other = make_hf()
    with torch.no_grad():
        other.model.layers[3].mlp.down_proj.weight[0, 0] += 1e-3
    assert wrap(other).fingerprint != tiny.fingerprint


@pytest.mark.parametrize(
    ("name", "value"),
    [("final_logit_softcapping", 30.0), ("sliding_window", 5), ("query_pre_attn_scalar", 9)],
)
def test_the_architecture_counts(name: str, value: float, tiny) -> None:
    other = make_hf()
    setattr(other.config, name, value)
    assert wrap(other).fingerprint != tiny.fingerprint


def test_the_vocabulary_counts(tiny) -> None:
    other = wrap(make_hf())
    other.tokenizer.add_tokens(["new"])
    assert other.fingerprint != tiny.fingerprint


def test_the_precision_counts(tiny) -> None:
    other = wrap(make_hf().bfloat16())
    other.dtype = torch.bfloat16
    assert other.fingerprint != tiny.fingerprint


def test_the_readout_counts_where_it_is_a_matrix_of_its_own() -> None:
    one, other = (make_hf(tie_word_embeddings=False) for _ in range(2))
    before = wrap(one).fingerprint
    with torch.no_grad():
        other.lm_head.weight[3, 3] += 1e-3
    assert wrap(other).fingerprint != before
