"""Streaming a checkpoint gives what the loaded model gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conceptvec import Config, RequestError
from conceptvec.extraction.stage import extract
from conceptvec.model.network import load_model
from conceptvec.model.weights import load_weights
from conceptvec.pipeline import run
from tests.conftest import make_hf, make_tokenizer

CASES = [
    ("gemma3_text", "10GB", {}), ("gemma3_text", "4KB", {}), ("gemma3_text", "10GB", {"tie_word_embeddings": False}),
    ("gemma3", "10GB", {}), ("gemma3", "20KB", {}), ("gemma2", "10GB", {}), ("llama", "4KB", {}),
    ("llama", "10GB", {"tie_word_embeddings": False}), ("qwen3", "10GB", {}),
]  # fmt: skip


def saved(
    folder: Path, family: str, shard: str, changes: dict, dtype: torch.dtype = torch.float32
) -> str:
    make_hf(family, **changes).to(dtype).save_pretrained(folder, max_shard_size=shard)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("family", "shard", "changes"), CASES)
def test_streaming_equals_the_loaded_model(family, shard, changes, tmp_path) -> None:
    config = Config(
        model=saved(tmp_path, family, shard, changes), device="cpu", max_vectors=None, top_k=9
    )
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard != "10GB")
    weights, model = load_weights(config), load_model(config)
    assert weights.facts() == model.facts()  # the fingerprint among them
    assert torch.equal(weights.unembedding, model.unembedding)
    for layer in range(model.n_layers):
        assert torch.equal(weights.value_vectors(layer), model.value_vectors(layer))
        for fold in ("both", "final", "none"):
            assert torch.equal(weights.fold_scale(layer, fold), model.fold_scale(layer, fold))
    streamed, loaded = extract(weights, config), extract(model, config)
    for a, b in zip(streamed.layers, loaded.layers, strict=True):
        for name, values in a.arrays().items():
            assert np.array_equal(values, b.arrays()[name]), name
    assert streamed.activations.positions == 0 < loaded.activations.positions


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bfloat16_checkpoint_is_not_blown_up(dtype, tmp_path) -> None:
    """The file's bfloat16 is kept in memory, and the results are those of the model in the asked precision."""
    folder = saved(tmp_path, "gemma3_text", "10GB", {}, torch.bfloat16)
    config = Config(model=folder, device="cpu", dtype=dtype, top_k=9)
    weights, model = load_weights(config), load_model(config)
    assert weights.unembedding.dtype is torch.bfloat16
    assert weights.fingerprint == model.fingerprint
    for a, b in zip(extract(weights, config).layers, extract(model, config).layers, strict=True):
        assert np.array_equal(a.top_ids, b.top_ids)
        assert np.array_equal(a.bottom_values, b.bottom_values)


def test_old_multimodal_names_are_understood(tmp_path) -> None:
    """Checkpoints of early Gemma 3 call the decoder ``language_model.model``."""
    from safetensors.torch import load_file, save_file

    config = Config(model=saved(tmp_path, "gemma3", "10GB", {}), device="cpu")
    before = load_weights(config).fingerprint
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    prefix = next(k for k in tensors if k.endswith("layers.0.mlp.down_proj.weight"))[
        : -len("layers.0.mlp.down_proj.weight")
    ]
    save_file({k.replace(prefix, "language_model.model."): v for k, v in tensors.items()}, file)
    assert load_weights(config).fingerprint == before


def test_stage_1_alone_loads_no_model_and_is_resumed_by_a_full_run(tmp_path, monkeypatch) -> None:
    config = Config(
        model=saved(tmp_path / "model", "gemma3_text", "10GB", {}), device="cpu", out=str(tmp_path / "run"),
        stages=(1,), top_k=9,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(
            "conceptvec.model.network.load_model",
            lambda config: pytest.fail("the model was loaded"),
        )
        document = run(config)
    assert document["pipeline_stats"]["total_candidates"] == 4 * 24
    assert document["pipeline_stats"]["filtered_candidates"] is None
    assert not (tmp_path / "run" / "activations.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(
            "conceptvec.extraction.stage.project_layer", lambda *a: pytest.fail("projected again")
        )
        run(Config(**{**config.resolved(), "stages": (1, 2)}))
    assert (
        "activations.safetensors"
        in json.loads((tmp_path / "run" / "manifest.json").read_text())["parts"]
    )


def test_a_folder_without_safetensors_is_a_bad_request(tmp_path) -> None:
    config = Config(model=saved(tmp_path, "gemma3_text", "10GB", {}), device="cpu")
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(RequestError, match="safetensors"):
        load_weights(config)
