"""The whole job: from the configuration through all stages to the results, in a run folder."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptvec.config import Config, parse_layers
from conceptvec.document import keep_document, results_name
from conceptvec.errors import RequestError, RunError, first_line
from conceptvec.identity import SCORING
from conceptvec.launch import place
from conceptvec.model.ambient import set_aside
from conceptvec.results import Results
from conceptvec.runfolder import VECTORS, Parts, RunFolder
from conceptvec.show.pictures import save_run_figures
from conceptvec.tools.preflight import preflight

if TYPE_CHECKING:
    from conceptvec.model.network import Model
    from conceptvec.model.weights import Weights
    from conceptvec.scoring.stage import Scored

logger = logging.getLogger(__name__)

opened: list[Path] = []  # the run folders of this process that were cleared or resumed
PATIENCE = timedelta(
    hours=1
)  # how long a process waits for the slowest of the others before it gives up


@set_aside
def run(config: Config) -> Results:
    """Run all stages that `config.stages` asks for.

    An interrupted run of the same configuration is resumed.

    Returns:
        the results; also in the run folder, with the validated vectors and the figures.

    Raises:
        RequestError: the request is bad (nothing was changed).
        RunError: the run failed; what was finished is kept.
    """
    plan = preflight(config, is_timed=False)  # before anything is downloaded or loaded
    for note in plan.warnings:
        logger.warning(note)
    if plan.problems:
        raise RequestError("; ".join(plan.problems))
    from conceptvec.extraction.stage import extract
    from conceptvec.model.network import load_model
    from conceptvec.model.weights import load_weights
    from conceptvec.scoring.stage import score

    start = time.perf_counter()
    # Stages 1 and 2 need no forward pass, so they read the weights alone.
    network = load_model(config) if 3 in config.stages else None
    model = network or load_weights(config)
    if network is not None and config.chat_template:
        network.encode("", chat=True)  # refused before anything is written
    parts = open_run(model, config)
    load = round(time.perf_counter() - start, 3)
    candidates = extract(model, config, parts)
    scored = score(candidates, model, config, parts) if 2 in config.stages else None
    if scored is not None and network is not None:
        results = validate(scored, network, config, parts)
    else:
        results = Results.build(model, config, candidates, scored)
    parts.finish()
    results = results.with_load_seconds(load)
    save_run(results, model, config, parts)
    return results


@set_aside
def validate(scored: Scored, model: Model, config: Config, parts: Parts | None = None) -> Results:
    """Stage 3: running text, the scan, and damage where they leave a question.

    Args:
        scored: Stage 2.
        model: the model; it is never written.
        config: corpus, corpus_tokens, damage kinds, noise_sigma, seed, batch_size.
        parts: keeps finished parts (a `runfolder.RunFolder`).

    Returns:
        the results of the whole run.

    Raises:
        RequestError: the corpus cannot be read, or the stages before or the run folder were made
            with other options or another model.
        RunError: a forward pass gives NaN or infinity, or a sample of damaged passes does not
            agree with the CPU.
    """
    from conceptvec.effects.stage import running_text, scan_text
    from conceptvec.effects.survey import by_scan, survey
    from conceptvec.validation.stage import damage_candidates

    parts = parts or Parts()
    parts.bind(config, model.facts(), SCORING, scored.origin)
    text = running_text(model, config, scored.concepts, scored.candidates.masked, parts)
    named = [
        (candidate.pole, text.words.concepts.index(candidate.concept))
        for candidate in scored.candidates_found
    ]
    layers = [projections.layer for projections in scored.candidates.layers]
    scan = scan_text(text, model, config, layers, named, parts)
    everywhere = survey(scan, parts)
    validation = damage_candidates(
        scored.candidates_found, scan, config, scored.concepts.prompts(), parts
    )
    added = by_scan(scan, everywhere, scored, config.top_k)
    return Results.build(model, config, scored.candidates, scored, added, validation)


def open_run(model: Weights, config: Config) -> RunFolder:
    """The run folder of a configuration: what is finished there is used again, what comes is kept.

    Raises:
        RequestError: the folder belongs to another configuration or model, or the layers are not
            the model's.
    """
    parse_layers(config.layers, model.n_layers)
    folder = config.folder(model.device.type)
    parts = RunFolder(folder, config, model.facts(), processes())
    opened.append(folder)
    return parts


@set_aside
def save_run(results: Results, model: Weights, config: Config, parts: RunFolder) -> Path:
    """Write results, validated vectors and figures into the run folder, in this order.

    The first of several processes does. Results that do not fit their schema are written too, into
    a file of another name (`document.keep_document`).

    Returns:
        the path of the results file.

    Raises:
        RequestError: the results or the folder were made with other options or another model.
    """
    parts.bind(config, model.facts(), SCORING, results)
    path = results_path(parts.path, model.device.type)
    if parts.rank == 0:
        from conceptvec.export.vectors import save_vectors

        path = keep_document(results, path)
        save_vectors(model, config.fold, results.validated, parts.path / VECTORS)
        save_run_figures(results, parts.path / "figures")
    parts.barrier()
    return path


def results_path(folder: Path, device: str) -> Path:
    """Where a run on this kind of device keeps its results."""
    return folder / results_name(device)


def processes() -> Any:
    """The other processes of a `torchrun` or `accelerate launch`, or None where this one is alone.

    They share files, and arrays of the host that each has read of the clean pass, so gloo does on
    every device.
    """
    rank, world, _ = place()
    if world < 2:
        return None
    from accelerate import PartialState

    logger.info("process %d of %d (WORLD_SIZE): waiting for the others", rank, world)
    try:
        return PartialState(cpu=True, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:  # an address or a port that is none
        raise RunError(
            f"the {world} processes could not meet ({first_line(error)}); start them with torchrun "
            "or accelerate launch"
        ) from None
