"""A positive control from end to end: a neuron planted in a random model is found, labelled and validated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import conceptvec as cv
from conceptvec.effects.scan_record import Scan
from conceptvec.results import VOLATILE, Results
from conceptvec.validation import exact, placement, stage
from tests.conftest import ANIMALS, COLORS, WORDS, corpus_text, make_hf, make_tokenizer

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


def run(tmp_path: Path, planted: bool, **changes) -> Results:
    hf = make_hf(layers=3, intermediate_size=96)
    if planted:
        plant(hf)
    hf.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "concepts.json").write_text(json.dumps(concepts()), encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(corpus_text(900), encoding="utf-8")
    settings = {
        "model": str(tmp_path / "model"),
        "device": "cpu",
        "concepts": str(tmp_path / "concepts.json"),
        "top_k": 30,
        "score_threshold": 0.95,
        "corpus": str(tmp_path / "corpus.txt"),
        "out": str(tmp_path / "run"),
    }
    return cv.run(cv.Config(**(settings | changes)))


def test_planted_neuron_is_found_labelled_and_validated(tmp_path: Path) -> None:
    results = run(tmp_path, planted=True)
    entry = results["validation_results"][0]
    assert entry["id"] == f"L{LAYER:02d}_N{NEURON:04d}+"
    assert entry["concept"] == "animals"
    assert entry["verdict"] == "validated", entry["failed"]
    assert entry["concept_drop"] > 0.3
    assert abs(entry["unrelated_drop"]) < 0.1
    assert sum(text.strip() in ANIMALS for text, _ in entry["top_tokens"]) == len(ANIMALS)
    nulls = results["null_calibration"]
    assert nulls["false_validations"] <= 0.03 * nulls["n"]


def test_without_planting_the_neuron_is_nothing(tmp_path: Path) -> None:
    for entry in run(tmp_path, planted=False).validated:
        assert (entry["layer"], entry["neuron"]) != (LAYER, NEURON)


def test_examples_are_what_plain_transformers_compute(tmp_path: Path) -> None:
    """Every example of every entry, the weight really gone: 1e-4 nats."""
    results = run(tmp_path, planted=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    counted = 0
    for entry in results["validation_results"]:
        weight = model.model.layers[entry["layer"]].mlp.down_proj.weight
        for example in entry["examples"]:
            kept = weight[:, entry["neuron"]].detach().clone()
            ids = torch.tensor([example["ids"]])
            with torch.no_grad():
                clean = model(input_ids=ids).logits[0, -2].log_softmax(0)[ids[0, -1]]
                weight[:, entry["neuron"]] = 0
                damaged = model(input_ids=ids).logits[0, -2].log_softmax(0)[ids[0, -1]]
                weight[:, entry["neuron"]] = kept
            assert abs(float(clean) - example["clean"]) < 1e-4
            assert abs(float(damaged) - example["damaged"]) < 1e-4
            counted += 1
    assert counted >= 8  # five own positions and three others of every entry


def test_clean_values_of_the_clean_pass_are_those_of_the_damaged_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the results differs by more than rounding, and rows are saved."""
    runs = []
    for name in ("shared", "measured"):
        (tmp_path / name).mkdir()
        runs.append(run(tmp_path / name, planted=True))
        for module in (placement, exact):
            monkeypatch.setattr(module, "clean_repeats", lambda dtype: False)
    shared, measured = runs
    flops = [one["computational_complexity"]["validation_flops"] for one in runs]
    assert flops[0] < flops[1]
    pairs = zip(shared["validation_results"], measured["validation_results"], strict=True)
    for one, other in pairs:
        assert (one["id"], one["verdict"]) == (other["id"], other["verdict"])
        drops = ("concept_drop", "elsewhere_drop", "others_drop", "silent_drop")
        values = [(one[name], other[name]) for name in drops]
        values += [
            (one["scan"][name], other["scan"][name]) for name in ("exact_zero", "exact_mean")
        ]
        for a, b in zip(one["examples"], other["examples"], strict=True):
            assert a["ids"] == b["ids"]
            values += [(a["clean"], b["clean"]), (a["damaged"], b["damaged"])]
        for a, b in values:
            assert a == b or abs(a - b) < 2e-5  # six digits are written
    assert shared["validation_results"][0]["concept_drop"] > 0.3


def placed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes) -> tuple[Results, list]:
    """A run in which a third of everything counts as used, and what it placed."""
    placed, place = [], stage.place
    monkeypatch.setattr(Scan, "cut_off", 0.3)
    monkeypatch.setattr(stage, "place", lambda *about: placed.extend(place(*about)) or placed)
    return run(tmp_path, planted=True, score_threshold=0.05, layers="1", **changes), placed


def test_clean_values_are_the_models_at_their_own_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every subject of a layer, whatever stands beside it: used or not, candidate or control."""
    requests, unit = [], stage.measure_unit

    def recorded(of_unit, setting):
        requests.extend((request, setting) for request in of_unit)
        return unit(of_unit, setting)

    monkeypatch.setattr(stage, "measure_unit", recorded)
    _, placed = placed_in(tmp_path, monkeypatch)
    kinds = {(item.subject.role, item.used) for item in placed if item.clean is not None}
    assert kinds > {("candidate", True), ("candidate", False), ("null", True)}
    assert any(item.subject.moved and item.used for item in placed)
    assert all(item.clean is None for item in placed if item.subject.moved)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    compared = {}
    for request, setting in requests:
        if request.clean is None:
            assert request.subject.moved or "clean" not in request.kinds
            continue
        for position, value in zip(request.positions.tolist(), request.clean, strict=True):
            if position not in compared:
                ids = torch.tensor([setting.text(position).ids])
                with torch.no_grad():
                    log_p = model(input_ids=ids).logits[0, -2].log_softmax(0)
                compared[position] = float(log_p[ids[0, -1]])
            assert abs(compared[position] - value) < 1e-4
    assert len(compared) > 100
    assert len({len(request.positions) for request, _ in requests if request.clean is not None}) > 2


def test_bfloat16_measures_its_clean_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log-probabilities differ from pass to pass, so none is taken from another."""
    results, placed = placed_in(tmp_path, monkeypatch, dtype="bfloat16")
    assert placed and all(item.clean is None for item in placed)
    assert sum(len(entry["examples"]) for entry in results["validation_results"]) > 100


def test_interrupted_stage_3_resumes_to_the_identical_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path, planted=True, score_threshold=0.05)
    whole_parts = sorted(p.name for p in (tmp_path / "run" / "validation").iterdir())
    shutil.rmtree(tmp_path / "run")
    measured, unit = [], stage.measure_unit

    def interrupted(requests, setting):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append([request.subject.key for request in requests])
        return unit(requests, setting)

    monkeypatch.setattr(stage, "measure_unit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, planted=True, score_threshold=0.05)
    kept = [path.name for path in (tmp_path / "run" / "validation").iterdir()]
    # Every finished unit is on disk, after the positions that all of them follow from.
    assert sum(not name.startswith("placed_") for name in kept) == 2

    again = []

    def counted(requests, setting):
        again.append([request.subject.key for request in requests])
        return unit(requests, setting)

    monkeypatch.setattr(stage, "measure_unit", counted)
    resumed = run(tmp_path, planted=True, score_threshold=0.05)
    assert again
    assert not {str(keys) for keys in measured} & {str(keys) for keys in again[: len(measured)]}
    assert sorted(p.name for p in (tmp_path / "run" / "validation").iterdir()) == whole_parts
    for key in VOLATILE:
        whole.pop(key)
        resumed.pop(key)
    assert resumed == whole
