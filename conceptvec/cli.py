"""The command line: ``conceptvec COMMAND``. Options of `run` are the fields of `Config`; only results go to stdout."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any

from conceptvec.config import Config
from conceptvec.errors import RequestError, RunError
from conceptvec.text import printable
from conceptvec.version import __version__

STAGE3_OPTIONS = ("damage", "noise_ratio", "noise_sigma", "draws", "nulls", "chat_template", "seed")
MODEL_OPTIONS = ("model", "revision", "device", "dtype")
_WHOLE = {"max_vectors", "batch_size", "top_k", "draws", "nulls", "seed"}
_REAL = {"min_kurtosis", "score_threshold", "noise_ratio", "noise_sigma"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise RequestError(f"{message}; see {self.prog} --help")


def _value(name: str, text: str) -> Any:
    """An option's text as its field's type; what does not fit stays text and is refused by `Config`."""
    if text in ("all", "none") and name in ("max_vectors", "noise_sigma", "min_kurtosis"):
        return None
    try:
        return int(text) if name in _WHOLE else float(text) if name in _REAL else text
    except ValueError:
        return text


def _add_options(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    for f in fields(Config):
        if names is not None and f.name not in names:
            continue
        flag = "--" + f.name.replace("_", "-")
        if isinstance(f.default, bool):
            parser.add_argument(flag, action="store_true", default=MISSING, help=f.metadata["help"])
            continue
        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        note = "" if shown is None else f" (default {shown})"
        parser.add_argument(
            flag, default=MISSING, metavar="…", help=f.metadata["help"].replace("%", "%%") + note
        )


def _config(args: argparse.Namespace, **extra: Any) -> Config:
    given = {f.name: getattr(args, f.name, MISSING) for f in fields(Config)}
    return Config(
        **{
            k: _value(k, v) if isinstance(v, str) else v
            for k, v in given.items()
            if v is not MISSING
        },
        **extra,
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="conceptvec", description="Find concept vectors in Gemma 3 and prove that they matter."
    )
    parser.add_argument("--version", action="version", version=f"conceptvec {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str, json_option: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if json_option:
            sub.add_argument(
                "--json", action="store_true", help="one JSON document on standard output"
            )
        return sub

    run = command("run", "the whole job: extract, score, damage, report")
    _add_options(run)
    run.add_argument(
        "--dry-run", action="store_true", help="say what would be done and needed, then stop"
    )
    show = command("show", "a results file (or run folder) as a table")
    show.add_argument("results", help="results file or run folder")
    show.add_argument("--all", action="store_true", help="every tested candidate")
    report = command("report", "one self-contained HTML file of a run", json_option=False)
    report.add_argument("run", metavar="RUN", help="results file or run folder")
    report.add_argument(
        "--out", metavar="FILE", help="the HTML file (default: report.html beside the results)"
    )
    tokens = command(
        "score-tokens", "score a bare list of tokens, most promoted first, without a model"
    )
    tokens.add_argument("tokens", nargs="+", metavar="TOKEN")
    tokens.add_argument(
        "--concepts",
        help="a .json or .txt file, or birds=robin,eagle (default: the built-in twelve)",
    )
    prompts = command(
        "prompts", "how well the model knows each prompt's answer, and which are left out"
    )
    _add_options(prompts, (*MODEL_OPTIONS, "batch_size", "concepts", "chat_template", "seed"))
    calibrate = command(
        "calibrate", "false-validation rate and power of Stage 3 on the model at hand"
    )
    _add_options(
        calibrate,
        (*MODEL_OPTIONS, "layers", "batch_size", "concepts", "corpus", *STAGE3_OPTIONS, "out"),
    )
    calibrate.add_argument("--vectors", type=int, default=100, help="random neurons (default 100)")
    calibrate.add_argument(
        "--planted", type=int, default=48, help="planted vectors per effect (default 48)"
    )
    check = command("selfcheck", "whether this device computes correctly")
    _add_options(check, MODEL_OPTIONS)
    find = command("find", "the value vectors, over all neurons, that promote the given words")
    find.add_argument("words", nargs="+", metavar="WORD")
    _add_options(find, (*MODEL_OPTIONS, "layers", "fold"))
    find.add_argument("--limit", type=int, default=20, help="poles shown (default 20)")
    find.add_argument(
        "--run", help="search the kept lists of this finished run instead of the weights"
    )
    bench = command("bench", "the benchmarks, on random weights of the shape of Gemma 3 1B")
    _add_options(bench, ("device",))
    bench.add_argument(
        "--parts", default="projection,scoring,validation", help="some of %(default)s"
    )
    bench.add_argument(
        "--vectors", type=int, default=400, help="value vectors projected (default 400)"
    )
    return parser


Answer = tuple[dict[str, Any], Callable[[], str]]  # the document for --json, the text without it


def _run(args: argparse.Namespace) -> Answer:
    from conceptvec.pipeline import results_path, run

    config = _config(args)
    if args.dry_run:
        from conceptvec.tools.preflight import preflight

        plan = preflight(config)
        return plan, lambda: printable(str(plan), keep="\n")
    results = run(config)
    kind = results["model"]["device"].partition(":")[0]
    path, seconds = results_path(config.folder(kind), kind), sum(results["timings"].values())
    return results, lambda: f"{results!r}\n{path}  ({seconds:.0f} s)"


def _show(args: argparse.Namespace) -> Answer:
    from conceptvec.results import load_results
    from conceptvec.show.tables import ROWS, results_table

    document = load_results(args.results)
    return document, lambda: results_table(document, None if args.all else ROWS)


def _report(args: argparse.Namespace) -> Answer:
    from pathlib import Path

    from conceptvec.results import load_results

    results, run = load_results(args.run), Path(args.run)
    path = results.to_html(args.out or (run if run.is_dir() else run.parent) / "report.html")
    return results, lambda: str(path)


def _score_tokens(args: argparse.Namespace) -> Answer:
    from conceptvec.scoring.lexicon import score_tokens

    found = score_tokens(args.tokens, args.concepts)
    matched = printable(", ".join(found["components"]["matched"]))
    return (
        found,
        lambda: (
            f"{found['concept']}  score {found['score']:.2f}"
            + (f"  ({matched})" if matched else "")
        ),
    )


def _selfcheck(args: argparse.Namespace) -> Answer:
    from conceptvec.tools.selfcheck import checks_table, selfcheck

    found = selfcheck(_config(args))
    return found, lambda: checks_table(found)


def _prompts(args: argparse.Namespace) -> Answer:
    from conceptvec.concepts import load_concepts
    from conceptvec.model.network import load_model
    from conceptvec.validation.measure import PromptTable, knowledge_table

    config = _config(args)
    prompts = load_concepts(config.concepts).prompts()
    model = load_model(config)
    document = {
        "model": model.facts(),
        "concepts": PromptTable.build(model, config, prompts).knowledge(prompts),
    }
    return document, lambda: knowledge_table(document)


def _calibrate(args: argparse.Namespace) -> Answer:
    from conceptvec.model.network import load_model
    from conceptvec.runfolder import write_atomic
    from conceptvec.show.figures import calibration
    from conceptvec.tools.calibrate import calibrate, calibration_table

    if args.vectors < 1 or args.planted < 1:
        raise RequestError(
            f"--vectors, --planted: got {args.vectors} and {args.planted}, expected 1 or more of each"
        )
    config = _config(args)
    model = load_model(config)
    folder = config.folder(model.device.type)
    folder = folder if config.out else folder.with_name(folder.name + "-calibration")
    document = calibrate(model, config, args.vectors, args.planted)
    write_atomic(
        folder / "calibration.json", json.dumps(document, indent=1, allow_nan=False).encode()
    )
    calibration(document).savefig(path := folder / "calibration.png", dpi=150)
    return document, lambda: f"{calibration_table(document)}\n{path}"


def _find(args: argparse.Namespace) -> Answer:
    from conceptvec.tools.find import find, found_table

    if args.limit < 1:
        raise RequestError(f"--limit: got {args.limit}, expected a whole number of at least 1")
    found = find(args.words, _config(args), args.limit, args.run)
    return found, lambda: found_table(found)


def _bench(args: argparse.Namespace) -> Answer:
    from conceptvec.tools.bench import bench, bench_table

    found = bench(_config(args).device, args.vectors, args.parts.split(","))
    return found, lambda: bench_table(found)


COMMANDS = {
    "run": _run, "show": _show, "report": _report, "find": _find, "score-tokens": _score_tokens, "prompts": _prompts,
    "calibrate": _calibrate, "selfcheck": _selfcheck, "bench": _bench,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 failed, 2 bad request, 130 interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None or sys.stderr is None:  # closed by the caller
        nowhere = open(os.devnull, "w")  # noqa: SIM115
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a token shows its number
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        parser = _parser()
        args = parser.parse_args(argv)
        if args.command is None:
            parser.print_help()
            return 0
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        first = os.environ.get("RANK", "0") == "0"  # of several processes only the first talks
        logging.getLogger("conceptvec").setLevel(logging.INFO if first else logging.ERROR)
        with contextlib.nullcontext() if first else contextlib.redirect_stdout(None):
            document, text = COMMANDS[args.command](args)
        if not first:
            return 0
        unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        as_json = lambda: json.dumps(document, ensure_ascii=not unicode, indent=1, allow_nan=False)
        print(as_json() if getattr(args, "json", False) else text())
        sys.stdout.flush()
        if document.get("ok", True):
            return 0
        return (
            2 if args.command == "run" else 1
        )  # a plan with problems; a device that failed its checks
    except RequestError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(
            f"{error}; what was finished is kept. Check disk, folder and network, then run it again",
            1,
        )
    except MemoryError:
        return _fail(
            "out of memory; what was finished is kept. Run it again with a smaller --batch-size", 1
        )
    except KeyboardInterrupt:
        again = shlex.join(["conceptvec", *(a for a in argv if a != "--overwrite")])
        return _fail(
            f"interrupted; what was finished is kept. {'Resume' if 'run' in argv else 'Again'}: {again}",
            130,
        )


def _fail(message: object, status: int) -> int:
    print(f"conceptvec: {printable(' '.join(str(message).split()))}", file=sys.stderr)
    return status
