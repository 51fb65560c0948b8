"""The commands, one small function each. What needs torch is imported where it is used."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from conceptvec.cli.finished import FINISHED
from conceptvec.cli.options import (
    MODEL,
    RESULTS_HELP,
    Answer,
    Command,
    argument,
    config_of,
    count,
    given,
    path_argument,
)
from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError
from conceptvec.text import printable

BAD_PLAN = 2  # a dry run that finds a problem is a bad request


def run(arguments: argparse.Namespace) -> Answer:
    """``conceptvec run``."""
    config = config_of(arguments)
    if arguments.dry_run:
        from conceptvec.tools.preflight import preflight

        plan = preflight(config)
        return Answer(plan.document(), lambda: printable(str(plan), keep="\n"))
    from conceptvec.document import invalid_path
    from conceptvec.pipeline import results_path
    from conceptvec.pipeline import run as run_stages

    results = run_stages(config)
    kind = results["model"]["device"].partition(":")[0]
    path = results_path(config.folder(kind), kind)
    if (invalid := invalid_path(path)).exists():
        raise RunError(f"the run is finished, but its results fit no schema; they are in {invalid}")
    seconds = sum(results["timings"].values())
    return Answer(results, lambda: f"{results!r}\n{path}  ({seconds:.0f} s)")


def show(arguments: argparse.Namespace) -> Answer:
    """``conceptvec show``."""
    from conceptvec.results import load_results
    from conceptvec.show.tables import ROWS, results_table

    results = load_results(arguments.results)
    limit = None if arguments.all else ROWS
    return Answer(results, lambda: results_table(results, limit))


def report(arguments: argparse.Namespace) -> Answer:
    """``conceptvec report``."""
    from conceptvec.results import load_results

    results, source = load_results(arguments.run), Path(arguments.run)
    folder = source if source.is_dir() else source.parent
    path = results.to_html(arguments.out or folder / "report.html", folder)
    return Answer(results, lambda: str(path))


def find(arguments: argparse.Namespace) -> Answer:
    """``conceptvec find``."""
    from conceptvec.tools.find import find

    config, asked = config_of(arguments), given(arguments)
    answer = find(arguments.words, config, arguments.limit, arguments.run, asked)
    return Answer(answer, lambda: repr(answer))


def scan(arguments: argparse.Namespace) -> Answer:
    """``conceptvec scan``."""
    from conceptvec.model.device import choose_device
    from conceptvec.model.network import load_model
    from conceptvec.pipeline import open_run
    from conceptvec.tools.disk import check_writable
    from conceptvec.tools.scan_table import concept_of_words, scan, scan_folder

    config = config_of(arguments)
    if arguments.words and config.concepts:
        raise RequestError("--words, --concepts: got both, expected one of them")
    if arguments.words:
        config = replace(config, concepts=concept_of_words(arguments.words))
    folder = scan_folder(config, choose_device(config.device).type, arguments.words)
    check_writable(folder)
    config = replace(config, out=str(folder))
    model = load_model(config)
    parts = open_run(model, config)
    answer = scan(model, config, parts, arguments.limit)
    parts.finish()
    return Answer(answer, lambda: f"{answer!r}\n\n{parts.path}")


def score_tokens(arguments: argparse.Namespace) -> Answer:
    """``conceptvec score-tokens``."""
    from conceptvec.scoring.lexicon import score_tokens

    answer = score_tokens(arguments.tokens, arguments.concepts)
    matched = printable(", ".join(answer["components"]["matched"]))
    line = f"{answer['concept']}  score {answer['score']:.2f}"
    return Answer(answer, lambda: f"{line}  ({matched})" if matched else line)


def prompts(arguments: argparse.Namespace) -> Answer:
    """``conceptvec prompts``."""
    from conceptvec.concepts import load_concepts
    from conceptvec.model.network import load_model
    from conceptvec.validation.transfer import PromptTable, knowledge, knowledge_table

    config = config_of(arguments)
    by_concept = load_concepts(config.concepts).prompts()
    model = load_model(config)
    table = PromptTable.build(model, by_concept, config.batch_size, config.chat_template)
    known = knowledge(table, by_concept) if table else {}
    answer = {"model": model.facts(), "concepts": known}
    return Answer(answer, lambda: knowledge_table(answer))


def calibrate(arguments: argparse.Namespace) -> Answer:
    """``conceptvec calibrate``."""
    from conceptvec.model.device import choose_device
    from conceptvec.model.network import load_model
    from conceptvec.pipeline import open_run
    from conceptvec.tools.calibrate import (
        Options,
        calibrate,
        calibration_table,
        check_folder,
        save_calibration,
    )

    options = Options(arguments.planted, arguments.vectors)
    config = config_of(arguments)
    # A calibration lies beside the run of the same name, unless a folder is given.
    folder = config.folder(choose_device(config.device).type)
    folder = folder if config.out else folder.with_name(folder.name + "-calibration")
    check_folder(folder, config, options)
    config = replace(config, out=str(folder))
    model = load_model(config)
    parts = open_run(model, config)
    answer = calibrate(model, config, options, parts)
    parts.finish()
    figure = save_calibration(answer, folder) if parts.rank == 0 else folder
    return Answer(answer, lambda: f"{calibration_table(answer)}\n{figure}")


def selfcheck(arguments: argparse.Namespace) -> Answer:
    """``conceptvec selfcheck``."""
    from conceptvec.tools.selfcheck import checks_table, selfcheck

    answer = selfcheck(config_of(arguments))
    return Answer(answer, lambda: checks_table(answer))


def bench(arguments: argparse.Namespace) -> Answer:
    """``conceptvec bench``."""
    from conceptvec.tools.bench import bench, bench_table

    device = config_of(arguments).device
    answer = bench(device, arguments.vectors, arguments.parts.split(","))
    return Answer(answer, lambda: bench_table(answer))


COMMANDS = (
    Command(
        "run",
        "the whole job: extract, score, damage, report",
        run,
        options=tuple(f.name for f in fields(Config)),
        arguments=(
            argument(
                "--dry-run",
                action="store_true",
                help="say what would be done and needed, then stop",
            ),
        ),
        not_ok=BAD_PLAN,
    ),
    Command(
        "show",
        "a results file (or run folder) as a table",
        show,
        arguments=(
            path_argument("results", metavar="RESULTS", help=RESULTS_HELP),
            argument("--all", action="store_true", help="every tested candidate"),
        ),
    ),
    Command(
        "report",
        "one self-contained HTML file of a run",
        report,
        arguments=(
            path_argument("run", metavar="RUN", help=RESULTS_HELP),
            path_argument(
                "--out",
                metavar="FILE",
                help="the HTML file (default: report.html beside the results)",
            ),
        ),
        writes_json=False,
    ),
    *FINISHED,
    Command(
        "find",
        "the value vectors, over all neurons, that promote the given words",
        find,
        options=(*MODEL, "layers", "fold"),
        arguments=(
            argument("words", nargs="+", metavar="WORD", help="any case, any inflection"),
            argument("--limit", type=count, default=20, help="poles shown (default 20)"),
            path_argument(
                "--run",
                metavar="RUN",
                help="search the kept lists of this finished run instead of the weights",
            ),
        ),
    ),
    Command(
        "scan",
        "the first-order effect of removing every neuron on every concept's words",
        scan,
        options=(
            *MODEL,
            "layers",
            "fold",
            "concepts",
            "corpus",
            "corpus_tokens",
            "chat_template",
            "seed",
            "out",
            "overwrite",
        ),
        arguments=(
            argument(
                "--words", nargs="+", metavar="WORD", help="words of your own, as one concept"
            ),
            argument(
                "--limit", type=count, default=5, help="poles shown of each concept (default 5)"
            ),
        ),
    ),
    Command(
        "score-tokens",
        "score a bare list of tokens, most promoted first, without a model",
        score_tokens,
        arguments=(
            argument("tokens", nargs="+", metavar="TOKEN", help="most promoted first"),
            argument(
                "--concepts",
                metavar="…",
                help="a .json or .txt file, or birds=robin,eagle (default: the built-in twelve)",
            ),
        ),
    ),
    Command(
        "prompts",
        "how well the model knows each prompt's answer, and which are left out",
        prompts,
        options=(*MODEL, "batch_size", "concepts", "chat_template", "seed"),
    ),
    Command(
        "calibrate",
        "false-validation rate and power of Stage 3 on the model at hand",
        calibrate,
        options=(
            *MODEL,
            "layers",
            "fold",
            "batch_size",
            "concepts",
            "corpus",
            "corpus_tokens",
            "damage",
            "noise_sigma",
            "chat_template",
            "seed",
            "out",
            "overwrite",
        ),
        arguments=(
            argument(
                "--planted",
                type=int,
                default=1,
                help="planted vectors for each concept and effect (default 1)",
            ),
            argument("--vectors", type=int, default=200, help="random neurons (default 200)"),
        ),
    ),
    Command(
        "selfcheck",
        "whether this device computes correctly",
        selfcheck,
        options=MODEL,
    ),
    Command(
        "bench",
        "the benchmarks, on random weights of the shape of Gemma 3 1B or 270M",
        bench,
        options=("device",),
        arguments=(
            argument(
                "--parts",
                default="projection,scoring,scan,validation",
                help="some of %(default)s",
            ),
            argument(
                "--vectors", type=int, default=400, help="value vectors projected (default 400)"
            ),
        ),
    ),
)
