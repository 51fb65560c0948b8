"""`find` against brute force over every neuron of a tiny model, from the weights and from a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conceptvec import Config, RequestError
from conceptvec.cli import main
from conceptvec.model.network import load_model
from conceptvec.model.vocabulary import masked_tokens, token_texts
from conceptvec.pipeline import run
from conceptvec.tools.find import find, word_forms


def brute(config: Config, words: dict[str, list[str]]) -> list[tuple[str, float]]:
    """(id, strength) of every pole in float64, strongest first."""
    model = load_model(config)
    texts = token_texts(model)
    shown = ~masked_tokens(model, texts)
    out = []
    for layer in range(model.n_layers):
        d = (model.value_vectors(layer) * model.fold_scale(layer, config.fold)).double()
        z = d @ model.unembedding.double().T
        y = (z - z[:, shown].mean(1, keepdim=True)) / z[:, shown].std(1, correction=0, keepdim=True)
        for pole, sign in (("+", 1), ("-", -1)):
            best = torch.stack(
                [(sign * y[:, [texts.index(t) for t in ts]]).amax(1) for ts in words.values()]
            )
            out += [(f"L{layer:02d}_N{n:04d}{pole}", float(s)) for n, s in enumerate(best.mean(0))]
    return sorted(out, key=lambda f: -f[1])


def test_equals_brute_force(tiny_folder) -> None:
    config = Config(model=str(tiny_folder), device="cpu")
    found = find(["dog", "cat"], config, limit=4 * 24 * 2)
    assert found["neurons_examined"] == 4 * 24
    truth = {k: s for k, s in brute(config, {"dog": [" dog"], "cat": [" cat"]}) if s > 0}
    got = {f["id"]: f["strength"] for f in found["results"]}
    assert got.keys() == truth.keys()
    assert all(abs(got[k] - truth[k]) < 1e-4 for k in got)
    standings = [f["standing"] for f in found["results"]]
    assert standings == sorted(standings, reverse=True)
    # The ranks agree with the top tokens, which come from the exact projection.
    checked = 0
    for f in found["results"]:
        top = [t for t, _ in f["top_tokens"]]
        for word in f["words"].values():
            assert (word["token"] in top) == (word["rank"] <= len(top))
            checked += word["token"] in top and top.index(word["token"]) + 1 == word["rank"]
    assert checked > 5


def test_a_planted_vector_comes_first(tiny_folder) -> None:
    """A neuron that writes the direction of two words is found, on the pole of its sign."""
    from safetensors.torch import load_file, save_file

    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    model = load_model(Config(model=str(tiny_folder), device="cpu"))
    texts = token_texts(model)
    e = model.unembedding
    wanted = e[texts.index(" lion")] + e[texts.index(" wolf")]
    key = next(k for k in tensors if k.endswith("layers.2.mlp.down_proj.weight"))
    tensors[key][:, 7] = -3 * wanted / model.fold_scale(2, "both")
    save_file(tensors, file, metadata={"format": "pt"})
    best = find(["lion", "wolf"], Config(model=str(tiny_folder), device="cpu"), limit=3)["results"][
        0
    ]
    assert best["id"] == "L02_N0007-"
    assert {w["rank"] for w in best["words"].values()} == {1, 2}


def test_from_a_finished_run(tiny_folder, tmp_path) -> None:
    config = Config(
        model=str(tiny_folder),
        device="cpu",
        stages=(1,),
        max_vectors=None,
        top_k=300,
        out=str(tmp_path / "r"),
    )
    run(config)
    a = find(
        ["dog", "cat"], Config(device="cpu"), limit=50, run=tmp_path / "r"
    )  # model and fold come from the run
    b = find(["dog", "cat"], config, limit=50)
    assert a["source"] != b["source"] == "weights"
    strong = {
        f["id"]: f["strength"]
        for f in b["results"]
        if all(w["strength"] > 0 for w in f["words"].values())
    }
    same = {f["id"]: f["strength"] for f in a["results"]}
    both = strong.keys() & same.keys()
    assert len(both) > 10
    assert all(
        abs(strong[k] - same[k]) < 1e-3 for k in both
    )  # the lists hold the whole vocabulary here
    manifest = json.loads((tmp_path / "r/manifest.json").read_text())
    assert (
        manifest["configuration"]["dtype"] == "auto"
    )  # what it came to on the run's device counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "conceptvec.model.weights.choose_dtype",
            lambda name, _: (getattr(torch, name), "asked for"),
        )
        assert (
            find(["dog"], Config(device="cpu"), run=tmp_path / "r")["neurons_examined"]
            == a["neurons_examined"]
        )
    with pytest.raises(RequestError, match="no run folder"):
        find(["dog"], config, run=tmp_path / "nothing")


def test_forms_and_bad_words() -> None:
    texts = ["<bos>", " dog", "Dogs", " DOG", " dogma", "cat", " cats'", "狗"]
    masked = np.array([True] + [False] * 7)
    assert word_forms(["dogs", "Cat", "狗"], texts, masked) == {
        "dogs": [1, 2, 3],
        "Cat": [5, 6],
        "狗": [7],
    }
    with pytest.raises(RequestError, match="'zebra'"):
        word_forms(["dog", "zebra"], texts, masked)


def test_command_line(capsys) -> None:
    assert main(["find", "red", "--device", "cpu", "--limit", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["results"]) == 3
    assert found["words"]["red"]
    assert main(["find", "red", "--device", "cpu", "--limit", "3"]) == 0
    assert found["results"][0]["id"] in capsys.readouterr().out
    assert main(["find", " ", "--device", "cpu"]) == 2
    assert main(["find", "red", "--limit", "0"]) == 2
