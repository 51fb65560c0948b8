"""The loaded model: every family, tokens in, logits out."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import pytest
import torch

from conceptvec import Config, RequestError, RunError, load_model
from conceptvec.model.checkpoint import FAMILIES
from conceptvec.model.network import Model, check_finite
from tests.conftest import KNOWN, make_hf, save, wrap
from tests.model.forward import TEXTS


@torch.inference_mode()
def own_logits(model: Model, text: str) -> torch.Tensor:
    """The logits of a text by the package's way: the decoder's layers, then `Model.logits`."""
    states = []
    hook = model.layers[-1].register_forward_hook(lambda _, args, out: states.append(out))
    model.decoder(input_ids=torch.tensor([model.encode(text)]), use_cache=False)
    hook.remove()
    hidden = states[0][0] if isinstance(states[0], tuple) else states[0]
    return model.logits(hidden.squeeze(0))


@torch.inference_mode()
def transformers_logits(model: Model, text: str) -> torch.Tensor:
    return model.hf(input_ids=torch.tensor([model.encode(text)])).logits[0]


@pytest.mark.parametrize("family", KNOWN)
class TestFamily:
    """A family's own checkpoint gives the model that was saved."""

    @pytest.fixture
    def pair(self, family: str, tmp_path: Path) -> tuple[Model, Model]:
        """A model before it was saved, and loaded."""
        before = wrap(make_hf(family), family)
        save(before.hf, tmp_path)
        loaded = load_model(Config(model=str(tmp_path), device="cpu"))
        # Of some families AutoTokenizer always builds its own kind, which does not read the
        # test's word-level vocabulary.
        loaded.tokenizer = before.tokenizer
        return before, loaded

    def test_dimensions(self, family: str, pair) -> None:
        model = pair[1]
        assert (model.n_layers, model.hidden_size, model.intermediate_size) == (4, 32, 24)
        assert model.vocab_size == len(model.tokenizer)
        assert model.facts()["family"] == FAMILIES[family].name

    def test_fingerprint(self, family: str, pair) -> None:
        before, loaded = pair
        assert loaded.fingerprint == before.fingerprint

    @pytest.mark.parametrize("text", TEXTS)
    def test_logits(self, family: str, pair, text: str) -> None:
        before, loaded = pair
        expected = transformers_logits(before, text)
        assert torch.allclose(transformers_logits(loaded, text), expected, atol=2e-5)
        assert torch.allclose(own_logits(loaded, text), expected, atol=2e-5)

    def test_what_the_mlp_writes(self, family: str, pair) -> None:
        """The residual stream after the layer, minus that before the MLP."""
        model = pair[1]
        seen: dict[str, torch.Tensor] = {}
        layer = model.layers[1]
        first = getattr(layer, model.family.mlp_norm)
        first.register_forward_pre_hook(lambda _, args: seen.update(before=args[0]))
        layer.mlp.register_forward_hook(lambda _, args, out: seen.update(mlp=out))
        layer.register_forward_hook(
            lambda _, args, out: seen.update(after=out[0] if isinstance(out, tuple) else out)
        )
        with torch.inference_mode():
            model.decoder(input_ids=torch.tensor([model.encode(TEXTS[0])]), use_cache=False)
            written = model.mlp_written(1, seen["mlp"])
        assert torch.allclose(seen["after"] - seen["before"], written, atol=1e-5)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_float16_checkpoints_load_in_another_precision(name: str, tmp_path: Path) -> None:
    save(make_hf().half(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "float16"
    model = load_model(Config(model=str(tmp_path), device="cpu", dtype=name))
    assert {p.dtype for p in model.hf.parameters()} == {getattr(torch, name)}
    assert model.dtype is getattr(torch, name)


def test_a_multimodal_checkpoint_loads_without_its_vision_tower(tmp_path: Path) -> None:
    save(make_hf("gemma3"), tmp_path)
    model = load_model(Config(model=str(tmp_path), device="cpu"))
    assert not [name for name, _ in model.hf.named_parameters() if "vision" in name]


def test_a_weight_of_the_network_alone_must_be_there(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(make_hf(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.self_attn.q_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(RequestError, match="1 weights are missing.*Nothing is ever filled in"):
        load_model(Config(model=str(tmp_path), device="cpu"))


def test_the_precision_is_told(caplog) -> None:
    with caplog.at_level(logging.INFO, "conceptvec"):
        load_model(Config(device="cpu"))
    assert "demo on cpu in float32: exact on a CPU" in caplog.text


def test_logits_of_a_bfloat16_model_are_not_rounded(tiny) -> None:
    """Rounded to bfloat16, logits around 20 would move by up to 0.06."""
    states = torch.randn(7, tiny.hidden_size)
    half = copy.deepcopy(tiny.hf).bfloat16()
    model = Model(half, tiny.tokenizer, "tiny", None, tiny.family, tiny.device, torch.bfloat16)
    normed = model.norm(states.bfloat16())
    exact = normed.double() @ model.unembedding.double().T
    logits = model.logits(states.bfloat16())
    assert logits.dtype is torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-4)
    assert ((normed @ model.unembedding.T).double() - exact).abs().max() > 1e-2


def with_bos_in_front(model: Model) -> Model:
    """The same, with a tokenizer that puts BOS in front of every text, as Gemma's does."""
    from tokenizers.processors import TemplateProcessing

    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", model.bos_id)]
    )
    return model


def test_texts_begin_with_one_bos_where_the_tokenizer_puts_it(tiny) -> None:
    bare = tiny.tokenizer("w1 dog", add_special_tokens=False)["input_ids"]
    assert with_bos_in_front(tiny).encode("w1 dog") == [tiny.bos_id, *bare]
    assert tiny.encode("<bos>w1 dog") == [tiny.bos_id, *bare]


def test_a_bos_that_is_only_named_is_not_put_in_front(tiny) -> None:
    assert tiny.bos_id is not None
    assert tiny.bos_id not in tiny.encode("w1 dog")
    assert tiny.encode("") == []


@pytest.mark.parametrize("in_front", [True, False])
def test_a_bos_beyond_the_matrix_is_refused_at_once(in_front: bool, tmp_path: Path) -> None:
    """Added to the tokenizer, and the matrix not made larger."""
    model = wrap(make_hf())
    model.tokenizer.add_special_tokens({"bos_token": "<start>"})
    assert model.tokenizer.bos_token_id == model.vocab_size
    model.bos_id = model.tokenizer.bos_token_id
    if in_front:
        with_bos_in_front_named(model, "<start>")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="resize_token_embeddings"):
        load_model(Config(model=str(tmp_path), device="cpu"))


def with_bos_in_front_named(model: Model, name: str) -> None:
    from tokenizers.processors import TemplateProcessing

    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, model.tokenizer.bos_token_id)]
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only user turns') }}",
        "{% for turn in messages %}",
        "{{ messages.nothing.there }}",
        "{% include 'other' %}",
        {"tool_use": "{{ bos_token }}"},
    ],
)
def test_a_chat_template_that_cannot_be_used_is_one_line(template, tiny) -> None:
    tiny.tokenizer.chat_template = template
    with pytest.raises(RequestError, match="the chat template of tiny cannot be used"):
        tiny.encode("w1", chat=True)


def test_another_models_tokenizer_is_refused(tiny) -> None:
    tiny.vocab_size = 20
    with pytest.raises(RequestError, match="they do not belong together"):
        tiny.encode("w199")


def test_a_chat_template_opens_the_models_turn(tiny) -> None:
    tiny.tokenizer.chat_template = (
        "{{ bos_token }}{% for turn in messages %}w7 {% endfor %}"
        "{% if add_generation_prompt %}w8 {% endif %}"
    )
    expected = [tiny.bos_id, *tiny.encode("w7 w8 w1")]
    assert tiny.encode("w1", chat=True) == expected


def test_a_model_without_a_chat_template_says_so(tiny) -> None:
    with pytest.raises(RequestError, match="tiny has no chat template"):
        tiny.encode("w1", chat=True)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_pass_that_leaves_the_numbers_names_the_layer(number: float) -> None:
    check_finite(torch.zeros(3), 2)
    with pytest.raises(RunError, match="after layer 2"):
        check_finite(torch.tensor([0.0, number]), 2)
