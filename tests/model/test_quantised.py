"""A GGUF file and the folder that it was made from are the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conceptvec import Config, RequestError
from conceptvec.cli import main
from conceptvec.extraction.stage import extract
from conceptvec.model.checkpoint import find
from conceptvec.model.network import load_model
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
