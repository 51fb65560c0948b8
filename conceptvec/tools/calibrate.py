"""``conceptvec calibrate``: Stage 3 tests itself on the model at hand.

1. The text of a run, written or read once, and the words in it that the model knows (`ground`).
2. **Rounds** (`rounds`). Each plants one vector a concept in one layer of the upper half
   (`planting`), in the place of the neurons that write least, and hands them over as candidates,
   together with random neurons of the layer under random concepts. What a vector is worth goes
   round the concepts, so after as many rounds as there are effects each has had them all.
3. Scan, positions, damage and rule are those of a run (`effects.stage`, `validation.stage`); so are
   the controls that pass with the candidates: null neurons, wrong concepts, moved vectors.

What is validated among the planted is true, what is validated among the others is false, unless
the neuron is a concept neuron itself; so its list is shown. A random neuron is never tested for the
concept that its own readout promotes most. Where no norm makes a vector worth its nats, nothing
is planted, and that is counted. The same controls may come back in several rounds of one layer.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptvec.config import Config
from conceptvec.errors import RequestError, first_line
from conceptvec.holdings import conflicts, holds_another
from conceptvec.identity import differences, record
from conceptvec.model.ambient import set_aside
from conceptvec.runfolder import Arrays, Parts, Task, part_name, write_atomic
from conceptvec.show.pictures import save_calibration_figure
from conceptvec.text import DASH, finite, number, plain, printable
from conceptvec.text import table as text_table
from conceptvec.tools.disk import check_writable
from conceptvec.tools.ground import Ground, planting_layers, survey
from conceptvec.tools.rounds import Options, play
from conceptvec.validation.statistics import wilson
from conceptvec.version import __version__

if TYPE_CHECKING:
    from conceptvec.model.network import Model

logger = logging.getLogger(__name__)

FILE = "calibration.json"


@set_aside
def calibrate(
    model: Model, config: Config, options: Options | None = None, parts: Parts | None = None
) -> dict[str, Any]:
    """Measure false-validation rate and power of Stage 3.

    Args:
        model: the model; each round writes to one layer and restores it.
        config: corpus, corpus_tokens, concepts, layers, fold, damage, seed, batch_size.
        options: what is planted.
        parts: keeps the text and finished rounds (a `runfolder.RunFolder`).

    Returns:
        a document with ``planted`` (one row an effect), ``not_planted``, ``random`` and
        ``null_calibration``, rates with 95 % intervals.

    Raises:
        RequestError: nothing can be planted: no concept has the known words, or no layer is left.
        RunError: a forward pass gives NaN or infinity.
    """
    options, parts = options or Options(), parts or Parts()
    start = time.perf_counter()
    layers = planting_layers(config, model.n_layers)
    ground = survey(model, config, parts)
    tasks = [
        _task(ground, config, options, turn, layers[turn * len(layers) // options.rounds])
        for turn in range(options.rounds)
    ]
    done = parts.map(tasks, "Calibration: planted rounds", "round")
    rounds = [arrays["round_json"] for arrays in done]
    return {
        "conceptvec_version": __version__,
        "model": model.facts(),
        "configuration": config.resolved(),
        "options": options.document(),
        "text": ground.facts(config.corpus),
        "layers": [one["layer"] for one in rounds],
        "planted": [_effect_row(effect, rounds) for effect in options.effects],
        "not_planted": ground.not_planted,
        "random": _random_row(rounds),
        "null_calibration": _pooled_controls(rounds),
        "timings": {"calibrate": round(time.perf_counter() - start, 3)},
    }


def _task(ground: Ground, config: Config, options: Options, turn: int, layer: int) -> Task:
    """One round, its part named after all that it depends on."""
    about = (
        ground.text.passages.digest,
        layer,
        options.document(),
        config.seed,
        config.fold,
        config.damage[0],
    )

    def compute() -> Arrays:
        logger.info("calibration: round %d of %d, layer %d", turn + 1, options.rounds, layer)
        return play(ground, config, options, turn, layer)

    return part_name(f"calibration/round_{turn:03d}", about), compute


# ---- the folder ----


def check_folder(folder: Path, config: Config, options: Options) -> None:
    """Look at what is in a folder, before anything is loaded.

    Raises:
        RequestError: another calibration, a run of another configuration, or no right to write.
    """
    check_writable(folder)
    if config.overwrite:
        return
    now = record(config, {})
    if changes := conflicts(folder, now):
        raise RequestError(holds_another(folder, changes))
    try:
        earlier = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        what = f"a {FILE} that cannot be read"
        raise RequestError(holds_another(folder, [first_line(error)], what)) from None
    if not _is_calibration(earlier):
        what = f"a {FILE} that is none of conceptvec's"
        raise RequestError(holds_another(folder, ["it holds something else"], what))
    was = earlier["options"]
    changes = differences(earlier, now) + [
        f"{name} was {was.get(name)!r}, is {value!r}"
        for name, value in options.document().items()
        if was.get(name) != value
    ]
    if changes:
        raise RequestError(holds_another(folder, changes, "another calibration"))


def _is_calibration(document: Any) -> bool:
    parts = ("options", "configuration", "model")
    return isinstance(document, dict) and all(isinstance(document.get(p), dict) for p in parts)


def save_calibration(document: Mapping[str, Any], folder: Path) -> Path:
    """Write the document, then its figure; returns the figure's path."""
    text = json.dumps(finite(document), indent=1, allow_nan=False)
    write_atomic(folder / FILE, text.encode())
    path = folder / "calibration.png"
    save_calibration_figure(document, path)
    return path


# ---- the document ----


def _rate(hits: int, n: int) -> dict[str, Any]:
    """A rate with its Wilson interval; null where there was nothing to count."""
    low, high = wilson(hits, n)
    return {
        "rate": plain(hits / n) if n else None,
        "ci95": [plain(low), plain(high)] if n else None,
    }


def _effect_row(effect: float, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was found of the vectors that are worth so much."""
    points = [
        {"layer": one["layer"], **point}
        for one in rounds
        for point in one["planted"]
        if point["effect"] == effect
    ]
    standing = [point for point in points if not point["out_of_reach"]]
    validated = sum(point["verdict"] == "validated" for point in standing)
    drops = [p["concept_drop"] for p in standing if p["concept_drop"] is not None]
    failed = Counter(phrase for point in standing for phrase in point["failed"])
    return {
        "effect": effect,
        "planted": len(standing),
        "out_of_reach": len(points) - len(standing),
        "used": sum(point["used"] for point in standing),
        "validated": validated,
        **_rate(validated, len(standing)),
        "concept_drop": plain(np.mean(drops)) if drops else None,
        "failed": dict(failed.most_common()),
        "points": points,
    }


def _random_row(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was falsely found of the random neurons."""
    points = [point for one in rounds for point in one["random"]]
    validated = [point for point in points if point["verdict"] == "validated"]
    return {
        "n": len(points),
        "used": sum(point["used"] for point in points),
        "false_validations": len(validated),
        **_rate(len(validated), len(points)),
        "verdicts": dict(Counter(point["verdict"] for point in points)),
        "points": validated,
    }


def _pooled_controls(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The controls of all rounds together: null neurons at the top, the other kinds beside them."""

    def pooled(of_kind: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        kinds = [of_kind(one["controls"]) for one in rounds]
        n, used, hits = (
            sum(kind[name] for kind in kinds) for name in ("n", "used", "false_validations")
        )
        rate = _rate(hits, n)
        return {
            "n": n,
            "used": used,
            "false_validations": hits,
            "false_validation_rate": rate["rate"],
            "ci95": rate["ci95"],
            "points": [point for kind in kinds for point in kind["points"]],
        }

    return {
        **pooled(lambda found: found),
        "wrong_concept": pooled(lambda found: found["wrong_concept"]),
        "moved": pooled(lambda found: found["moved"]),
    }


# ---- as text ----


def calibration_table(document: Mapping[str, Any]) -> str:
    """The answer of `calibrate` as text."""
    rows = []
    for row in document["planted"]:
        name = f"planted, worth {row['effect']:g} nats"
        if row["out_of_reach"]:
            name += f" ({row['out_of_reach']} out of reach)"
        rows.append([name, row["planted"], row["used"], row["validated"], *_shown_rate(row)])
        rows[-1].append(number(row["concept_drop"]))
    for name, group in false_groups(document).items():
        hits = group["false_validations"]
        rows.append([name, group["n"], group["used"], hits, *_shown_rate(group), ""])
    headers = ("group", "n", "used", "validated", "rate", "95 % interval", "own drop")
    lines = [text_table(rows, headers)]
    for effect in document["planted"]:
        for phrase, n in effect["failed"].items():
            lines.append(f"worth {effect['effect']:g}: {n} × {phrase}")
    for name, reason in document["not_planted"].items():
        lines.append(f"not planted: {printable(name)} ({reason})")
    for point in document["random"]["points"]:
        tokens = printable(" ".join(point["top_tokens"]))
        lines.append(f"random, validated for {printable(point['concept'])}: {point['id']} {tokens}")
    return "\n".join(lines)


def false_groups(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups in which nothing is to be found, by name."""
    nulls = document["null_calibration"]
    return {
        "random neurons": document["random"],
        "null neurons": nulls,
        "wrong concept": nulls["wrong_concept"],
        "moved vectors": nulls["moved"],
    }


def _shown_rate(group: Mapping[str, Any]) -> tuple[str, str]:
    rate = group.get("rate", group.get("false_validation_rate"))
    if rate is None:
        return DASH, DASH
    low, high = group["ci95"]
    return f"{rate:.1%}", f"{low:.1%} … {high:.1%}"
