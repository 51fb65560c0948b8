"""The commands that take finished runs further: all poles, other tools, runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from conceptvec.cli.options import RESULTS_HELP, Answer, Command, argument, count, path_argument

PNG = b"\x89PNG"  # how such a file begins
SHOWN_IDS = 12  # on the line that `export` prints


def poles(arguments: argparse.Namespace) -> Answer:
    """``conceptvec poles``."""
    from conceptvec.config import parse_layers
    from conceptvec.tools.scored_poles import poles_csv, poles_table, read_poles

    # The number of layers is the table's business: "all" chooses none, and that means all of them.
    layers = parse_layers(arguments.layers, None) or None
    selected = read_poles(arguments.run).select(arguments.concept, arguments.label, layers)
    kept = selected[: arguments.limit]

    def text() -> str:
        return poles_csv(kept) if arguments.csv else poles_table(selected, arguments.limit)

    return Answer({"poles": [pole.entry() for pole in kept]}, text)


def export(arguments: argparse.Namespace) -> Answer:
    """``conceptvec export``."""
    from conceptvec.export.choice import Choice
    from conceptvec.export.stage import export
    from conceptvec.results import load_results

    choice = Choice(arguments.concept, tuple(arguments.id))
    results = load_results(arguments.run)
    written = export(results, arguments.out, arguments.to, choice, arguments.model)
    path, ids = str(written.path), list(written.ids)
    answer = {"to": arguments.to, "path": path, "ids": ids}
    shown = [*ids[:SHOWN_IDS], *(["…"] if len(ids) > SHOWN_IDS else [])]
    return Answer(answer, lambda: f"{path}\n{len(ids)} of the run's vectors: {', '.join(shown)}")


def compare(arguments: argparse.Namespace) -> Answer:
    """``conceptvec compare``."""
    from conceptvec.files import check_place
    from conceptvec.tools.compare import compare, comparison_table

    if arguments.out:
        check_place(Path(arguments.out), lambda begin: begin.startswith(PNG), "PNG file")
    answer = compare([arguments.run, *arguments.others])
    if arguments.out:
        from conceptvec.show.figures import comparison, save_figure

        save_figure(comparison(answer), arguments.out)
    return Answer(answer, lambda: comparison_table(answer))


FINISHED = (
    Command(
        "poles",
        "every scored pole of a run: its label, concept, score and words",
        poles,
        arguments=(
            path_argument("run", metavar="RUN", help="run folder"),
            argument("--concept", metavar="NAME", help="only poles that stand for this concept"),
            argument(
                "--label", metavar="LABEL", help="only concept, lexical, other, mixed or none"
            ),
            argument(
                "--layers", metavar="…", default="all", help="only these, such as 8-20 or 3,5"
            ),
            argument(
                "--limit",
                type=count,
                help="poles shown, best score first (default 20, and all as --json or --csv)",
            ),
            argument("--csv", action="store_true", help="comma-separated values, one line a pole"),
        ),
    ),
    Command(
        "export",
        "what other tools read: a control vector, a table, an upload, a folder with a card",
        export,
        arguments=(
            path_argument("run", metavar="RUN", help=RESULTS_HELP),
            argument("--to", required=True, metavar="FORMAT", help="gguf, csv, neuronpedia or hf"),
            path_argument("--out", required=True, metavar="PATH", help="the file; a folder for hf"),
            argument(
                "--concept", metavar="NAME", help="its validated vectors (gguf: one concept a file)"
            ),
            argument("--id", nargs="+", default=(), metavar="ID", help="these vectors, any of all"),
            path_argument(
                "--model", metavar="…", help="where the run's model is now, if it has moved"
            ),
        ),
    ),
    Command(
        "compare",
        "runs side by side: which vectors are the same, which gained or lost their verdict",
        compare,
        arguments=(
            path_argument("run", metavar="RUN", help=RESULTS_HELP),
            path_argument("others", metavar="RUN", nargs="+", help="what it is compared with"),
            path_argument("--out", metavar="FILE", help="write the figure too, as PNG"),
        ),
    ),
)
