"""A finished run, opened again by the scripts that measure more on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from conceptvec.config import Config
from conceptvec.effects.running_text import RunningText
from conceptvec.effects.stage import running_text
from conceptvec.extraction.stage import extract
from conceptvec.model.network import Model, load_model
from conceptvec.pipeline import open_run
from conceptvec.runfolder import RunFolder
from conceptvec.scoring.stage import Scored, score


@dataclass(frozen=True)
class FinishedRun:
    """What a run's stages gave before the scan; every part is read from its folder."""

    config: Config
    model: Model
    parts: RunFolder
    scored: Scored
    text: RunningText


def reopened(folder: str) -> FinishedRun:
    """Load the model of a run folder, and the run's stages up to its text."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    config = Config(**manifest["configuration"] | {"out": folder})
    model = load_model(config)
    parts = open_run(model, config)
    scored = score(extract(model, config, parts), model, config, parts)
    text = running_text(model, config, scored.concepts, scored.candidates.masked, parts)
    return FinishedRun(config, model, parts, scored, text)
