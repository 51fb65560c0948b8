"""How much air is in a package's code: one row of figures per package path.

    python scripts/air.py conceptvec [OTHER/PACKAGE …]

Tests are left out. A code line is one that holds code: no blank line, no comment, no docstring; its length counts
the indentation. Complexity is McCabe's, as ruff's C901 counts it.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

LONG_LINE = 100
SWITCHES = re.compile(r"#\s*(fmt:\s*(skip|off)|yapf:\s*disable)")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
SKIPPED = {tokenize.NL, tokenize.COMMENT, tokenize.ENCODING, tokenize.ENDMARKER}
LAYOUT = SKIPPED | {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


@dataclass(frozen=True)
class Module:
    """What one file counts.

    Attributes:
        code: lengths of the code lines.
        lines: of the whole file.
        comments: lines with nothing but a comment.
        names: lengths of the assigned names.
        switches: comments that switch a formatter off.
        functions: (name, complexity) of every function.
    """

    path: Path
    code: list[int]
    lines: int
    comments: int
    comprehensions: int
    statements: int
    names: list[int]
    switches: int
    functions: list[tuple[str, int]]


@dataclass(frozen=True)
class Air:
    """The row of a package."""

    mean_code_line: float
    lines_over_100: float
    comment_lines: float
    comprehensions_per_100_statements: float
    mean_assigned_name: float
    switched_off_formatters: int
    longest_module: int
    highest_complexity: int

    def cells(self) -> list[str]:
        """The row as text, shares in percent."""
        return [
            f"{self.mean_code_line:.1f}",
            f"{self.lines_over_100:.1%}",
            f"{self.comment_lines:.1%}",
            f"{self.comprehensions_per_100_statements:.0f}",
            f"{self.mean_assigned_name:.1f}",
            f"{self.switched_off_formatters}",
            f"{self.longest_module}",
            f"{self.highest_complexity}",
        ]


def files_of(package: Path) -> list[Path]:
    """Every Python file of a package (or the one file), tests left out."""
    if package.is_file():
        return [package]
    files = sorted(package.rglob("*.py"))
    return [f for f in files if not {"tests", "test"} & set(f.relative_to(package).parts)]


def modules(files: Iterable[Path]) -> list[Module]:
    """What every file counts."""
    return [measure(file) for file in files]


@cache
def measure(path: Path) -> Module:
    """Count one file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines()
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    holds_code = _code_lines(tokens) - _docstring_lines(tree)
    comments = [t for t in tokens if t.type == tokenize.COMMENT]
    nodes = list(ast.walk(tree))
    return Module(
        path=path,
        code=[len(lines[number - 1]) for number in sorted(holds_code)],
        lines=len(lines),
        comments=sum(lines[c.start[0] - 1].lstrip().startswith("#") for c in comments),
        comprehensions=sum(isinstance(node, COMPREHENSIONS) for node in nodes),
        statements=sum(isinstance(node, ast.stmt) for node in nodes),
        names=[len(name) for name in assigned_names(tree)],
        switches=sum(bool(SWITCHES.search(c.string)) for c in comments),
        functions=[(f.name, complexity(f)) for f in nodes if isinstance(f, FUNCTIONS)],
    )


def _code_lines(tokens: list[tokenize.TokenInfo]) -> set[int]:
    covered: set[int] = set()
    for token in tokens:
        if token.type not in LAYOUT:
            covered.update(range(token.start[0], token.end[0] + 1))
    return covered


def _docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines.update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    return lines


def assigned_names(tree: ast.AST) -> Iterator[str]:
    """Names that are written to, each time; loops and comprehensions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def complexity(function: ast.AST) -> int:
    """McCabe's complexity: 1, and 1 for every branch and every function inside."""
    nodes = list(ast.walk(function))
    branches = sum(isinstance(node, (*BRANCHES, *FUNCTIONS)) for node in nodes)
    return branches + sum(isinstance(node, ast.Try) and bool(node.orelse) for node in nodes)


def air(files: Iterable[Path]) -> Air:
    """The row of some files."""
    counted = modules(files)
    code = [n for m in counted for n in m.code]
    names = [n for m in counted for n in m.names]
    statements = sum(m.statements for m in counted)
    return Air(
        mean_code_line=sum(code) / len(code),
        lines_over_100=sum(n > LONG_LINE for n in code) / len(code),
        comment_lines=sum(m.comments for m in counted) / len(code),
        comprehensions_per_100_statements=100 * sum(m.comprehensions for m in counted) / statements,
        mean_assigned_name=sum(names) / len(names),
        switched_off_formatters=sum(m.switches for m in counted),
        longest_module=max(m.lines for m in counted),
        highest_complexity=max(c for m in counted for _, c in m.functions),
    )


def main(paths: list[str]) -> None:
    """Print the table, as Markdown."""
    headers = ["", *(f.name.replace("_", " ") for f in fields(Air))]
    print("| " + " | ".join(headers) + " |")
    print("|" + "---|" * len(headers))
    for path in paths:
        print("| " + " | ".join([Path(path).name, *air(files_of(Path(path))).cells()]) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
