"""Everything that is taken along, read back by what reads it, against the weights in float64."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import yaml
from safetensors import safe_open

import conceptvec as cv
from conceptvec import Config, RequestError
from conceptvec.cli import main
from conceptvec.document import check
from conceptvec.export.hub_folder import card
from conceptvec.model.network import Model, load_model
from conceptvec.records import Pole, pole_of
from conceptvec.results import Results
from tests.documents import HOSTILE, candidate, document, entry
from tests.model.test_ambient import SETTINGS

# Layers 0, 1, 1, 2, 3: two concepts, one vector of layer 0, two of one layer.
VALIDATED = [
    entry(0),
    entry(1),
    entry(5),
    entry(2),
    entry(3, concept="colors"),
]


def results_of(model: Model, **changes: Any) -> Results:
    """Results of a run on this model."""
    sample = document([*VALIDATED, entry(6, "no_effect")]) | changes
    return Results(sample | {"model": model.facts()})


@pytest.fixture
def results(tiny: Model) -> Results:
    return results_of(tiny)


def written(model: Model, name: str) -> np.ndarray:
    """The unit vector of what a pole writes into the stream, in float64, from the modules."""
    pole = pole_of(name)
    layer = model.layers[pole.layer]
    column = layer.mlp.down_proj.weight[:, pole.neuron].detach().double().numpy()
    if model.family.post_norm:
        norm = getattr(layer, model.family.post_norm).weight.detach().double().numpy()
        column = column * (model.family.norm_offset + norm)
    return (1 if pole.sign == "+" else -1) * column / np.linalg.norm(column)


def test_a_poles_name_is_read_back() -> None:
    for pole in (Pole(0, 0, "+"), Pole(12, 345, "-"), Pole(123, 45678, "+")):
        assert pole_of(pole.id) == pole


@pytest.mark.parametrize(
    "name", ["", "L1_N0345+", "L12_N345+", "L12_N0345", "x L12_N0345+", "L12_N0345+\n"]
)
def test_what_is_no_poles_name_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="such as L12_N0345"):
        pole_of(name)


# --- control vector ---------------------------------------------------------------------------


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields and tensors as the gguf library reads them."""
    reader = pytest.importorskip("gguf").GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2", "llama"])
def test_a_control_vector_is_the_sum_of_unit_vectors(
    family: str, tiny_of: Callable[[str], Model], tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    model = tiny_of(family)
    results_of(model).export(tmp_path / "c.gguf", to="gguf", concept="animals", model=model)
    _, tensors = read_gguf(tmp_path / "c.gguf")
    expected = {
        1: written(model, "L01_N0001-") + written(model, "L01_N0005-"),
        2: written(model, "L02_N0002+"),
        3: np.zeros(model.hidden_size),
    }
    assert tensors.keys() == {f"direction.{layer}" for layer in expected}
    for layer, direction in expected.items():
        assert np.allclose(tensors[f"direction.{layer}"].data, direction, atol=1e-6)


def test_a_control_vector_says_what_it_is(results: Results, tiny: Model, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    results.export(tmp_path / "c.gguf", to="gguf", concept="colors", model=tiny)
    fields, tensors = read_gguf(tmp_path / "c.gguf")
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "gemma3"
    assert fields["controlvector.layer_count"] == 3
    assert fields["general.description"].startswith("colors L03_N0003- dog")
    assert {str(tensor.tensor_type.name) for tensor in tensors.values()} == {"F32"}
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(tiny.hidden_size,)}


def test_the_concept_with_most_vectors_is_taken_and_named(
    results: Results, tiny: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("gguf")
    results.export(tmp_path / "c.gguf", to="gguf", model=tiny)
    results.export(tmp_path / "d.gguf", to="gguf", concept="animals", model=tiny)
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "d.gguf").read_bytes()
    assert "one concept: animals" in caplog.text
    assert "layer 0: L00_N0000+" in caplog.text


def test_layer_0_alone_makes_no_control_vector(
    results: Results, tiny: Model, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="layer 0"):
        results.export(tmp_path / "c.gguf", to="gguf", ids=["L00_N0000+"], model=tiny)
    assert not (tmp_path / "c.gguf").exists()


def test_any_vector_can_be_chosen_by_its_id(results: Results, tiny: Model, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    results.export(tmp_path / "c.gguf", to="gguf", ids=["L03_N0023-"], model=tiny)
    _, tensors = read_gguf(tmp_path / "c.gguf")
    assert np.allclose(tensors["direction.3"].data, written(tiny, "L03_N0023-"), atol=1e-6)


# --- table ------------------------------------------------------------------------------------


def cells(table: pandas.DataFrame) -> list[list[Any]]:
    """Every cell, one sign for what is empty or not measured.

    Results hold six digits; some versions of pandas read the seventeenth wrongly.
    """

    def plain(cell: Any) -> Any:
        return round(cell, 12) if isinstance(cell, float) else cell

    return [["" if pandas.isna(cell) else plain(cell) for cell in row] for row in table.to_numpy()]


def test_a_csv_loses_nothing_of_the_table(results: Results, tmp_path: Path) -> None:
    results.export(tmp_path / "t.csv", to="csv")
    read = pandas.read_csv(tmp_path / "t.csv", engine="python")
    assert list(read.columns) == list(results.table().columns)
    assert cells(read) == cells(results.table())


def test_the_table_holds_the_entries_numbers(results: Results) -> None:
    table = results.table().set_index("id")
    for tested in results["validation_results"]:
        row = table.loc[tested["id"]]
        assert row["concept_drop"] == tested["concept_drop"]
        assert row["damage.rotate.selectivity"] == tested["damage"]["rotate"]["selectivity"]
        assert [row["ci95.low"], row["ci95.high"]] == tested["ci95"]
        assert row["scan.p_words"] == tested["scan"]["p_words"]


def test_a_run_of_two_stages_has_a_table(tiny: Model) -> None:
    stopped = results_of(
        tiny, validation_results=[], untested_candidates=[candidate(3), candidate(4)]
    )
    assert list(stopped.table()["id"]) == ["L03_N0003-", "L00_N0004+"]
    assert stopped.table()["verdict"].isna().all()


def test_an_empty_run_has_an_empty_table(tiny: Model, tmp_path: Path) -> None:
    nothing = results_of(tiny, validation_results=[])
    nothing.export(tmp_path / "t.csv", to="csv")
    assert len(pandas.read_csv(tmp_path / "t.csv")) == 0


def test_a_table_of_one_concept(results: Results, tmp_path: Path) -> None:
    results.export(tmp_path / "t.csv", to="csv", concept="colors")
    assert list(pandas.read_csv(tmp_path / "t.csv")["id"]) == ["L03_N0003-"]


# --- neuronpedia ------------------------------------------------------------------------------

# The required fields of the schema in their route for POST /api/vector/new, and their checks.
FIELDS = {
    "modelId": str,
    "layerNumber": int,
    "hookType": str,
    "vector": list,
    "vectorDefaultSteerStrength": float,
    "vectorLabel": str,
}


def test_an_upload_has_the_fields_that_neuronpedia_requires(
    results: Results, tiny: Model, tmp_path: Path
) -> None:
    bodies = json.loads(
        results.export(tmp_path / "u.json", to="neuronpedia", model=tiny).read_text()
    )
    for body in bodies:
        assert {name: type(value) for name, value in body.items()} == FIELDS
        assert body["hookType"] == "hook_resid_pre"
        assert body["layerNumber"] < tiny.n_layers
        assert len(body["vector"]) == tiny.hidden_size
        assert -100 <= body["vectorDefaultSteerStrength"] <= 100


def test_an_upload_stands_before_the_layer_that_follows(
    results: Results, tiny: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = json.loads(
        results.export(tmp_path / "u.json", to="neuronpedia", model=tiny).read_text()
    )
    ids = ["L00_N0000+", "L01_N0001-", "L01_N0005-", "L02_N0002+"]  # the last layer's is left out
    assert [body["layerNumber"] for body in bodies] == [1, 2, 2, 3]
    for name, body in zip(ids, bodies, strict=True):
        assert name in body["vectorLabel"]
        assert np.allclose(body["vector"], written(tiny, name), atol=1e-6)
    assert "L03_N0003-" in caplog.text


def test_the_last_layer_alone_makes_no_upload(
    results: Results, tiny: Model, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="last layer, 3"):
        results.export(tmp_path / "u.json", to="neuronpedia", concept="colors", model=tiny)


# --- folder for the hub -----------------------------------------------------------------------


@pytest.fixture
def folder(results: Results, tiny: Model, tmp_path: Path) -> Path:
    return results.export(tmp_path / "hub", to="hf", model=tiny)


def test_the_results_in_the_folder_are_the_runs(folder: Path, results: Results) -> None:
    assert cv.load_results(folder) == results


def test_the_vectors_in_the_folder_are_columns_of_the_model(
    folder: Path, results: Results, tiny: Model
) -> None:
    with safe_open(folder / "concept_vectors.safetensors", "pt") as file:
        vectors, ids = file.get_tensor("vectors"), json.loads(file.metadata()["ids"])
    assert ids == [tested["id"] for tested in results.validated]
    for name, vector in zip(ids, vectors, strict=True):
        pole = pole_of(name)
        column = tiny.layers[pole.layer].mlp.down_proj.weight[:, pole.neuron]
        assert torch.equal(vector, pole.direction * column)


def test_the_folder_has_a_report(folder: Path) -> None:
    assert "L01_N0001-" in (folder / "report.html").read_text(encoding="utf-8")


def header(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_names_the_vectors_and_their_scales(folder: Path, tiny: Model) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if "`L02_N0002+`" in line)
    scale = float(tiny.layers[2].mlp.down_proj.weight[:, 2].detach().norm())
    assert [cell.strip() for cell in row.split("|")[1:7]] == [
        "`L02_N0002+`", "animals", "2", "`+`", f"{scale:.3f}", "0.300",
    ]  # fmt: skip
    assert tiny.fingerprint in text


def test_a_card_names_a_base_model_of_the_hub(results: Results, tiny: Model) -> None:
    hub = results["model"] | {"id": "google/gemma-3-1b-it", "revision": "abc123"}
    text = card(results | {"model": hub}, tiny)
    assert header(text)["base_model"] == "google/gemma-3-1b-it"
    assert "| revision | abc123 |" in text


def test_a_card_of_a_folder_names_no_base_model(results: Results, tiny: Model) -> None:
    assert "base_model" not in header(card(results, tiny))


def test_nothing_in_a_card_marks_up(results: Results, tiny: Model) -> None:
    text = card(results | {"model": results["model"] | {"id": HOSTILE}}, tiny)
    assert re.search(r"(?<!\\)<", text) is None


# --- requests ---------------------------------------------------------------------------------

BAD = [
    ({"to": "onnx"}, "gguf, csv, neuronpedia, hf"),
    ({"to": "gguf", "concept": "weather"}, "expected one of: animals, colors"),
    ({"to": "gguf", "concept": "animals", "ids": ["L01_N0001-"]}, "expected one of them"),
    ({"to": "gguf", "ids": ["L9"]}, "such as L12_N0345"),
    ({"to": "gguf", "ids": ["L04_N0001+"]}, "4 layers of 24 neurons"),
    ({"to": "neuronpedia", "ids": ["L01_N0024+"]}, "4 layers of 24 neurons"),
    ({"to": "csv", "ids": ["L01_N0020+"]}, "no candidate"),
    ({"to": "hf", "concept": "animals"}, "takes the whole run"),
]


@pytest.mark.parametrize(("request_", "said"), BAD, ids=str)
def test_bad_requests(
    request_: dict[str, Any], said: str, results: Results, tiny: Model, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(RequestError, match=said):
        results.export(tmp_path / "x", model=tiny, **request_)
    assert not (tmp_path / "x").exists()


def test_other_weights_are_refused(results: Results, tiny: Model, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.layers[1].mlp.down_proj.weight[0, 0] += 1
    changed = Model(tiny.hf, tiny.tokenizer, *(getattr(tiny, n) for n in ("name", "revision", "family", "device", "dtype")))  # fmt: skip
    with pytest.raises(RequestError, match="other weights than the run"):
        results.export(tmp_path / "x", to="neuronpedia", model=changed)


def test_the_command_reads_the_model_where_the_run_did(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(Config(model=str(tiny_folder), device="cpu"))
    configuration = document()["configuration"] | {"model": str(tiny_folder), "fold": "both"}
    sample = results_of(model, configuration=configuration)
    check(sample, "sample")
    run, out = sample.save(tmp_path / "concept_vector_results_cpu.json"), tmp_path / "u.json"
    asked = [
        "export",
        str(run),
        "--to",
        "neuronpedia",
        "--out",
        str(out),
        "--id",
        "L01_N0001-",
        "--json",
    ]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out) == {
        "to": "neuronpedia", "path": str(out), "ids": ["L01_N0001-"],
    }  # fmt: skip
    assert json.loads(out.read_text())[0]["modelId"] == "tiny"


def test_the_command_reads_a_model_that_has_moved(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_model(Config(model=str(tiny_folder), device="cpu"))
    run = results_of(model).save(tmp_path / "concept_vector_results_cpu.json")
    asked = ["export", str(run), "--to", "neuronpedia", "--out", str(tmp_path / "u.json")]
    assert main([*asked, "--model", str(tiny_folder)]) == 0
    assert main([*asked, "--model", "demo"]) == 2


@pytest.mark.parametrize(
    "setting", ["float64", "bfloat16", "medium", "autocast", "device", "numpy"]
)
@pytest.mark.parametrize("to", ["gguf", "neuronpedia", "hf"])
def test_a_setting_of_the_session_changes_nothing(
    to: str, setting: str, tiny: Model, results: Results, tmp_path: Path
) -> None:
    if to == "gguf":
        pytest.importorskip("gguf")
    results.export(tmp_path / "plain", to, model=tiny)
    with SETTINGS[setting]():
        results.export(tmp_path / "set", to, model=tiny)
    assert contents(tmp_path / "plain") == contents(tmp_path / "set")


def contents(path: Path) -> list[bytes]:
    """The bytes of a file, or of those of a folder."""
    return [file.read_bytes() for file in [path, *sorted(path.glob("*"))] if file.is_file()]


OUT = {"gguf": "x.gguf", "csv": "x.csv", "neuronpedia": "x.json", "hf": "x"}


@pytest.mark.parametrize("to", OUT)
def test_what_was_exported_before_is_replaced(
    to: str, tiny: Model, results: Results, tmp_path: Path
) -> None:
    if to == "gguf":
        pytest.importorskip("gguf")
    for _ in range(2):
        results.export(tmp_path / OUT[to], to, model=tiny)


@pytest.mark.parametrize("to", ["gguf", "csv", "neuronpedia"])
def test_what_was_not_exported_is_not_replaced(
    to: str, tiny: Model, results: Results, tmp_path: Path
) -> None:
    """The results themselves, a model, notes: by their content, whatever their name."""
    contents = {
        "results": json.dumps(results).encode(),
        "model": b"GGUF" + b"general.architecture gemma3" * 9,
        "table": b"name,number\n",
        "notes": b"the user's",
        "list": b"[1, 2]",
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RequestError, match="is there and is no"):
            results.export(path, to, model=tiny)
        assert path.read_bytes() == content
    with pytest.raises(RequestError, match="is a folder"):
        results.export(tmp_path, to, model=tiny)


@pytest.mark.parametrize(
    "name", ["README.md", "concept_vectors.safetensors", "report.html", "results"]
)
def test_a_folder_with_something_of_the_users_is_left_alone(
    name: str, tiny: Model, results: Results, tmp_path: Path
) -> None:
    name = "concept_vector_results_cpu.json" if name == "results" else name
    (tmp_path / name).write_text("the user's")
    with pytest.raises(RequestError, match=f"{name} is there and is no"):
        results.export(tmp_path, "hf", model=tiny)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "the user's"


def test_a_file_is_no_folder_for_the_hub(tiny: Model, results: Results, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("the user's")
    with pytest.raises(RequestError, match="is a file; give a folder"):
        results.export(tmp_path / "x", "hf", model=tiny)


def test_a_table_lacks_no_vector_that_was_asked_for(results: Results, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no candidate of this run is L02_N0099\+"):
        results.export(tmp_path / "x.csv", "csv", ids=["L00_N0000+", "L02_N0099+"])
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "/dev/null/x"])
@pytest.mark.parametrize("to", OUT)
def test_a_path_that_cannot_be_is_one_line(
    to: str, path: str, tiny: Model, results: Results
) -> None:
    with pytest.raises((RequestError, cv.RunError)):
        results.export(path, to, model=tiny)


@pytest.mark.parametrize("to", OUT)
def test_half_a_character_in_a_name_stops_nothing(
    to: str, tiny: Model, results: Results, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an editor may leave it in a results file."""
    if to == "gguf":
        pytest.importorskip("gguf")
    for number in (0, 1):
        results["validation_results"][number] |= {"concept": "a\ud800b"}
    results.export(tmp_path / OUT[to], to, model=tiny)
    caplog.text.encode()  # what is said of it can be written


@pytest.mark.parametrize("to", ["gguf", "neuronpedia", "hf"])
def test_results_that_name_a_vector_of_no_layer(to: str, tiny: Model, tmp_path: Path) -> None:
    if to == "gguf":
        pytest.importorskip("gguf")
    broken = results_of(tiny)
    broken["validation_results"] = [entry(0, id="L09_N0000+", layer=9)]
    with pytest.raises(RequestError, match="no such vector"):
        broken.export(tmp_path / to, to, model=tiny)


def test_results_that_do_not_say_how_they_are_folded(tiny: Model, tmp_path: Path) -> None:
    broken = results_of(tiny)
    del broken["configuration"]["fold"]
    with pytest.raises(RequestError, match="fold is None, expected both, final, none"):
        broken.export(tmp_path / "x", "hf", model=tiny)
    assert not (tmp_path / "x").exists()
