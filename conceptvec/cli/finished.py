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
)
