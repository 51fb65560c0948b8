"""A positive control from end to end: a neuron planted in a random model is found, labelled and validated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import conceptvec as cv
from conceptvec.results import VOLATILE, Results
from conceptvec.validation.measure import Experiment
from tests.conftest import ANIMALS, COLORS, WORDS, make_hf, make_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:constrained_layout not applied"
)  # figures of two concepts
LAYER, NEURON = 1, 7


def plant(hf) -> None:
    """Give animals and colors a direction each; let one neuron write the animals' where it reads `zoo`."""
    ids = make_tokenizer().get_vocab()
    embedding, layer = hf.get_input_embeddings().weight, hf.get_decoder().layers[LAYER]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for words in (ANIMALS, COLORS):
            embedding[[ids["▁" + w] for w in words]] += 0.2 * torch.randn(
                embedding.shape[1], generator=generator
            )
        rows = [ids["▁" + w] for w in ANIMALS]
        concept = embedding[rows].mean(0) - embedding.mean(0)
        scale = (1 + hf.get_decoder().norm.weight) * (1 + layer.post_feedforward_layernorm.weight)
        column = concept / scale
        norm = layer.mlp.down_proj.weight.norm(dim=0).mean()
        layer.mlp.down_proj.weight[:, NEURON] = column / column.norm() * norm
        trigger = embedding[ids["▁zoo"]] - embedding.mean(0)
        trigger = trigger / (1 + layer.pre_feedforward_layernorm.weight)
        layer.mlp.gate_proj.weight[NEURON] = trigger / trigger.norm()
        layer.mlp.up_proj.weight[NEURON] = 3 * trigger / trigger.norm()


def concepts() -> dict:
    """Two concepts whose prompts end with their trigger, and neutral prompts; no prompt contains its answer."""

    def prompts(words: list[str], trigger: str) -> list[dict[str, str]]:
        return [
            {
                "prompt": f"{WORDS[i]} {WORDS[i + 50]} {trigger}",
                "answer": f" {words[i % len(words)]}",
            }
            for i in range(2 * len(words))
        ]

    neutral = [
        {"prompt": f"{WORDS[i]} {WORDS[i + 30]} {WORDS[i + 60]}", "answer": f" {WORDS[i + 90]}"}
        for i in range(40)
    ]
    return {
        "concepts": {
            "animals": {"keywords": ANIMALS, "prompts": prompts(ANIMALS, "zoo")},
            "colors": {"keywords": COLORS, "prompts": prompts(COLORS, "paint")},
        },
        "neutral_prompts": neutral,
    }


def run(tmp_path: Path, planted: bool) -> Results:
    hf = make_hf(layers=3, intermediate_size=96)
    if planted:
        plant(hf)
    hf.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "concepts.json").write_text(json.dumps(concepts()), encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(
        "\n".join(" ".join(WORDS[i : i + 20]) for i in range(0, 180, 9)), encoding="utf-8"
    )
    return cv.run(cv.Config(
        model=str(tmp_path / "model"), device="cpu", concepts=str(tmp_path / "concepts.json"), top_k=30,
        corpus=str(tmp_path / "corpus.txt"), out=str(tmp_path / "run"), nulls=150,
    ))  # fmt: skip


def test_planted_neuron_is_found_labelled_and_validated(tmp_path: Path) -> None:
    entry = run(tmp_path, planted=True)["validation_results"][0]
    assert (entry["id"], entry["concept"], entry["verdict"]) == (
        f"L{LAYER:02d}_N{NEURON:04d}+",
        "animals",
        "validated",
    )
    assert entry["concept_drop"] > 0.3 > 0.1 > abs(entry["unrelated_drop"])
    assert sum(t.strip() in ANIMALS for t, _ in entry["top_tokens"]) == len(ANIMALS)


def test_without_planting_the_neuron_is_nothing(tmp_path: Path) -> None:
    assert all(
        e["neuron"] != NEURON or e["layer"] != LAYER for e in run(tmp_path, planted=False).validated
    )


def test_interrupted_stage_3_resumes_to_the_identical_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path, planted=True)
    whole_parts = sorted(p.name for p in (tmp_path / "run" / "validation").iterdir())
    shutil.rmtree(tmp_path / "run")
    measured, unit = [], Experiment.null_unit

    def interrupted(self, layer, neurons, some, prompts):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append((layer, some))
        return unit(self, layer, neurons, some, prompts)

    monkeypatch.setattr(Experiment, "null_unit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, planted=True)
    kept = {p.name for p in (tmp_path / "run" / "validation").iterdir()}
    assert sum("nulls" in name for name in kept) == 2  # every finished unit is on disk
    again = []
    monkeypatch.setattr(
        Experiment, "null_unit", lambda self, *a: again.append((a[0], a[2])) or unit(self, *a)
    )
    resumed = run(tmp_path, planted=True)
    assert again and not set(map(str, again)) & set(map(str, measured))  # nothing is measured twice
    assert sorted(p.name for p in (tmp_path / "run" / "validation").iterdir()) == whole_parts
    for key in VOLATILE:
        whole.pop(key), resumed.pop(key)
    assert resumed == whole
    entry = whole["validation_results"][0]
    assert {"clean", "damaged", "amplified", "prompt"} == set(entry["continuations"][0])
