"""The notebooks: made from one source, thin, and run from start to end on the demo model."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import make_notebooks
import pytest

from conceptvec import load_results

ROOT = Path(__file__).resolve().parents[1]
QUICK = {
    **make_notebooks.DEMO,
    "layers": "2-3",
    "max_vectors": 12,
    "corpus_tokens": 6000,
    "out": "run",
}


def committed(variant: str) -> dict[str, Any]:
    return json.loads((ROOT / "notebooks" / make_notebooks.FILES[variant]).read_text("utf-8"))


def code(notebook: dict[str, Any]) -> list[str]:
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def without_shell(source: str) -> str:
    return "\n".join(("pass" if not line[0].isspace() else "    pass") if line.strip().startswith("!") else line
                     for line in source.splitlines() if line)  # fmt: skip


@pytest.mark.parametrize("variant", make_notebooks.FILES)
def test_notebook_has_not_drifted_from_the_source(variant: str) -> None:
    assert make_notebooks.bare(committed(variant)) == make_notebooks.build(variant)


def test_check_notices_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant, name in make_notebooks.FILES.items():
        make_notebooks.write(tmp_path / name, make_notebooks.build(variant))
    monkeypatch.setattr(sys, "argv", ["make_notebooks.py", "--check", "--out", str(tmp_path)])
    assert make_notebooks.main() == 0
    changed = make_notebooks.build("cuda")
    changed["cells"][-1]["source"].append("# by hand\n")
    make_notebooks.write(tmp_path / make_notebooks.FILES["cuda"], changed)
    assert make_notebooks.main() == 1


@pytest.mark.parametrize("variant", make_notebooks.FILES)
def test_notebook_is_thin(variant: str) -> None:
    notebook = committed(variant)
    for source in code(notebook):
        assert len(source.splitlines()) <= 20, source
        nodes = list(ast.walk(ast.parse(without_shell(source))))
        assert not [
            n
            for n in nodes
            if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.For | ast.While)
        ]
    tagged = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    lines = [line for line in tagged[0]["source"] if not line.startswith("#")]
    assert lines and all("# @param" in line for line in lines)
    assert "".join(code(notebook)).count("# @param") == len(lines)


@pytest.mark.parametrize("variant", make_notebooks.FILES)
def test_notebook_is_small_and_widgets_are_out(variant: str) -> None:
    text = json.dumps(committed(variant))
    assert len(text) < make_notebooks.LIMIT
    assert "widget-view" not in text and "widgets" not in committed(variant)["metadata"]
    outputs = [o for c in committed(variant)["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]


def test_one_address_everywhere() -> None:
    assert f'repository-code: "{make_notebooks.ADDRESS}"' in (ROOT / "CITATION.cff").read_text(
        "utf-8"
    )
    owner_and_name = make_notebooks.ADDRESS.removeprefix("https://github.com/")
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), ROOT / "README.md"]:
        for address in (line for line in path.read_text("utf-8").split() if "github.com/" in line):
            assert owner_and_name in address or "concept-vectors-gemma3" not in address, (
                f"{path.name}: {address}"
            )
    cuda = "".join(code(make_notebooks.build("cuda")))
    assert f'pip install -q "git+{make_notebooks.ADDRESS}"' in cuda and "torch" not in cuda


@pytest.mark.parametrize("variant", ["mps", pytest.param("cuda", marks=pytest.mark.slow)])
def test_notebook_runs_from_start_to_end(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parameters = QUICK | {"drive_folder": "ignored outside Colab"} if variant == "cuda" else QUICK
    ran = make_notebooks.execute(make_notebooks.build(variant), tmp_path, parameters, timeout=300)
    results = load_results(
        tmp_path / "run" / "concept_vector_results_cpu.json"
    )  # checks the schema
    assert results["pipeline_stats"]["total_candidates"] == 24
    assert results["configuration"]["max_vectors"] == 12
    assert (tmp_path / "run" / "concept_vectors.safetensors").is_file()
    assert "<h1>Concept vectors in demo</h1>" in (tmp_path / "run" / "report.html").read_text(
        "utf-8"
    )
    explorer = next(c for c in ran["cells"] if c["id"] == "explorer")
    assert "application/vnd.jupyter.widget-view+json" in explorer["outputs"][0]["data"]
    shown = make_notebooks.tidy(ran)
    pictures = [
        o for c in shown["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= 5
    assert "neurons examined" in json.dumps(shown)  # the plain closing line of Stage 3
    assert "%|" not in json.dumps(shown)  # no bar that a saved page shows unfinished
    assert "injected" not in {c["id"] for c in shown["cells"]}
