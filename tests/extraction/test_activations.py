"""Activation statistics against a plain pass, one passage at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conceptvec.concepts import load_concepts
from conceptvec.errors import RunError
from conceptvec.extraction import activations as act
from conceptvec.extraction.activations import capturing, corpus_activations, read_corpus

CORPUS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 dog", "w9 w3 w1", "cat w2", "w1 w1 w1 w1 w1 w2 w3"]
FAMILIES = ["gemma3_text", "gemma3", "gemma2", "llama", "qwen2"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_activations_times_vectors_is_the_mlp_output(family, tiny_of) -> None:
    """Σ_j a_j d_j, from the captured activations and the value vectors, is what the MLP module gives out."""
    model = tiny_of(family)
    seen, outputs = {}, {}
    handles = [
        layer.mlp.register_forward_hook(lambda _, args, out, i=i: outputs.__setitem__(i, out))
        for i, layer in enumerate(model.layers)
    ]
    with capturing(model, range(model.n_layers), lambda layer, a: seen.__setitem__(layer, a)):
        model.decoder(input_ids=torch.tensor([model.encode("w1 w2 w3 dog")]), use_cache=False)
    for handle in handles:
        handle.remove()
    for i in range(model.n_layers):
        assert outputs[i].abs().max() > 1e-3
        assert torch.allclose(seen[i] @ model.value_vectors(i), outputs[i], atol=1e-5)


@torch.inference_mode()
def test_statistics_equal_brute_force(tiny, config, tmp_path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS))
    config = replace(config, corpus=str(corpus))
    layers = [1, 3]
    found = corpus_activations(tiny, config, layers)
    prompts = [
        p.prompt + p.answer for group in load_concepts(None).prompts().values() for p in group
    ]
    texts = CORPUS + prompts
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    with capturing(tiny, layers, lambda layer, a: seen[layer].append(a[0, 1:].clone())):
        for text in texts:
            tiny.decoder(
                input_ids=torch.tensor([tiny.encode(text)[: act.MAX_TOKENS]]), use_cache=False
            )
    for layer in layers:
        a = torch.cat(seen[layer]).double().numpy()  # (positions, I)
        assert found.positions == len(a)
        assert np.allclose(found.mean[layer], a.mean(0), atol=1e-6)
        assert np.allclose(found.max_abs[layer], np.abs(a).max(0), atol=1e-5)
        assert np.allclose(found.positive_share[layer], (a > 0).mean(0), atol=1e-3)
        fires = np.abs(a) >= found.firing_level(layer)
        assert np.allclose(found.firing_rate[layer], fires.mean(0), atol=1e-3)
        assert 0 < found.firing_rate[layer].mean() < 1
        for neuron in (0, 13):
            peaks = sorted((float(x[:, neuron].abs().max()) for x in seen[layer]), reverse=True)
            assert np.allclose(
                np.abs(found.context_values[layer][neuron]), peaks[: act.CONTEXTS], atol=1e-5
            )
            for value, (passage, at) in zip(
                found.context_values[layer][neuron], found.context_at[layer][neuron], strict=True
            ):
                index = texts.index(found.passages[passage])
                assert abs(float(seen[layer][index][at - 1, neuron]) - value) < 1e-5
            shown = found.of(layer, neuron, tiny)["contexts"]
            assert len(shown) == act.CONTEXTS
            assert all("»" in text for text, _ in shown)


def test_windows_bound_the_memory_and_change_nothing(tiny, config, tmp_path, monkeypatch) -> None:
    """A corpus read in small windows gives the same; only passages that are somebody's context are kept."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"w{i % 190} w{i % 7} w{i % 11}" for i in range(900)))
    config = replace(config, corpus=str(corpus))
    whole = corpus_activations(tiny, config, [2])
    monkeypatch.setattr(act, "WINDOW", 50)
    parts = corpus_activations(tiny, config, [2])
    assert parts.positions == whole.positions
    assert len(parts.passages) < 900
    assert np.allclose(parts.mean[2], whole.mean[2], atol=1e-6)
    assert np.array_equal(parts.max_abs[2], whole.max_abs[2])
    assert np.allclose(parts.firing_rate[2], whole.firing_rate[2], atol=1e-6)
    assert np.allclose(parts.context_values[2], whole.context_values[2], atol=1e-6)


def test_a_wrapped_down_projection_is_noticed(tiny, config, monkeypatch) -> None:
    """If a·D is not what the MLP writes, the value vectors mean nothing: the run stops."""
    tiny.layers[1].mlp.register_forward_hook(lambda _, args, out: out * 1.5)
    with pytest.raises(RunError, match="layer 1"):
        corpus_activations(tiny, config, [0, 1])


def test_corpus_reading(tmp_path) -> None:
    file = tmp_path / "c.txt"
    file.write_text("\ufeffone\n\n  two  \n", encoding="utf-8")
    assert list(read_corpus(str(file))) == ["one", "two"]
