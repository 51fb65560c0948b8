"""One place for each fact: versions, dependencies, addresses and the README's commands agree."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import conceptvec
from conceptvec.cli.commands import COMMANDS
from conceptvec.cli.options import parser

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/"
# What Colab shipped in August 2026: the lower bounds must not ask for more.
COLAB = {
    "torch": "2.11",
    "transformers": "5.15",
    "numpy": "2.1.3",
    "accelerate": "1.14",
    "matplotlib": "3.10",
    "seaborn": "0.13.2",
    "tqdm": "4.67.3",
    "ipywidgets": "7.7.1",
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def project() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))["project"]


@cache
def pinned() -> dict[str, str]:
    """Library → the version in requirements.txt; the first where Python's version decides."""
    lines = reversed(text("requirements.txt").splitlines())
    matches = [re.match(r"([\w-]+)==([\w.]+)", line) for line in lines]
    return {match[1]: match[2] for match in matches if match}


@cache
def bounds() -> dict[str, str]:
    """Library → its lower bound in pyproject.toml."""
    extras = [entry for group in project()["optional-dependencies"].values() for entry in group]
    matches = [re.fullmatch(r"([\w-]+)>=([\d.]+)", e) for e in project()["dependencies"] + extras]
    assert all(matches), "a dependency has a lower bound and nothing else"
    return {match[1]: match[2] for match in matches if match}


def version(number: str) -> tuple[int, ...]:
    return tuple(int(part) for part in number.split("."))


def test_every_dependency_is_pinned() -> None:
    assert bounds().keys() - pinned().keys() == set()


def test_pins_are_above_the_lower_bounds() -> None:
    too_old = {n for n, low in bounds().items() if version(low) > version(pinned()[n])}
    assert too_old == set()


def test_colab_would_have_to_replace_nothing() -> None:
    asked = bounds()
    replaced = {n for n, ships in COLAB.items() if version(asked[n]) > version(ships)}
    assert replaced == set()


def test_the_conda_environment_takes_the_pins() -> None:
    assert "-r requirements.txt" in text("environment.yml")


def test_address_stands_in_one_place() -> None:
    address = project()["urls"]["Repository"]
    for path in [ROOT / "README.md", ROOT / "CITATION.cff", *ROOT.glob("notebooks/*.ipynb")]:
        written = path.read_text(encoding="utf-8")
        named = set(re.findall(r"github\.com/([\w.-]+/concept-vectors-gemma3)", written))
        assert named <= {address.removeprefix("https://github.com/")}, path
    assert address in text("CITATION.cff")


@pytest.mark.parametrize(
    ("file", "form"), [("CITATION.cff", "version: {}"), ("CHANGELOG.md", "{}")]
)
def test_version_stands_in_one_place(file: str, form: str) -> None:
    assert form.format(conceptvec.__version__) in text(file)


@pytest.mark.parametrize("word", ["conceptvec run", "pytest"])
def test_readme_begins_with_the_two_commands(word: str) -> None:
    line = next(line for line in text("README.md").splitlines() if word in line)
    assert line.startswith(INSTALL)


def commands(page: Path) -> list[str]:
    """The command lines of the program in a page's shell blocks, without what comes before it."""
    blocks = re.findall(r"```bash\n(.+?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    matches = [re.search(r"(?:^|[ /])conceptvec ([a-z].*)", line) for line in lines]
    return [match[1] for match in matches if match]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [(page.name, line) for page in PAGES for line in commands(page)]


def test_the_pages_show_commands() -> None:
    assert len(SHOWN) > 10


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[line[:40] for _, line in SHOWN])
def test_a_shown_command_is_one(page: str, line: str) -> None:
    arguments = parser(COMMANDS).parse_args(shlex.split(line, comments=True))
    assert arguments.command, page


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_names_what_the_demo_gave() -> None:
    """The README's figures of the demo are those of the committed training record."""
    training = json.loads(text("conceptvec/data/demo/training.json"))
    assert f"{training['held_out_loss']:.2f}" in text("README.md")


WITHOUT_TORCH = """
import sys
import conceptvec.cli
try:
    conceptvec.cli.main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "transformers", "matplotlib", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_package_and_help_load_no_torch() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_demo_is_small() -> None:
    folder = ROOT / "conceptvec" / "data" / "demo"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 5_000_000


def test_public_names_are_those_that_have_a_home() -> None:
    assert set(conceptvec.__all__) == set(conceptvec._HOME)
    assert set(conceptvec._HOME) < set(dir(conceptvec))


@pytest.mark.parametrize("name", conceptvec.__all__)
def test_a_public_name_is_loaded_on_first_use(name: str) -> None:
    assert callable(getattr(conceptvec, name))
