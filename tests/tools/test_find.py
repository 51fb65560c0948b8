"""`find` against brute force over every neuron of a tiny model, from the weights and from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conceptvec import Config, RequestError
from conceptvec.cli import main
from conceptvec.model.network import load_model
from conceptvec.model.vocabulary import masked_tokens, token_texts
from conceptvec.pipeline import run
from conceptvec.tools.find import find, word_forms

NEURONS = 4 * 24  # of the tiny model


@pytest.fixture
def config(tiny_folder: Path) -> Config:
    return Config(model=str(tiny_folder), device="cpu")


def brute(config: Config, words: list[list[str]]) -> dict[str, float]:
    """Pole → strength in float64, of every pole whose strength is positive."""
    model = load_model(config)
    texts = token_texts(model)
    shown = ~masked_tokens(model, texts)
    strengths: dict[str, float] = {}
    for layer in range(model.n_layers):
        d = (model.value_vectors(layer) * model.fold_scale(layer, config.fold)).double()
        z = d @ model.unembedding.double().T
        y = (z - z[:, shown].mean(1, keepdim=True)) / z[:, shown].std(1, correction=0, keepdim=True)
        for pole, sign in (("+", 1), ("-", -1)):
            forms = [[texts.index(form) for form in word] for word in words]
            best = torch.stack([(sign * y[:, ids]).amax(1) for ids in forms]).mean(0)
            for neuron, strength in enumerate(best.tolist()):
                strengths[f"L{layer:02d}_N{neuron:04d}{pole}"] = strength
    return {pole: strength for pole, strength in strengths.items() if strength > 0}


def strengths_of(answer: dict[str, Any]) -> dict[str, float]:
    return {pole["id"]: pole["strength"] for pole in answer["results"]}


@pytest.fixture
def everything(config: Config) -> dict[str, Any]:
    """Every pole that promotes dogs and cats."""
    return find(["dog", "cat"], config, limit=2 * NEURONS)


def test_strengths_equal_brute_force(everything: dict[str, Any], config: Config) -> None:
    assert strengths_of(everything) == pytest.approx(brute(config, [[" dog"], [" cat"]]), abs=1e-4)


def test_every_neuron_is_examined(everything: dict[str, Any]) -> None:
    assert everything["neurons_examined"] == NEURONS


def test_what_stands_out_most_comes_first(everything: dict[str, Any]) -> None:
    standings = [pole["standing"] for pole in everything["results"]]
    assert standings == sorted(standings, reverse=True)


def test_ranks_agree_with_the_exact_projection(everything: dict[str, Any]) -> None:
    places = 0
    for pole in everything["results"]:
        top = [token for token, _ in pole["top_tokens"]]
        for word in pole["words"].values():
            assert (word["token"] in top) == (word["rank"] <= len(top))
            places += word["token"] in top and top.index(word["token"]) + 1 == word["rank"]
    assert places > 5


def test_a_planted_vector_comes_first(tiny_folder: Path, config: Config) -> None:
    """A neuron that writes the direction of two words is found, on the pole of its sign."""
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    model = load_model(config)
    texts = token_texts(model)
    rows = model.unembedding
    wanted = rows[texts.index(" lion")] + rows[texts.index(" wolf")]
    key = next(k for k in tensors if k.endswith("layers.2.mlp.down_proj.weight"))
    tensors[key][:, 7] = -3 * wanted / model.fold_scale(2, "both")
    save_file(tensors, file, metadata={"format": "pt"})
    best = find(["lion", "wolf"], config, limit=3)["results"][0]
    assert best["id"] == "L02_N0007-"
    assert {word["rank"] for word in best["words"].values()} == {1, 2}


@pytest.fixture
def finished(tiny_folder: Path, tmp_path: Path) -> Path:
    """A run of Stage 1 whose lists hold the whole vocabulary."""
    run(
        Config(
            model=str(tiny_folder),
            device="cpu",
            stages=(1,),
            max_vectors=None,
            top_k=300,
            out=str(tmp_path / "run"),
        )
    )
    return tmp_path / "run"


def test_a_finished_run_gives_what_the_weights_give(finished: Path, config: Config) -> None:
    kept = find(["dog", "cat"], Config(device="cpu"), limit=50, run=finished)
    weights = find(["dog", "cat"], config, limit=50)
    assert kept["source"] == str(finished)
    strong = {
        pole["id"]
        for pole in weights["results"]
        if all(word["strength"] > 0 for word in pole["words"].values())
    }
    both = strong & strengths_of(kept).keys()
    assert len(both) > 10
    for pole in both:
        assert strengths_of(kept)[pole] == pytest.approx(strengths_of(weights)[pole], abs=1e-3)


def test_a_runs_own_precision_is_taken(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` came to on the run's device counts, not what it comes to now."""
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["configuration"]["dtype"] == "auto"
    monkeypatch.setattr(
        "conceptvec.model.weights.choose_dtype",
        lambda name, _: (getattr(torch, name), "asked for"),  # fails for "auto"
    )
    assert find(["dog"], Config(device="cpu"), run=finished)["neurons_examined"] == NEURONS


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no run folder"):
        find(["dog"], Config(device="cpu"), run=tmp_path / "nothing")


TEXTS = ["<bos>", " dog", "Dogs", " DOG", " dogma", "cat", " cats'", "狗"]
MASKED = np.array([True] + [False] * 7)


@pytest.mark.parametrize(("word", "ids"), [("dogs", [1, 2, 3]), ("Cat", [5, 6]), ("狗", [7])])
def test_forms_of_a_word(word: str, ids: list[int]) -> None:
    assert word_forms([word], TEXTS, MASKED) == {word: ids}


def test_a_word_without_a_token_is_named() -> None:
    with pytest.raises(RequestError, match="'zebra'"):
        word_forms(["dog", "zebra"], TEXTS, MASKED)


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", "red", "--device", "cpu", "--limit", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["results"]) == 3
    assert answer["words"]["red"]


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", "red", "--device", "cpu", "--limit", "3"]) == 0
    assert "best form and its rank" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[" "], ["red", "--limit", "0"]])
def test_bad_requests(arguments: list[str]) -> None:
    assert main(["find", *arguments, "--device", "cpu"]) == 2


def test_the_answer_shows_itself(config: Config) -> None:
    answer = find(["dog"], config, limit=3)
    assert repr(answer).startswith(f"{NEURONS} neurons of ")
    assert answer._repr_html_().count("<tr>") == 4  # the head and three poles
