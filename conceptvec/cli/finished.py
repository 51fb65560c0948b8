"""The commands that take finished runs further: to other tools, and side by side."""

from __future__ import annotations

import argparse

from conceptvec.cli.options import Answer, Command, argument


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
    return Answer(answer, lambda: f"{path}\n{len(ids)} of the run's vectors: {', '.join(ids)}")


def compare(arguments: argparse.Namespace) -> Answer:
    """``conceptvec compare``."""
    from conceptvec.tools.compare import compare, comparison_table

    answer = compare([arguments.run, *arguments.others])
    if arguments.out:
        from conceptvec.show.figures import comparison, save_figure

        save_figure(comparison(answer), arguments.out)
    return Answer(answer, lambda: comparison_table(answer))


FINISHED = (
    Command(
        "export",
        "what other tools read: a control vector, a table, an upload, a folder with a card",
        export,
        arguments=(
            argument("run", metavar="RUN", help="results file or run folder"),
            argument("--to", required=True, metavar="FORMAT", help="gguf, csv, neuronpedia or hf"),
            argument("--out", required=True, metavar="PATH", help="the file; a folder for hf"),
            argument(
                "--concept", metavar="NAME", help="its validated vectors (gguf: one concept a file)"
            ),
            argument("--id", nargs="+", default=(), metavar="ID", help="these vectors, any of all"),
            argument("--model", metavar="…", help="where the run's model is now, if it has moved"),
        ),
    ),
    Command(
        "compare",
        "runs side by side: which vectors are the same, which gained or lost their verdict",
        compare,
        arguments=(
            argument("run", metavar="RUN", help="results file or run folder"),
            argument("others", metavar="RUN", nargs="+", help="what it is compared with"),
            argument("--out", metavar="FILE", help="write the figure too, as PNG"),
        ),
    ),
)
