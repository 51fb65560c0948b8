"""The whole job through the command line: the demo, its random twin, a user's own model and concepts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import conceptvec as cv
from conceptvec.model.checkpoint import find
from conceptvec.model.network import load_model
from conceptvec.results import VOLATILE
from tests.conftest import ANIMALS, COLORS

RESULTS = "concept_vector_results_cpu.json"


def conceptvec(*arguments: str | Path, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "conceptvec", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == check, done.stderr[-2000:]
    return done


def lasting(path: Path) -> dict:
    """A results file without what may differ between two runs."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return {k: v for k, v in document.items() if k not in VOLATILE}


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the README's first command makes."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = conceptvec("run", "--device", "cpu", "--out", folder)
    assert "validated vectors in" in done.stdout
    return folder


def test_demo_validates_single_vectors_in_eight_concepts(demo_run: Path) -> None:
    results = cv.load_results(demo_run)
    assert sum(n > 0 for n in results["concept_distribution"].values()) >= 8
    assert results["null_calibration"]["false_validation_rate"] <= 0.05
    assert results["pipeline_stats"]["success_rate"] == pytest.approx(
        results["pipeline_stats"]["validated_vectors"]
        / results["pipeline_stats"]["total_candidates"],
        rel=1e-5,
    )


def test_demo_examples_are_what_an_edit_of_the_weights_does(demo_run: Path) -> None:
    """Every example of every entry, with the weight really gone, by ordinary forward passes."""
    results, model = cv.load_results(demo_run), load_model(cv.Config(device="cpu"))

    @torch.inference_mode()
    def log_p(ids: list[int]) -> float:
        logits = model.hf(input_ids=torch.tensor([ids])).logits[0, -2].log_softmax(0)
        return float(logits[ids[-1]])

    counted = 0
    for entry in results["validation_results"]:
        weight = model.layers[entry["layer"]].mlp.down_proj.weight
        for example in entry["examples"]:
            clean = log_p(example["ids"])
            with torch.no_grad():
                kept = weight[:, entry["neuron"]].clone()
                weight[:, entry["neuron"]] = 0
                damaged = log_p(example["ids"])
                weight[:, entry["neuron"]] = kept
            assert abs(clean - example["clean"]) < 1e-4
            assert abs(damaged - example["damaged"]) < 1e-4
            counted += 1
    assert counted >= 8 * len(results.validated)


def test_demo_vectors_are_the_columns_of_the_model(demo_run: Path) -> None:
    results, model = cv.load_results(demo_run), load_model(cv.Config(device="cpu"))
    with safe_open(demo_run / "concept_vectors.safetensors", "pt") as file:
        vectors, directions, about = (
            file.get_tensor("vectors"),
            file.get_tensor("readout_directions"),
            file.metadata(),
        )
    assert json.loads(about["ids"]) == [e["id"] for e in results.validated]
    assert about["fingerprint"] == results["model"]["fingerprint"] == model.fingerprint
    for row, e in enumerate(results.validated):
        sign = 1 if e["pole"] == "+" else -1
        column = model.layers[e["layer"]].mlp.down_proj.weight[:, e["neuron"]]
        assert torch.equal(vectors[row], sign * column)
        readout = model.unembedding @ directions[row]
        token, value = e["top_tokens"][0]
        ids = [
            i
            for i in range(model.vocab_size)
            if model.tokenizer.convert_ids_to_tokens(i).replace("▁", " ") == token
        ]
        assert any(abs(abs(float(readout[i])) - abs(value)) < 1e-4 * abs(value) for i in ids)


def test_demo_run_leaves_figures_layers_and_a_table(demo_run: Path) -> None:
    for name in ("score_distribution", "concept_distribution", "drops", "layer_by_concept"):
        assert (demo_run / "figures" / f"{name}.png").stat().st_size > 10_000
    layers = load_model(cv.Config(device="cpu")).n_layers
    assert len(list((demo_run / "projections").glob("layer_*.safetensors"))) == layers
    assert "concept drop" in conceptvec("show", demo_run).stdout
    assert json.loads(conceptvec("show", demo_run, "--json").stdout)["schema_version"] == 2


def test_a_finished_run_is_resumed_without_computing(demo_run: Path) -> None:
    before, parts = (
        lasting(demo_run / RESULTS),
        {p: p.stat().st_mtime_ns for p in demo_run.rglob("*.safetensors")},
    )
    conceptvec("run", "--device", "cpu", "--out", demo_run)
    assert lasting(demo_run / RESULTS) == before
    vectors = demo_run / "concept_vectors.safetensors"  # written anew, all parts were read
    assert all(p.stat().st_mtime_ns == t for p, t in parts.items() if p != vectors)


def test_random_weights_validate_nothing(tmp_path: Path) -> None:
    """The demo with its weights drawn anew: what it tests is validated in at most 5 % of the cases."""
    import transformers

    folder = tmp_path / "random"
    shutil.copytree(find(cv.Config()).folder, folder)
    torch.manual_seed(1)
    hf = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder)
    )
    hf.save_pretrained(folder)
    conceptvec("run", "--model", folder, "--device", "cpu", "--score-threshold", "0.001",
               "--out", tmp_path / "run")  # fmt: skip
    stats = cv.load_results(tmp_path / "run")["pipeline_stats"]
    assert stats["tested_vectors"] >= 5  # the low threshold gives Stage 3 something to refuse
    assert stats["validated_vectors"] <= 0.05 * stats["tested_vectors"]


def own_concepts(folder: Path) -> Path:
    """A user's concepts file over the tiny vocabulary."""

    def prompts(words: list[str]) -> list[dict[str, str]]:
        return [
            {"prompt": f"w{i} w{i + 1} w{i + 2}", "answer": f" {w}"} for i, w in enumerate(words)
        ]

    path = folder / "concepts.json"
    path.write_text(json.dumps({
        "concepts": {"beasts": {"keywords": ANIMALS, "prompts": prompts(ANIMALS)},
                     "paints": {"keywords": COLORS, "prompts": prompts(COLORS)},
                     "places": {"keywords": ["zoo"], "prompts": None}},
        "neutral_prompts": [{"prompt": f"w{i}", "answer": f" w{i + 9}"} for i in range(20)],
    }))  # fmt: skip
    return path


def test_own_model_and_concepts_twice_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    concepts = own_concepts(tmp_path)
    for name in ("one", "two"):
        conceptvec("run", "--model", tiny_folder, "--concepts", concepts, "--device", "cpu", "--score-threshold", "0.001",
                   "--corpus-tokens", "4000", "--out", tmp_path / name)  # fmt: skip
    one, two = (lasting(tmp_path / name / RESULTS) for name in ("one", "two"))
    assert one["pipeline_stats"]["tested_vectors"] > 0
    assert {e["concept"] for e in one["validation_results"]} <= {"beasts", "paints", "places"}
    one["configuration"].pop("out"), two["configuration"].pop("out")
    assert one == two


def test_stages_by_hand_are_the_run(tiny_folder: Path, tmp_path: Path) -> None:
    config = cv.Config(model=str(tiny_folder), concepts=str(own_concepts(tmp_path)), device="cpu", score_threshold=0.001,
                       corpus_tokens=4000, out=str(tmp_path / "run"))  # fmt: skip
    model = cv.load_model(config)
    by_hand = cv.validate(cv.score(cv.extract(model, config), model, config), model, config)
    assert [k for k, v in by_hand["timings"].items() if v > 0] == [
        "extraction",
        "scoring",
        "text",
        "scan",
        "validation",
    ]
    assert by_hand["resources"]["peak_memory_bytes"] > 10**8
    whole = cv.run(config)
    for key in ("validation_results", "null_calibration", "pipeline_stats", "labels"):
        assert by_hand[key] == whole[key]
    path = by_hand.save(tmp_path / "copy.json")
    assert cv.load_results(path) == by_hand


@pytest.mark.parametrize("stages, keys", [("1", ()), ("1,2", ("candidate_distribution", "labels"))])
def test_fewer_stages_claim_less(
    stages: str, keys: tuple[str, ...], tiny_folder: Path, tmp_path: Path
) -> None:
    conceptvec(
        "run",
        "--model",
        tiny_folder,
        "--device",
        "cpu",
        "--stages",
        stages,
        "--out",
        tmp_path / "run",
    )
    results = cv.load_results(tmp_path / "run")
    assert results["pipeline_stats"]["total_candidates"] == 4 * 24
    assert (
        results["pipeline_stats"]["validated_vectors"] is None
        and results["validation_results"] == []
    )
    assert all(results[k] for k in keys)
    conceptvec(
        "run",
        "--model",
        tiny_folder,
        "--device",
        "cpu",
        "--stages",
        "1,2",
        "--out",
        tmp_path / "run",
    )


@pytest.mark.parametrize("arguments, words", [
    (["run", "--dtype", "float16"], "65,504"), (["run", "--layers", "7-3"], "expected 8-20"),
    (["run", "--layers", "90"], "the model has"), (["run", "--model", "./nowhere"], "no folder"),
    (["run", "--max-vectors", "0"], "at least 1"), (["run", "--nonsense"], "--help"), (["show", "nowhere"], "results"),
    (["run", "--concepts", "nowhere.json"], "no file"), (["run", "--device", "tpu"], "auto, cpu, cuda"),
])  # fmt: skip
def test_bad_requests_end_with_one_message(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "run")] if arguments[0] == "run" else []
    done = conceptvec(*arguments, *out, check=2)
    message = [line for line in done.stderr.splitlines() if line.startswith("conceptvec: ")]
    assert (
        len(message) == 1
        and words in message[0]
        and "Traceback" not in done.stderr
        and not done.stdout
    )
