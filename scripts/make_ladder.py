"""Draw ``docs/ladder.svg``, the order of the modules, from the import contract in pyproject.toml.

    python scripts/make_ladder.py

What a rung says is the first line of its module's docstring.
"""

from __future__ import annotations

import ast
import textwrap
from dataclasses import dataclass
from html import escape
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "ladder.svg"
# Name of a group → its rungs, from the top; a rung without one joins the group above it.
GROUPS = {
    "programs": ("__main__", "cli", "pipeline"),
    "around a run": ("tools", "results", "export", "show"),
    "stages": ("validation", "effects", "scoring", "extraction"),
    "model": ("model",),
    "what all share": ("runfolder", "document", "records", "config", "concepts", "options", "text"),
    "ground": ("errors", "version"),
}
COLORS = ("#8a5fb0", "#d55e00", "#009e73", "#0072b2", "#5f6b75", "#9a9a9a")
WIDTH, RUNG, GAP, LEFT, NAME = 870, 40, 8, 140, 110
CHARACTERS = 88  # of a line of text beside a rung
STYLE = """
text { font: 13px system-ui, "Segoe UI", Roboto, sans-serif; fill: #222; }
.name { font: 600 14px ui-monospace, Menlo, Consolas, monospace; fill: #fff; }
.group { font-weight: 600; fill: #666; } .rail { stroke: #999; stroke-width: 1.5; fill: none; }
@media (prefers-color-scheme: dark) { text { fill: #e6e6e6; } .group { fill: #a0a6ad; } }
"""


@dataclass(frozen=True)
class Rung:
    """One layer of the contract: its name and what its docstring says."""

    name: str
    text: str


def rungs() -> list[Rung]:
    """The layers, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return [Rung(name, _first_line(name)) for name in contract["layers"]]


def _first_line(name: str) -> str:
    path = ROOT / "conceptvec" / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return text.splitlines()[0].replace("``", "").replace("`", "")


def picture() -> str:
    """The ladder as SVG."""
    ladder, parts, top = rungs(), [], GAP
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    colors = dict(zip(GROUPS, COLORS, strict=True))
    shown = ""
    for rung in ladder:
        group = group_of.get(rung.name, shown)
        if group != shown:
            parts.append(_text(LEFT - 24, top + 25, group, "group", "end"))
            shown = group
        parts.append(_rung(rung, top, colors[group]))
        top += RUNG + GAP
    arrow = f"M{LEFT - 12} {top - GAP} V{GAP + 6} m-4 6 l4 -6 l4 6"
    parts.append(f'<path class="rail" d="{arrow}"/>')
    foot = "Data flows upwards along the arrow; a module imports only what stands below it."
    parts.append(_text(LEFT, top + 18, foot, "group"))
    size = f'width="{WIDTH}" height="{top + 32}" viewBox="0 0 {WIDTH} {top + 32}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>The modules of conceptvec in the order of the data</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _rung(rung: Rung, top: int, color: str) -> str:
    box = f'<rect x="{LEFT}" y="{top}" width="{NAME}" height="{RUNG}" rx="6" fill="{color}"/>'
    name = _text(LEFT + NAME // 2, top + 25, rung.name, "name", "middle")
    lines = textwrap.wrap(rung.text, CHARACTERS)
    first = top + 25 - 8 * (len(lines) - 1)
    beside = LEFT + NAME + 12
    texts = [_text(beside, first + 16 * i, line) for i, line in enumerate(lines)]
    return "\n".join([box, name, *texts])


def _text(x: int, y: int, words: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{css}" text-anchor="{anchor}">{escape(words)}</text>'


if __name__ == "__main__":
    FILE.write_text(picture(), encoding="utf-8")
