"""Write both notebooks from the one source below, check that they have not drifted from it, or run them.

    python scripts/make_notebooks.py                 write both, without outputs
    python scripts/make_notebooks.py --check         exit 1 where a notebook differs from the source (outputs aside)
    python scripts/make_notebooks.py --execute PATH  write both with the outputs of one run on the CPU; PATH is the
                                                     folder or the GGUF file of the model that SAVED names

A cell is (name, variant, text): variant "" stands in both notebooks, "mps" or "cuda" in one of them. Names in double
angle brackets are filled in per notebook; the repository's address comes from pyproject.toml. The cells that have an
output outside Colab are the same in both, so one run serves both.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.search(r'^Repository = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[1]  # type: ignore
FILES = {"mps": "concept-vectors-gemma3.ipynb", "cuda": "concept-vectors-gemma3-cuda.ipynb"}
DEMO = {"model": "demo", "device": "cpu"}  # what the tests set after the parameters cell
SAVED = "Gemma 3 270M (4-bit release Q4_K_M) in float32 on a CPU"  # what --execute runs on
SAVED_NAME = "gemma-3-270m"
SAVED_PARAMETERS = {"device": "cpu", "max_vectors": None}
LIMIT = 1_500_000  # bytes of a notebook with its outputs
TITLES = {"mps": "on Apple Silicon (MPS)", "cuda": "on CUDA (Colab, workstation, cluster)"}

CELLS = [
    ("title", "", """
# Concept vectors in Gemma 3, <<title>>

A **value vector** is a column of an MLP's `down_proj`: what one neuron writes into the residual stream. This notebook
finds the value vectors whose promoted tokens belong to one concept. Then it removes each of them in real forward
passes and measures whether the model loses that concept and nothing else. [Code and method](<<address>>)

*The outputs saved in this file come from one run on <<saved>>. Your own run replaces them.*
"""),
    ("badge", "cuda", """
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](<<colab>>)

## Install

On Colab the next cell installs the package (choose a GPU runtime first); it replaces nothing that Colab ships, so no
restart is needed. Elsewhere it does nothing: install with `pip install "conceptvec[notebook] @ git+<<address>>"`.
"""),
    ("install", "cuda", """
import sys

if "google.colab" in sys.modules:
    !pip install -q "git+<<address>>" || pip install -q "<<address>>/archive/HEAD.zip"
"""),
    ("install-mac", "mps", """
## Install

In a terminal, on macOS 14 or later with Python 3.10 or later:
`pip install "conceptvec[notebook] @ git+<<address>>"`, then open this notebook with that environment's kernel.
"""),
    ("first-text", "", """
## Two seconds, no model

A vector promotes a list of words. The scorer says which concept such a list stands for. Change the words and run the
cell again: two concepts in one list are `mixed`, one word in many forms is `lexical`, anything else is `none`.
"""),
    ("first", "", """
import conceptvec as cv

cv.score_tokens([" dog", " cats", "狗", " horse", " puppy"])
"""),
    ("parameters-text", "", """
## Parameters

All that there is to set. **Run everything once with `model = "demo"`:** it is inside the package and takes about a
minute. Then choose a real model: an id of the Hub, a local folder, or a `.gguf` file. `max_vectors` neurons per layer
are drawn at random (`None`: all of them). `concepts` takes a concepts file of your own or words such as
`"birds=robin,eagle,owl"`; `None` means the twelve that are built in. `out` is the run folder (`None`:
`runs/<model>-<device>`).<<drive_text>>
"""),
    ("parameters", "", """
# @title Parameters
model = "demo"  # @param ["demo", "google/gemma-3-270m", "google/gemma-3-1b-it"] {allow-input: true}
device = "<<device>>"  # @param ["<<device>>", "auto", "cpu"] {allow-input: true}
layers = "all"  # @param {type: "string"}
max_vectors = 1000  # @param {type: "raw"}
batch_size = 200  # @param {type: "integer"}
score_threshold = 0.75  # @param {type: "number"}
concepts = None  # @param {type: "raw"}
damage = "zero,rotate,mean"  # @param {type: "string"}
corpus_tokens = None  # @param {type: "raw"}
seed = 0  # @param {type: "integer"}
out = None  # @param {type: "raw"}
<<drive>>"""),
    ("drive", "cuda", """
if drive_folder and "google.colab" in sys.modules:
    from google.colab import drive

    drive.mount("/content/drive")
    out = f"/content/drive/MyDrive/{drive_folder}"
"""),
    ("preflight-text", "", """
## What will happen, and how long it takes here

Three stages: project every chosen value vector onto the vocabulary, score the token lists, damage the candidates.
The next cell downloads nothing: it checks memory, time, disk and your access to the model.

`demo` needs no token. Google's ids are gated: accept the licence at <https://huggingface.co/google/gemma-3-1b-it>,
make a token at <https://huggingface.co/settings/tokens>, <<login>>. The notebook never switches to
another model by itself.
"""),
    ("config", "", """
from conceptvec.show import figures
from conceptvec.tools.preflight import preflight

config = cv.Config(
    model=model,
    device=device,
    layers=layers,
    max_vectors=max_vectors,
    batch_size=batch_size,
    score_threshold=score_threshold,
    concepts=concepts,
    damage=damage,
    corpus_tokens=corpus_tokens,
    seed=seed,
    out=out,
)
preflight(config)
"""),
    ("stage1-text", "", """
## Stage 1: project the value vectors onto the vocabulary

Exact top and bottom tokens of every chosen neuron. Finished layers are kept in the run folder: run the notebook again
after an interruption and it goes on from there.
"""),
    ("stage1", "", """
lm = cv.load_model(config)
folder = cv.open_run(lm, config)
candidates = cv.extract(lm, config, folder)
candidates
"""),
    ("stage1-look-text", "", """
*Look at:* lists that say one thing. These are the tidiest; most of the others are not. *A bad sign:* fragments of words
in every row, which means a wrong tokenizer or a damaged file.
"""),
    ("find-text", "", """
## Look for words of your own

`find` searches every neuron of the model, both poles. Case and inflection do not matter. Try a name, a product, a place.
"""),
    ("find", "", """
cv.find(["Monday", "Friday"], config, limit=5)
"""),
    ("stage2-text", "", """
## Stage 2: which poles stand for a concept

A rule without a language model: distinct words of one concept among the tokens, compared with random directions.
"""),
    ("stage2", "", """
scored = cv.score(candidates, lm, config, folder)
scored
"""),
    ("stage2-look-text", "", """
*Look at:* whether you would give the same name to the list. *A bad sign:* one concept takes nearly all of the table.
"""),
    ("own-text", "", """
## A concept of your own, in seconds

Write a name and some words. Stage 2 scores the same lists again for them; nothing is saved, and the run stays as it
is. To test such a concept by damage, put the same line into `concepts` above.
"""),
    ("own", "", """
from dataclasses import replace

own = "furniture=chair,table,bench,door,box,lamp,shelf,desk,sofa"
cv.score(candidates, lm, replace(config, concepts=own))
"""),
    ("stage3-text", "", """
## Stage 3: damage the candidates

The model writes running text. A first-order scan says which candidates it uses for their concept. What passes is
removed where it acts, and compared with other positions. Null neurons and moved vectors pass through the same door.
Drops are log-probability lost on the true next token, in nats.
"""),
    ("stage3", "", """
results = cv.validate(scored, lm, config, folder)
results
"""),
    ("figure-drops", "", "figures.drops(results)"),
    ("figure-drops-text", "", """
*Look at:* green points high up and at the left: the concept is lost, other words are not. *A bad sign:* grey points
(controls) up there too, or points along the diagonal, where a vector hurts everything.
"""),
    ("texts-text", "", """
## The text with and without a vector

The model goes on from the same beginning: as it is, without the vector, and with five times what the vector writes.
The three best vectors of different concepts, those first whose removal changes their text.
"""),
    ("texts", "", "cv.texts(results)"),
    ("texts-look-text", "", """
*Look at:* the concept's word, gone in the second line, more of it in the third. One vector of thousands often changes
nothing in one text: the drop above is a mean over many. *A bad sign:* the second line is no language any more.
"""),
    ("figures-text", "", """
## Figures
"""),
    ("figure-funnel", "", "figures.funnel(results)"),
    ("figure-funnel-text", "", """
*Look at:* how much each step sorts out. *A bad sign:* nearly all candidates pass the last one.
"""),
    ("figure-scores", "", "figures.score_distribution(results)"),
    ("figure-scores-text", "", """
*Look at:* poles above the threshold where random directions have none. *A bad sign:* both curves alike there.
"""),
    ("figure-concepts", "", "figures.concept_distribution(results)"),
    ("figure-concepts-text", "", """
*Look at:* how many candidates of each concept are validated. *A bad sign:* a concept with many candidates and none.
"""),
    ("figure-effects", "", "figures.effect_by_score(results)"),
    ("figure-effects-text", "", """
*Look at:* how much more often than by chance a high score goes with an effect. *A bad sign:* the line stays at chance,
or the moved vectors rise with it.
"""),
    ("figure-layers", "", "figures.layer_by_concept(results)"),
    ("figure-layers-text", "", """
*Look at:* the layers where the validated ones sit, mostly the later half. *A bad sign:* one layer holds them all.
"""),
    ("explorer-text", "", """
## Explorer

Filter the tested vectors, search a word over all their tokens, look at one card; with the loaded model, damage or
amplify the chosen vector and see its continuation change. A saved page can't show widgets: the figure below it and
`report.html` show the same cards.
"""),
    ("explorer", "", "cv.explore(results, lm)"),
    ("figure-card", "", "figures.vector_card(results)"),
    ("figure-card-text", "", """
*Look at:* tokens, contexts and damage that tell the same story. *A bad sign:* the unrelated drop is as high as the
concept's.
"""),
    ("export-text", "", """
## Export

Results (JSON), validated vectors (safetensors), figures (PNG) and a report for sharing (one HTML file).
"""),
    ("export", "", """
path = cv.save_run(results, lm, config, folder)
report = results.to_html(folder.path / "report.html")
<<download>>print(f"{path} · {report}")
"""),
]  # fmt: skip

_DRIVE = 'drive_folder = ""  # @param {type: "string"}\n'
_DRIVE_TEXT = """ On Colab, name a `drive_folder` to keep the run in your Google Drive: a lost
runtime then goes on where it stopped."""
_LOGIN = "and run `hf auth login` in a terminal"
_LOGIN_COLAB = """and give it to the notebook. On Colab: the key symbol at the
left, *Add new secret*, the name `HF_TOKEN`, the token as its value, *Notebook access* on. Elsewhere: run
`hf auth login` in a terminal"""
_DOWNLOAD = """if "google.colab" in sys.modules:
    from google.colab import files

    files.download(str(path))
"""


def _settings(parameters: dict[str, Any]) -> str:
    """What was set besides the device, as the end of a sentence."""
    settings = ", ".join(f"`{k} = {v!r}`" for k, v in parameters.items() if k != "device")
    return f" with {settings}" if settings else ""


def build(variant: str) -> dict[str, Any]:
    """The notebook of a variant, without outputs."""
    cuda = variant == "cuda"
    colab = ADDRESS.replace("https://github.com", "https://colab.research.google.com/github")
    fill = {
        "title": TITLES[variant], "address": ADDRESS, "device": variant,
        "colab": f"{colab}/blob/main/notebooks/{FILES[variant]}",
        "login": _LOGIN_COLAB if cuda else _LOGIN,
        "saved": SAVED + _settings(SAVED_PARAMETERS),
        "drive": _DRIVE if cuda else "", "drive_text": _DRIVE_TEXT if cuda else "", "download": _DOWNLOAD if cuda else "",
    }  # fmt: skip
    cells = []
    for name, only, text in CELLS:
        if only not in ("", variant):
            continue
        text = re.sub(r"<<(\w+)>>", lambda m: fill[m[1]], text).strip("\n")
        cell: dict[str, Any] = {
            "id": name,
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        if name.endswith("text") or name in ("title", "badge", "install-mac"):
            cell |= {"cell_type": "markdown"}
        else:
            tags = {"tags": ["parameters"]} if name == "parameters" else {}
            cell |= {"cell_type": "code", "metadata": tags, "execution_count": None, "outputs": []}
        cells.append(cell)
    metadata: dict[str, Any] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if cuda:
        metadata |= {"accelerator": "GPU", "colab": {"provenance": []}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def bare(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook without outputs, to compare."""
    cells = [c | ({"outputs": [], "execution_count": None} if c["cell_type"] == "code" else {})
             for c in notebook["cells"]]  # fmt: skip
    return notebook | {"cells": cells}


def execute(
    notebook: dict[str, Any], folder: Path, parameters: dict[str, Any], timeout: int | None = 900
) -> dict[str, Any]:
    """Run a notebook headless in a folder, with parameters set in a cell after the parameters cell.

    Returns:
        the notebook as it ran, the added cell included.
    """
    import nbformat
    from nbclient import NotebookClient

    at = next(
        i for i, c in enumerate(notebook["cells"]) if c["metadata"].get("tags") == ["parameters"]
    )
    cells = list(notebook["cells"])
    lines = [f"{k} = {v!r}\n" for k, v in parameters.items()]
    cells.insert(at + 1, cells[at] | {"id": "injected", "metadata": {}, "source": lines})
    node = nbformat.reads(json.dumps(notebook | {"cells": cells}), 4)
    NotebookClient(
        node, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return json.loads(nbformat.writes(node))


def tidy(notebook: dict[str, Any]) -> dict[str, Any]:
    """An executed notebook as it is committed: no added cell, no widgets (dead in a saved page), no timestamps."""
    cells = []
    for cell in notebook["cells"]:
        if cell["id"] == "injected":
            continue
        if cell["cell_type"] == "code":
            kept = [
                o
                for o in cell["outputs"]
                if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
            ]
            tags = {k: v for k, v in cell["metadata"].items() if k == "tags"}
            cell = cell | {"outputs": kept, "metadata": tags, "execution_count": None}
            for output in kept:
                output |= (
                    {"execution_count": None} if output["output_type"] == "execute_result" else {}
                )
        cells.append(cell)
    return notebook | {
        "cells": cells,
        "metadata": {k: v for k, v in notebook["metadata"].items() if k != "widgets"},
    }


def execute_saved(model: Path, run: Path | None) -> dict[str, list[dict[str, Any]]]:
    """The outputs of one run on a real model, by the cell's id.

    The model gets a name beside the run, so that no path of this machine stands in an output. The
    parts of a finished run are taken over, as the notebook itself would after an interruption.
    """
    with tempfile.TemporaryDirectory() as folder:
        name = SAVED_NAME + (model.suffix if model.is_file() else "")
        Path(folder, name).symlink_to(model.resolve())
        if run is not None:
            shutil.copytree(run, Path(folder, "runs", f"{name}-cpu"))
        parameters = {"model": name} | SAVED_PARAMETERS
        ran = tidy(execute(build("cuda"), Path(folder), parameters, timeout=None))
        text = json.dumps(ran, ensure_ascii=False)
        for path in (folder, str(model.resolve()), str(ROOT), str(Path.home())):
            if path in text:
                raise SystemExit(f"an output names {path}: ... {text.split(path)[0][-200:]}")
    return {cell["id"]: cell["outputs"] for cell in ran["cells"] if cell["cell_type"] == "code"}


def with_outputs(
    notebook: dict[str, Any], outputs: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """A notebook with the outputs of a run, cell by cell."""
    cells = [
        cell | ({"outputs": outputs[cell["id"]]} if cell.get("outputs") == [] else {})
        for cell in notebook["cells"]
    ]
    return notebook | {"cells": cells}


def write(path: Path, notebook: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n", "utf-8"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--check", action="store_true", help="exit 1 where a notebook differs from the source"
    )
    parser.add_argument(
        "--execute",
        type=Path,
        metavar="PATH",
        help=f"run on {SAVED}, a folder or a GGUF file, and keep the outputs",
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="with --execute: a run folder of that model with the same options, whose parts are used",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "notebooks", help="where the notebooks are"
    )
    args = parser.parse_args()
    status = 0
    outputs = execute_saved(args.execute, args.run) if args.execute else None
    for variant, name in FILES.items():
        path, notebook = args.out / name, build(variant)
        if args.check:
            if not path.is_file() or bare(json.loads(path.read_text("utf-8"))) != notebook:
                print(
                    f"{path} differs from its source; run python scripts/make_notebooks.py --execute PATH"
                )
                status = 1
            continue
        if outputs is not None:
            notebook = with_outputs(notebook, outputs)
        write(path, notebook)
        size = path.stat().st_size
        print(f"{path}: {size:,} bytes")
        status |= size > LIMIT
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
