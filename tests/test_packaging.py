"""One place for each fact: versions, dependencies, addresses and the README's commands agree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import conceptvec

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(
    re.match(r"([\w-]+)==([\w.]+)", line).groups()  # type: ignore[union-attr]
    for line in reversed((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    if "==" in line
)
# What Colab shipped in August 2026: the lower bounds must not ask for more.
COLAB = {"torch": "2.11", "transformers": "5.15", "numpy": "2.1.3", "accelerate": "1.14", "matplotlib": "3.10",
         "seaborn": "0.13.2", "tqdm": "4.67.3", "ipywidgets": "7.7.1"}  # fmt: skip


def version(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("."))


def bounds() -> dict[str, str]:
    everything = [
        *PROJECT["dependencies"],
        *(d for group in PROJECT["optional-dependencies"].values() for d in group),
    ]
    found = {}
    for entry in everything:
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)", entry)
        assert match, f"{entry}: a lower bound and nothing else"
        found[match[1]] = match[2]
    return found


def test_lower_bounds_pins_and_environment_agree() -> None:
    for name, low in bounds().items():
        assert name in PINNED, f"{name} is not pinned in requirements.txt"
        assert version(low) <= version(PINNED[name])
        if name in COLAB:
            assert version(low) <= version(COLAB[name]), f"Colab would have to replace {name}"
    assert "-r requirements.txt" in (ROOT / "environment.yml").read_text()


def test_address_and_version_stand_in_one_place() -> None:
    address = PROJECT["urls"]["Repository"]
    for path in [ROOT / "README.md", ROOT / "CITATION.cff", *ROOT.glob("notebooks/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"github\.com/([\w.-]+/concept-vectors-gemma3)", text))
        assert named <= {address.removeprefix("https://github.com/")}, path
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {conceptvec.__version__}" in citation and address in citation
    assert conceptvec.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_readme_begins_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for words in ("conceptvec run", "pytest"):
        line = next(x for x in lines if words in x)
        assert line.startswith(
            "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/"
        )


def test_readme_names_what_the_demo_gave() -> None:
    """The README's figures of the demo are those of the committed training record."""
    training = json.loads((ROOT / "conceptvec" / "data" / "demo" / "training.json").read_text())
    assert f"{training['held_out_loss']:.2f}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_package_and_help_load_no_torch() -> None:
    code = ("import sys, conceptvec.cli\ntry: conceptvec.cli.main(['--help'])\nexcept SystemExit: pass\n"
            "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_demo_is_small() -> None:
    folder = ROOT / "conceptvec" / "data" / "demo"
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 5_000_000


def test_every_public_name_is_loaded_on_first_use() -> None:
    assert set(conceptvec.__all__) == set(conceptvec._HOME) < set(dir(conceptvec))
    assert all(callable(getattr(conceptvec, name)) for name in conceptvec.__all__)
