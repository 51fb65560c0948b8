"""What a model folder is: a causal language model's own weights, or refused with its own cause."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from conceptvec import Config, RequestError, extract, load_model
from conceptvec.cli import main
from conceptvec.model.checkpoint import find
from tests.conftest import make_hf, save


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A tiny Gemma 3 as a folder."""
    folder = tmp_path_factory.mktemp("sound")
    save(make_hf(), folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def configured(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    document = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(document))
    return folder


def refused(folder: Path, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        find(Config(model=str(folder)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention: True"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention: 'all'"),
        ({"is_causal": False}, "is_causal: False"),
        ({"text_config": {"is_causal": False}}, "is_causal: False"),
        ({"text_config": {"use_bidirectional_attention": True}}, "bidirectional"),
        ({"architectures": ["Gemma3ForSequenceClassification"]}, "is a Gemma3ForSequenceClass"),
        ({"architectures": ["Gemma3TextForTokenClassification"]}, "predicts the next token"),
        ({"architectures": ["LlamaBidirectionalModel"]}, "is a LlamaBidirectionalModel"),
        ({"architectures": ["Gemma3TextModel"]}, "is a Gemma3TextModel"),
    ],
)
def test_models_that_do_not_predict_the_next_token(changes, said: str, folder: Path) -> None:
    refused(configured(folder, **changes), said)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_bidirectional_attention": False},
        {"use_bidirectional_attention": None},
        {"is_causal": True},
        {"architectures": None},
        {"architectures": []},
        {"architectures": ["Gemma3ForConditionalGeneration"]},
    ],
)
def test_models_that_do(changes: dict[str, Any], folder: Path) -> None:
    assert find(Config(model=str(configured(folder, **changes)))).folder == folder


@pytest.mark.parametrize("key", ["quantization_config", "quantization", "compression_config"])
def test_what_config_json_calls_quantised(key: str, folder: Path) -> None:
    """transformers, MLX, compressed tensors."""
    refused(configured(folder, **{key: {"bits": 4}}), "is quantised")


@pytest.mark.parametrize(
    "file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"]
)
def test_what_a_file_calls_quantised(file: str, folder: Path) -> None:
    """GPTQ, AWQ, ModelOpt."""
    (folder / file).write_text("{}")
    refused(folder, "is quantised")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("params.json", "original release"),
        ("model_index.json", "pipeline of several models"),
    ],
)
def test_folders_of_other_programs(file: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    refused(tmp_path, said)


def test_a_model_of_sentence_embeddings(folder: Path) -> None:
    (folder / "modules.json").write_text("[]")
    refused(folder, "sentence embeddings")


def test_an_adapter_alone_is_to_be_merged(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    refused(tmp_path, r"is an adapter.*merge_and_unload\(\)")


@pytest.mark.parametrize("name", ["q_proj.base_layer.weight", "q_proj.lora_A.default.weight"])
def test_weights_with_an_adapter_s_names_are_to_be_merged(name: str, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    moved = tensors.pop("model.layers.0.self_attn.q_proj.weight")
    tensors[f"base_model.model.model.layers.0.self_attn.{name}"] = moved
    save_file(tensors, folder / "model.safetensors")
    refused(folder, r"holds base_model.*merge_and_unload\(\)")


def test_an_adapter_beside_the_weights_is_not_applied(folder: Path, caplog) -> None:
    config = Config(model=str(folder), device="cpu")
    expected = load_model(config).fingerprint
    about = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    (folder / "adapter_model.safetensors").write_bytes(b"no weights at all")
    with caplog.at_level(logging.WARNING, "conceptvec"):
        assert load_model(config).fingerprint == expected
    assert "adapter_config.json: it is not applied" in caplog.text


def test_an_attention_that_is_not_installed_is_not_needed(folder: Path) -> None:
    configured(folder, _attn_implementation="flash_attention_2")
    model = load_model(Config(model=str(folder), device="cpu"))
    assert model.hf.config._attn_implementation == "eager"


def test_a_sentencepiece_file_without_the_library(folder: Path, monkeypatch) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    refused(folder, "pip install sentencepiece")


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refused(folder, "no vocab.json with merges.txt")


def byte_level_files(folder: Path) -> list[str]:
    """vocab.json and merges.txt instead of tokenizer.json: the oldest byte-level form."""
    from conceptvec.model.vocabulary import byte_letters

    tokens = ["<|endoftext|>", *byte_letters(), "Ġd", "og", "Ġdog"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ d\no g\nĠd og\n")
    (folder / "tokenizer.json").unlink()
    about = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    return tokens


def test_vocab_and_merges_are_read(folder: Path) -> None:
    tokens = byte_level_files(folder)
    model = load_model(Config(model=str(folder), device="cpu"))
    assert model.encode(" dog") == [tokens.index("Ġdog")]
    candidates = extract(model, Config(layers="0", top_k=3, device="cpu"))
    assert " dog" in candidates.tokens


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_library_s_error_is_one_line(dtype, folder: Path, monkeypatch, capsys) -> None:
    def broken(*_, **__) -> None:
        raise ImportError("needs another library\nand more lines")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", broken)
    argv = ["run", "--device", "cpu", "--model", str(folder), "--out", str(folder / "r")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].endswith("install what it names")
    assert "Traceback" not in error
