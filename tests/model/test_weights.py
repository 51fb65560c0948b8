"""Streaming a checkpoint gives what the loaded model gives, however the checkpoint is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conceptvec import Config, RequestError
from conceptvec.extraction.stage import extract
from conceptvec.model.network import load_model
from conceptvec.model.weights import load_weights
from conceptvec.pipeline import run
from tests.conftest import make_hf, save

WHOLE = "model.safetensors"
UNTIED = {"tie_word_embeddings": False}
# Family, size of a shard, changes of the configuration.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("gemma3_text", "10GB", {}),
    ("gemma3_text", "4KB", {}),
    ("gemma3_text", "10GB", UNTIED),
    ("gemma3", "10GB", {}),
    ("gemma3", "20KB", {}),
    ("gemma2", "10GB", {}),
    ("llama", "4KB", {}),
    ("llama", "10GB", UNTIED),
    ("qwen3", "10GB", {}),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}{'-untied' * bool(case[2])}")
def stored(request, tmp_path: Path) -> Config:
    """A saved model of each case."""
    family, shard, changes = request.param
    save(make_hf(family, **changes), tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard != "10GB")
    return Config(model=str(tmp_path), device="cpu", max_vectors=None, top_k=9)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint of one file."""
    tensors = load_file(folder / WHOLE)
    change(tensors)
    save_file(tensors, folder / WHOLE, {"format": "pt"})


class TestStreamedAndLoaded:
    def test_facts(self, stored: Config) -> None:
        """The fingerprint among them."""
        assert load_weights(stored).facts() == load_model(stored).facts()

    def test_tensors(self, stored: Config) -> None:
        weights, model = load_weights(stored), load_model(stored)
        assert torch.equal(weights.unembedding, model.unembedding)
        for layer in range(model.n_layers):
            assert torch.equal(weights.value_vectors(layer), model.value_vectors(layer))

    @pytest.mark.parametrize("fold", ["both", "final", "none"])
    def test_folds(self, fold: str, stored: Config) -> None:
        weights, model = load_weights(stored), load_model(stored)
        for layer in range(model.n_layers):
            assert torch.equal(weights.fold_scale(layer, fold), model.fold_scale(layer, fold))

    def test_stage_1(self, stored: Config) -> None:
        streamed = extract(load_weights(stored), stored)
        loaded = extract(load_model(stored), stored)
        for a, b in zip(streamed.layers, loaded.layers, strict=True):
            for name, values in a.arrays().items():
                assert np.array_equal(values, b.arrays()[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bfloat16_checkpoint_is_not_blown_up(dtype: str, tmp_path: Path) -> None:
    """The file's bfloat16 stays in memory; results are those of the model in the precision."""
    save(make_hf().bfloat16(), tmp_path)
    config = Config(model=str(tmp_path), device="cpu", dtype=dtype, top_k=9)
    weights, model = load_weights(config), load_model(config)
    assert weights.unembedding.dtype is torch.bfloat16
    assert weights.fingerprint == model.fingerprint
    for a, b in zip(extract(weights, config).layers, extract(model, config).layers, strict=True):
        assert np.array_equal(a.top_ids, b.top_ids)
        assert np.array_equal(a.bottom_values, b.bottom_values)


def early_multimodal_names(tensors: dict[str, torch.Tensor]) -> None:
    """Checkpoints of early Gemma 3 call the decoder ``language_model.model``."""
    for name in list(tensors):
        if name.startswith("model."):
            tensors["language_model." + name] = tensors.pop(name)


def bare_names(tensors: dict[str, torch.Tensor]) -> None:
    """A decoder saved without the class around it."""
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def vision_tower(tensors: dict[str, torch.Tensor]) -> None:
    early_multimodal_names(tensors)
    for name in ("layers.0.mlp.down_proj.weight", "embed_tokens.weight"):
        tensors["vision_tower." + name] = torch.ones(3, 3)


def head_that_is_not_used(tensors: dict[str, torch.Tensor]) -> None:
    """The configuration ties it to the embedding."""
    tensors["lm_head.weight"] = torch.ones_like(tensors["model.embed_tokens.weight"])


def rotary_buffers(tensors: dict[str, torch.Tensor]) -> None:
    """Old checkpoints hold what every version of transformers computes itself."""
    for layer in range(4):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


VARIANTS = [
    early_multimodal_names,
    bare_names,
    vision_tower,
    head_that_is_not_used,
    rotary_buffers,
]


@pytest.mark.parametrize("load", [load_weights, load_model])
@pytest.mark.parametrize("change", VARIANTS)
def test_the_same_decoder_under_other_names(load, change, tmp_path: Path) -> None:
    save(make_hf(), tmp_path)
    config = Config(model=str(tmp_path), device="cpu")
    before = load_model(config).fingerprint
    rewritten(tmp_path, change)
    assert load(config).fingerprint == before


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_both_ways_agree_where_tying_is_said_on_one_level(text, whole, tmp_path: Path) -> None:
    save(make_hf("gemma3"), tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    document["tie_word_embeddings"] = whole
    document["text_config"]["tie_word_embeddings"] = text

    def with_head(tensors: dict[str, torch.Tensor]) -> None:
        name = next(key for key in tensors if key.endswith("embed_tokens.weight"))
        tensors["lm_head.weight"] = tensors[name] + 1

    rewritten(tmp_path, with_head)
    (tmp_path / "config.json").write_text(json.dumps(document))
    config = Config(model=str(tmp_path), device="cpu")
    weights, model = load_weights(config), load_model(config)
    assert weights.fingerprint == model.fingerprint
    assert torch.equal(weights.unembedding, model.unembedding)


@pytest.mark.parametrize("load", [load_weights, load_model])
def test_an_index_beside_a_whole_file_is_a_leftover(load, tmp_path: Path) -> None:
    save(make_hf(), tmp_path)
    config = Config(model=str(tmp_path), device="cpu")
    before = load_model(config).fingerprint
    save(make_hf(seed=1), tmp_path / "other", max_shard_size="20KB")
    for file in (tmp_path / "other").glob("model*"):
        file.rename(tmp_path / file.name)
    assert load(config).fingerprint == before


@pytest.mark.parametrize("load", [load_weights, load_model])
@pytest.mark.parametrize("name", ["mlp.down_proj", "self_attn.q_proj"])
def test_numbers_that_are_no_floats_are_refused(load, name: str, tmp_path: Path) -> None:
    """Scaled 8-bit weights without a word of it in config.json."""

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        key = f"model.layers.1.{name}.weight"
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)

    save(make_hf(), tmp_path)
    rewritten(tmp_path, quantise)
    with pytest.raises(RequestError, match="0 weights are missing, 1 have another size or type"):
        load(Config(model=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("load", [load_weights, load_model])
def test_a_folder_without_safetensors_is_a_bad_request(load, tmp_path: Path) -> None:
    save(make_hf(), tmp_path)
    (tmp_path / WHOLE).write_bytes(b"junk")
    with pytest.raises(RequestError, match="safetensors"):
        load(Config(model=str(tmp_path), device="cpu"))


@pytest.mark.whole
def test_stage_1_alone_loads_no_model(tmp_path: Path, monkeypatch) -> None:
    save(make_hf(), tmp_path / "model")
    out = str(tmp_path / "run")
    config = Config(model=str(tmp_path / "model"), device="cpu", out=out, stages=(1,), top_k=9)
    never = lambda *_: pytest.fail("the model was loaded")
    monkeypatch.setattr("conceptvec.model.network.load_model", never)
    document = run(config)
    assert document["pipeline_stats"]["total_candidates"] == 4 * 24
    assert document["pipeline_stats"]["filtered_candidates"] is None
    assert not (tmp_path / "run" / "activations.safetensors").exists()


@pytest.mark.whole
def test_stage_1_alone_is_resumed_by_a_longer_run(tmp_path: Path, monkeypatch) -> None:
    save(make_hf(), tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "device": "cpu", "out": str(tmp_path / "run")}
    run(Config(**options, stages=(1,), top_k=9))
    never = lambda *_: pytest.fail("projected again")
    monkeypatch.setattr("conceptvec.extraction.stage.project_layer", never)
    run(Config(**options, stages=(1, 2), top_k=9))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert len([name for name in manifest["parts"] if name.startswith("projections/")]) == 4
