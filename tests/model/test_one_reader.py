"""Stage 1, `find` and the full run read the same tensors of a checkpoint, or refuse it alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conceptvec import Config, RequestError, RunError
from conceptvec.extraction.stage import extract
from conceptvec.model.network import load_model
from conceptvec.model.weights import load_weights
from tests.conftest import make_hf, save

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]
LOADERS = [load_weights, load_model]
Q_PROJ, DOWN_PROJ = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def config_of(folder: Path) -> Config:
    return Config(model=str(folder), device="cpu", top_k=9)


def rewritten(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Change the tensors of a checkpoint of one file."""
    tensors = load_file(folder / WHOLE)
    change(tensors)
    save_file(tensors, folder / WHOLE, {"format": "pt"})


def configured(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json."""
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


def same_in_both(folder: Path) -> str:
    """The fingerprint, which both readers give."""
    one, other = (load(config_of(folder)).fingerprint for load in LOADERS)
    assert one == other
    return one


def refused_by_both(folder: Path) -> str:
    """What both readers say."""
    said = []
    for load in LOADERS:
        with pytest.raises(RequestError) as caught:
            load(config_of(folder))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    return said[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(make_hf(), tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(make_hf(), tmp_path, max_shard_size="20KB")
    return tmp_path


class TestShards:
    @pytest.mark.parametrize("with_shards", [True, False])
    def test_an_old_index_beside_a_whole_file(self, with_shards, folder, tmp_path_factory):
        before, old = same_in_both(folder), tmp_path_factory.mktemp("old")
        save(make_hf(seed=1), old, max_shard_size="20KB")
        for file in old.glob("model*"):
            if with_shards or file.name == INDEX:
                file.rename(folder / file.name)
        assert same_in_both(folder) == before

    def test_an_index_that_names_the_wrong_shard(self, sharded):
        before = same_in_both(sharded)
        index = json.loads((sharded / INDEX).read_text())
        names = sorted(set(index["weight_map"].values()))
        index["weight_map"] = dict.fromkeys(index["weight_map"], names[0])
        index["weight_map"] |= {f"x{i}": name for i, name in enumerate(names)}
        (sharded / INDEX).write_text(json.dumps(index))
        assert same_in_both(sharded) == before

    def test_a_shard_that_is_gone(self, sharded):
        next(sharded.glob("model-00002*")).unlink()
        assert "lacks model-00002" in refused_by_both(sharded)

    def test_a_shard_that_the_index_leaves_out(self, sharded):
        index = json.loads((sharded / INDEX).read_text())
        last = max(index["weight_map"].values())
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != last}
        (sharded / INDEX).write_text(json.dumps(index))
        assert "weights are missing" in refused_by_both(sharded)

    def test_a_tensor_in_two_shards(self, sharded):
        """Which of them counts would depend on the reader."""
        first, second, *_ = sorted(sharded.glob("model-*.safetensors"))
        name, tensor = next(iter(load_file(first).items()))
        save_file(load_file(second) | {name: tensor + 1}, second, {"format": "pt"})
        said = refused_by_both(sharded)
        assert name in said and first.name in said and second.name in said


def scaled(tensors: Tensors) -> None:
    tensors[f"{DOWN_PROJ}.weight"] = tensors[f"{DOWN_PROJ}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{DOWN_PROJ}.weight_scale"] = torch.ones(1)


def scale_alone(tensors: Tensors) -> None:
    """Weights rounded to a grid and stored as floats: what they mean stands in another tensor."""
    tensors[f"{Q_PROJ}.weight_scale_inv"] = torch.full((1, 1), 3.0)


def integers(tensors: Tensors) -> None:
    tensors[f"{Q_PROJ}.weight"] = tensors[f"{Q_PROJ}.weight"].to(torch.int8)


def adapter(tensors: Tensors) -> None:
    tensors[f"{Q_PROJ}.lora_A.weight"] = torch.ones(2, 32)


def unknown_bias(tensors: Tensors) -> None:
    """The configuration says that there is none."""
    tensors[f"{Q_PROJ}.bias"] = torch.ones(32)


def without(name: str) -> Callable[[Tensors], Any]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    change.__name__ = f"without_{name}"
    return change


def of_another_size(tensors: Tensors) -> None:
    tensors[f"{Q_PROJ}.weight"] = torch.ones(3, 32)


REFUSED = [
    scaled,
    scale_alone,
    integers,
    unknown_bias,
    without(f"{Q_PROJ}.weight"),
    without("model.layers.2.input_layernorm.weight"),
    without("model.layers.0.self_attn.q_norm.weight"),
    without(f"{DOWN_PROJ}.weight"),
    of_another_size,
]


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_the_network_does_not_know_or_lacks_is_refused_by_both(change, folder):
    rewritten(folder, change)
    assert "does not hold the model that its config.json describes" in refused_by_both(folder)


def test_an_adapter_that_was_not_merged_is_refused_by_both(folder):
    rewritten(folder, adapter)
    assert "merge_and_unload" in refused_by_both(folder)


def further_layer(tensors: Tensors) -> None:
    """The configuration was made to stop earlier."""
    for name, tensor in list(tensors.items()):
        if ".layers.3." in name:
            tensors[name.replace(".layers.3.", ".layers.4.")] = tensor + 1


def head_of_something_else(tensors: Tensors) -> None:
    tensors["vision_tower.lm_head.weight"] = torch.ones(2, 2)


def draft_decoder(tensors: Tensors) -> None:
    """A smaller decoder for speculation, whose name comes first."""
    for name, tensor in list(tensors.items()):
        tensors[f"draft.{name}"] = tensor + 1


def multi_token_head(tensors: Tensors) -> None:
    tensors["mtp.lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


@pytest.mark.parametrize(
    "change", [further_layer, head_of_something_else, multi_token_head, draft_decoder]
)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_no_part_of_the_decoder_is_left_out_by_both(change, tied, tmp_path):
    save(make_hf(tie_word_embeddings=tied), tmp_path)
    before = same_in_both(tmp_path)
    rewritten(tmp_path, change)
    assert same_in_both(tmp_path) == before


class TestPrefixes:
    """Text and multimodal configurations and names, with and without a vision tower."""

    def test_a_text_configuration_with_multimodal_names(self, folder):
        before = same_in_both(folder)

        def rename(tensors: Tensors) -> None:
            for name in list(tensors):
                rest = name.removeprefix("model.")
                tensors[f"model.language_model.{rest}"] = tensors.pop(name)
            tensors["model.vision_tower.encoder.layers.0.mlp.fc1.weight"] = torch.ones(2, 2)

        rewritten(folder, rename)
        assert same_in_both(folder) == before

    @pytest.mark.parametrize("prefix", ["", "model.", "model.language_model."])
    def test_a_multimodal_configuration_with_text_weights_alone(self, prefix, tmp_path):
        save(make_hf("gemma3"), tmp_path)
        before = same_in_both(tmp_path)

        def strip(tensors: Tensors) -> None:
            for name in list(tensors):
                tensor = tensors.pop(name)
                if "language_model." in name:
                    rest = name.partition("language_model.")[2].removeprefix("model.")
                    tensors[prefix + rest] = tensor

        rewritten(tmp_path, strip)
        assert same_in_both(tmp_path) == before

    def test_no_vision_configuration_either(self, tmp_path):
        save(make_hf("gemma3"), tmp_path)
        before = same_in_both(tmp_path)
        configured(tmp_path, lambda document: document.pop("vision_config"))
        assert same_in_both(tmp_path) == before


def test_tied_and_a_head_of_its_own(folder):
    """The configuration decides, in Stage 1, `find` and the run."""
    before = same_in_both(folder)
    rewritten(
        folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2 + 1})
    )
    assert same_in_both(folder) == before
    weights, model = (load(config_of(folder)) for load in LOADERS)
    assert torch.equal(weights.unembedding, model.unembedding)


def test_untied_without_a_head(folder):
    configured(folder, lambda document: document.update(tie_word_embeddings=False))
    assert "lm_head.weight" in refused_by_both(folder)


@pytest.mark.parametrize("fault", ["replaced", "gone"])
def test_files_that_change_while_they_are_read(fault, folder, tmp_path_factory):
    weights = load_weights(config_of(folder))
    assert weights.fingerprint
    other = tmp_path_factory.mktemp("other")
    save(make_hf(seed=1), other)
    if fault == "gone":
        (folder / WHOLE).unlink()
    else:
        os.replace(other / WHOLE, folder / WHOLE)
    with pytest.raises(RunError, match="was changed while it was read"):
        extract(weights, config_of(folder))


def test_other_attention_options_are_another_model(folder):
    """What no tensor shows must show in the fingerprint all the same."""
    before = same_in_both(folder)
    configured(folder, lambda document: document.update(hidden_activation="silu"))
    assert same_in_both(folder) != before


def test_another_order_of_layer_kinds_is_another_model(folder):
    before = same_in_both(folder)

    def swap(document: dict[str, Any]) -> None:
        document["layer_types"] = document["layer_types"][::-1]

    configured(folder, swap)
    assert same_in_both(folder) != before


def test_another_tokenizer_of_the_same_vocabulary_is_another_model(folder):
    """The same words cut in another way make another text."""
    before = same_in_both(folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    path.write_text(json.dumps(document))
    assert same_in_both(folder) != before
