"""Activation statistics against a plain pass, one passage at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from conceptvec import RequestError
from conceptvec.concepts import load_concepts
from conceptvec.errors import RunError
from conceptvec.extraction import activations as act
from conceptvec.extraction.activations import (
    Activations,
    capturing,
    corpus_activations,
    read_corpus,
    token_batches,
)
from conceptvec.extraction.stage import measure_activations
from conceptvec.model.network import Model

CORPUS = [
    "w1 w2 w3",
    "w4",
    "w5 w6 w7 w8 dog",
    "w9 w3 w1",
    "cat w2",
    "w1 w1 w1 w1 w1 w2 w3",
    " ".join(f"w{i}" for i in range(150)),  # longer than a passage may be
]
FAMILIES = ["gemma3_text", "gemma3", "gemma2", "llama", "qwen2"]
LAYERS = [1, 3]


@torch.inference_mode()
def one_by_one(model: Model, texts: Sequence[str]) -> dict[int, list[torch.Tensor]]:
    """Per layer the activations (T, I) of every text but for its first token."""
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    with capturing(model, LAYERS, lambda layer, a: seen[layer].append(a[0, 1:].clone())):
        for text in texts:
            ids = torch.tensor([model.encode(text)[: act.MAX_TOKENS]])
            model.decoder(input_ids=ids, use_cache=False)
    return seen


@pytest.fixture
def measured(tiny) -> Activations:
    return corpus_activations(tiny, lambda: CORPUS, LAYERS)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_activations_times_vectors_is_the_mlp_output(family: str, tiny_of) -> None:
    """Σ_j a_j d_j, from captured activations and value vectors, is what the MLP gives out."""
    model = tiny_of(family)
    activations, outputs = {}, {}
    for number, layer in enumerate(model.layers):
        layer.mlp.register_forward_hook(
            lambda _, args, out, number=number: outputs.__setitem__(number, out)
        )
    with capturing(model, range(model.n_layers), activations.__setitem__):
        model.decoder(input_ids=torch.tensor([model.encode("w1 w2 w3 dog")]), use_cache=False)
    for number in range(model.n_layers):
        written = activations[number] @ model.value_vectors(number)
        assert outputs[number].abs().max() > 1e-3
        assert torch.allclose(written, outputs[number], atol=1e-5)


def test_nothing_is_captured_after_the_context(tiny) -> None:
    seen: list[int] = []
    with capturing(tiny, [0, 2], lambda layer, _: seen.append(layer)):
        tiny.decoder(input_ids=torch.tensor([[2, 9]]), use_cache=False)
    tiny.decoder(input_ids=torch.tensor([[2, 9]]), use_cache=False)
    assert seen == [0, 2]


def test_texts_of_one_length_are_together(tiny) -> None:
    batches = list(token_batches(tiny, CORPUS, 8))
    order = [index for members, _ in batches for index in members]
    assert sorted(order) == list(range(len(CORPUS)))
    for members, ids in batches:
        expected = [tiny.encode(CORPUS[index])[: act.MAX_TOKENS] for index in members]
        assert ids.tolist() == expected
        assert len(members) == 1 or ids.numel() <= 8 + ids.shape[1]


@pytest.mark.parametrize("layer", LAYERS)
def test_statistics_equal_brute_force(layer: int, tiny, measured) -> None:
    a = torch.cat(one_by_one(tiny, CORPUS)[layer]).double().numpy()  # (positions, I)
    assert measured.positions == len(a)
    assert np.allclose(measured.mean[layer], a.mean(0), atol=1e-6)
    assert np.allclose(measured.max_abs[layer], np.abs(a).max(0), atol=1e-5)
    assert np.allclose(measured.positive_share[layer], (a > 0).mean(0), atol=1e-3)
    fires = np.abs(a) >= measured.firing_level(layer)
    assert np.allclose(measured.firing_rate[layer], fires.mean(0), atol=1e-3)
    assert 0 < measured.firing_rate[layer].mean() < 1


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("neuron", [0, 13])
def test_contexts_are_the_strongest_positions(layer: int, neuron: int, tiny, measured) -> None:
    texts = [a[:, neuron] for a in one_by_one(tiny, CORPUS)[layer]]
    values = measured.context_values[layer][neuron]
    peaks = sorted((float(text.abs().max()) for text in texts), reverse=True)
    assert np.allclose(np.abs(values), peaks[: act.CONTEXTS], atol=1e-5)
    for value, (passage, at) in zip(values, measured.context_at[layer][neuron], strict=True):
        index = CORPUS.index(measured.passages[passage])
        assert abs(float(texts[index][at - 1]) - value) < 1e-5


def test_contexts_are_shown_as_text(tiny, measured) -> None:
    contexts = measured.of(3, 13, tiny)["contexts"]
    assert len(contexts) == act.CONTEXTS
    assert all("»" in text and "«" in text for text, _ in contexts)


def test_statistics_come_back_as_they_were(measured) -> None:
    again = Activations.of_arrays(measured.arrays())
    assert again.passages == measured.passages
    assert again.positions == measured.positions
    for name in act.STATISTICS:
        for layer in LAYERS:
            assert np.array_equal(getattr(again, name)[layer], getattr(measured, name)[layer])


def test_windows_bound_the_memory_and_change_nothing(tiny, monkeypatch) -> None:
    """Read in small windows a corpus gives the same."""
    corpus = [f"w{i % 190} w{i % 7} w{i % 11}" for i in range(900)]
    whole = corpus_activations(tiny, lambda: corpus, [2])
    monkeypatch.setattr(act, "WINDOW", 50)
    parts = corpus_activations(tiny, lambda: corpus, [2])
    assert parts.positions == whole.positions
    assert np.allclose(parts.mean[2], whole.mean[2], atol=1e-6)
    assert np.array_equal(parts.max_abs[2], whole.max_abs[2])
    assert np.allclose(parts.firing_rate[2], whole.firing_rate[2], atol=1e-6)
    assert np.allclose(parts.context_values[2], whole.context_values[2], atol=1e-6)


def test_only_passages_that_are_somebodys_context_are_kept(tiny) -> None:
    corpus = [f"w{i % 190} w{i % 7} w{i % 11}" for i in range(900)]
    kept = corpus_activations(tiny, lambda: corpus, [2])
    used = {int(passage) for passage in kept.context_at[2][..., 0].ravel()}
    assert used == set(range(len(kept.passages)))
    assert len(used) <= tiny.intermediate_size * act.CONTEXTS


def test_a_wrapped_down_projection_is_noticed(tiny) -> None:
    """If a·D is not what the MLP writes, the value vectors mean nothing: the run stops."""
    tiny.layers[1].mlp.register_forward_hook(lambda _, args, out: out * 1.5)
    with pytest.raises(RunError, match="layer 1"):
        corpus_activations(tiny, lambda: CORPUS, [0, 1])


def test_corpus_and_prompts_are_measured(tiny, small) -> None:
    groups = load_concepts(small.concepts).prompts().values()
    prompts = [prompt.prompt + prompt.answer for group in groups for prompt in group]
    texts = ["w1 w2 w3 dog w4", "w5 w6 red w7", *prompts]
    both = measure_activations(tiny, small, [1])
    assert both.positions == sum(len(tiny.encode(text)) - 1 for text in texts)


def test_corpus_reading(tmp_path) -> None:
    file = tmp_path / "c.txt"
    file.write_text("\ufeffone\n\n  two  \n", encoding="utf-8")
    assert list(read_corpus(str(file))) == ["one", "two"]


def test_an_empty_corpus_is_a_bad_request(tmp_path) -> None:
    file = tmp_path / "c.txt"
    file.write_text("\n \n")
    with pytest.raises(RequestError, match="holds no text"):
        list(read_corpus(str(file)))
