"""A GGUF file and the folder that it was made from are the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptvec import Config, RequestError
from conceptvec.cli import main
from conceptvec.extraction.stage import extract
from conceptvec.model.checkpoint import find
from conceptvec.model.fingerprint import _rotary
from conceptvec.model.network import load_model
from conceptvec.model.quantised import gguf_settings, quantisation
from conceptvec.model.weights import load_weights
from tests.conftest import make_hf
from tests.model.gguf_files import save_gguf

pytest.importorskip("gguf")
CHANGES = {"gemma3": {"sliding_window": 4, "query_pre_attn_scalar": 256}, "llama": {}}
# A file says nothing of the order of layers: it is the family's own.
LAYERS = {"gemma3": ["sliding_attention"] * 4}
IDS = torch.tensor([[2, 10, 40, 11, 210, 12, 13, 14]])


def network(arch: str) -> Any:
    kinds = {"layer_types": LAYERS[arch]} if arch in LAYERS else {}
    family = {"gemma3": "gemma3_text"}.get(arch, arch)
    changes = CHANGES[arch] | ({"rope_theta": 1e6} if arch == "gemma3" else {})
    return make_hf(family, **changes, **kinds)


@pytest.fixture(params=["gemma3", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A network, and the file that was made of it."""
    hf = network(request.param)
    return hf, save_gguf(hf, request.param, tmp_path / "tiny.gguf")


def test_the_network_is_the_one_that_was_written(pair: tuple[Any, Path]) -> None:
    hf, file = pair
    model = load_model(Config(model=str(file), device="cpu"))
    with torch.inference_mode():
        assert torch.allclose(model.hf(IDS).logits, hf.eval()(IDS).logits, atol=1e-4)


def test_streamed_weights_are_the_networks(pair: tuple[Any, Path]) -> None:
    hf, file = pair
    weights = load_weights(Config(model=str(file), device="cpu"))
    for layer in range(weights.n_layers):
        column = hf.model.layers[layer].mlp.down_proj.weight.detach()
        assert torch.equal(weights.value_vectors(layer), column.T)
    assert weights.tokenizer.get_vocab()["▁dog"] == 209
    assert weights.bos_id == 2


def test_the_file_and_its_folder_give_the_same_lists(tmp_path: Path) -> None:
    hf = network("gemma3")
    file = save_gguf(hf, "gemma3", tmp_path / "tiny.gguf")
    from tests.conftest import save

    save(hf, tmp_path / "folder")
    lists = []
    for name in (file, tmp_path / "folder"):
        config = Config(model=str(name), device="cpu", top_k=10)
        lists.append(extract(load_weights(config), config).layers)
    for quantised, plain in zip(*lists, strict=True):
        assert (quantised.top_ids == plain.top_ids).all()
        assert abs(quantised.top_values - plain.top_values).max() < 1e-5


def test_the_results_say_how_the_file_was_quantised(tmp_path: Path) -> None:
    file = save_gguf(network("gemma3"), "gemma3", tmp_path / "tiny.gguf", "Q8_0")
    facts = load_weights(Config(model=str(file), device="cpu")).facts()
    assert facts["why_dtype"] == "exact on a CPU; dequantised from Q8_0"


def test_a_folder_with_one_file_is_that_file(pair: tuple[Any, Path]) -> None:
    _, file = pair
    assert find(Config(model=str(file.parent))).folder == file
    assert find(Config(model=str(file))).parameters == sum(p.numel() for p in pair[0].parameters())


def test_a_folder_with_two_files_is_ambiguous(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(RequestError, match=r"2 GGUF files \(a.gguf, b.gguf\); name one"):
        find(Config(model=str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no such thing" * 20])
def test_what_is_no_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(RequestError, match="could not be read as GGUF"):
        find(Config(model=str(tmp_path / "x.gguf")))


def test_the_command_says_what_the_file_needs(
    pair: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["run", "--model", str(pair[1]), "--device", "cpu", "--dry-run", *out]) == 0
    assert "tiny.gguf" in capsys.readouterr().out


SOUND = np.ones((4, 32), np.float32)
# What the header or the tensors say, and what is answered.
OTHER_KINDS = {
    "looks ahead": (lambda w: w.add_bool("gemma3.attention.causal", False), "is_causal: False"),
    "embeds": (lambda w: w.add_uint32("gemma3.pooling_type", 1), "model of embeddings"),
    "judges": (lambda w: w.add_tensor("cls.output.weight", SOUND), r"classifier \(cls.output"),
    "adapter": (lambda w: w.add_type("adapter"), "of the kind 'adapter', expected a model"),
    "a part": (lambda w: w.add_uint16("split.count", 3), "one of 3 parts of a model; join them"),
    "yarn": (lambda w: w.add_string("gemma3.rope.scaling.type", "yarn"), "rope.scaling.type yarn"),
    "frequencies": (lambda w: w.add_tensor("rope_freqs.weight", SOUND), "rope_freqs.weight"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_whole_language_model_is_refused(kind: str, tmp_path: Path) -> None:
    more, said = OTHER_KINDS[kind]
    file = save_gguf(network("gemma3"), "gemma3", tmp_path / "tiny.gguf", more=more)
    with pytest.raises(RequestError, match=said):
        find(Config(model=str(file)))


@pytest.mark.parametrize("kind", ["bert", "clip", "controlvector", "gemma3n"])
def test_other_architectures_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", kind)
    writer.add_tensor("direction.1", SOUND)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RequestError, match=f"architecture {kind!r}, expected one of: gemma3"):
        find(Config(model=str(tmp_path / "x.gguf")))


@pytest.mark.parametrize("said", [True, None])
def test_what_says_that_it_is_causal_is_taken(said: bool | None, tmp_path: Path) -> None:
    def more(writer: Any) -> None:
        if said is not None:
            writer.add_bool("gemma3.attention.causal", said)
        writer.add_type("model")
        writer.add_uint32("gemma3.pooling_type", 0)
        writer.add_string("gemma3.rope.scaling.type", "none")

    file = save_gguf(network("gemma3"), "gemma3", tmp_path / "tiny.gguf", more=more)
    assert find(Config(model=str(file))).family.name == "gemma3"


def test_a_tensor_that_the_network_has_no_place_for_is_refused(tmp_path: Path) -> None:
    """As in a folder: a bias changes what the layer gives."""
    bias = np.ones(32, np.float32)
    more = lambda writer: writer.add_tensor("blk.0.attn_q.bias", bias)
    file = save_gguf(network("llama"), "llama", tmp_path / "tiny.gguf", more=more)
    with pytest.raises(RequestError, match="1 tensors are no weights.*attn_q.bias"):
        load_weights(Config(model=str(file), device="cpu"))


def test_a_readout_of_its_own_is_read(tmp_path: Path) -> None:
    head = np.random.default_rng(0).normal(size=tuple(network("llama").lm_head.weight.shape))
    more = lambda writer: writer.add_tensor("output.weight", head.astype(np.float32))
    file = save_gguf(network("llama"), "llama", tmp_path / "tiny.gguf", more=more)
    config = Config(model=str(file), device="cpu")
    for model in (load_weights(config), load_model(config)):
        assert np.allclose(model.unembedding.numpy(), head)


def test_stretched_positions_are_those_of_the_folder(tmp_path: Path) -> None:
    """Gemma 3 from 4B on; the loader leaves the factor out."""
    from tests.conftest import save

    def more(writer: Any) -> None:
        writer.add_string("gemma3.rope.scaling.type", "linear")
        writer.add_float32("gemma3.rope.scaling.factor", 8.0)

    kinds = ["sliding_attention", "full_attention"] * 2
    scaling = {"rope_type": "linear", "factor": 8.0}
    changes = CHANGES["gemma3"] | {"rope_theta": 1e6}
    hf = make_hf("gemma3_text", layer_types=kinds, rope_scaling=scaling, **changes)
    save(hf, tmp_path / "folder")
    file = save_gguf(hf, "gemma3", tmp_path / "tiny.gguf", more=more)
    settings = gguf_settings(file)
    settings.layer_types = kinds  # of which a file says nothing
    folder = load_model(Config(model=str(tmp_path / "folder"), device="cpu"))
    assert _rotary(settings) == _rotary(folder.source.config) == [1e6, 8.0, 1e4]


def test_the_largest_gemma_is_scaled_by_its_heads(tmp_path: Path) -> None:
    """The header says nothing of it; it is known by its layers."""
    hf = make_hf("gemma3_text", layers=62, hidden_size=48, num_attention_heads=4)
    file = save_gguf(hf, "gemma3", tmp_path / "tiny.gguf")
    assert gguf_settings(file).query_pre_attn_scalar == 12


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    seen = []
    for layers in (4, 2):
        hf = make_hf("gemma3_text", layers=layers, **CHANGES["gemma3"])
        save_gguf(hf, "gemma3", path)
        seen.append(load_weights(Config(model=str(path), device="cpu")).n_layers)
    assert seen == [4, 2]


def test_a_quantisation_that_the_library_does_not_know_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any) -> None:
        raise NotImplementedError("dequantization for IQ9 is not implemented")

    file = save_gguf(network("gemma3"), "gemma3", tmp_path / "tiny.gguf")
    monkeypatch.setattr("gguf.dequantize", unknown)
    with pytest.raises(RequestError, match="could not be dequantised .*IQ9.*safetensors"):
        load_weights(Config(model=str(file), device="cpu"))


def test_a_kind_of_file_that_the_library_does_not_know(tmp_path: Path, monkeypatch) -> None:
    file = save_gguf(network("gemma3"), "gemma3", tmp_path / "tiny.gguf")
    monkeypatch.setattr("conceptvec.model.quantised._field", lambda *_: 12345)
    assert quantisation(file) == "GGUF"
