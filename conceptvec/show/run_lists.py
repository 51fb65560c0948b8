"""What a run folder holds beside its results: every scored pole, and the scan of all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptvec.effects.everywhere import Everywhere
from conceptvec.errors import RequestError
from conceptvec.holdings import listed_part, manifests
from conceptvec.scoring.poles import PART, PoleTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLists:
    """The lists of a run; None for what its folder does not hold.

    Attributes:
        poles: every pole that Stage 2 scored.
        scan: first-order effects of every pole on every concept.
    """

    poles: PoleTable | None = None
    scan: Everywhere | None = None


def run_lists(run: str | Path, document: Mapping[str, Any]) -> RunLists:
    """The lists that belong to some results: those of their folder, if it is the same run's.

    Args:
        run: the run folder, or the results file in it.
        document: the results.
    """
    path = Path(run).expanduser()
    folder = path if path.is_dir() else path.parent
    if not _is_of(folder, document["model"]["fingerprint"]):
        return RunLists()
    return RunLists(_poles(folder, document), _scan(folder, document))


def _is_of(folder: Path, fingerprint: str) -> bool:
    """Whether the folder is that of a run of the same weights."""
    try:
        models = [manifest["model"] for manifest in manifests(folder)]
    except RequestError:  # another program's
        return False
    return fingerprint in [model.get("fingerprint") for model in models]


def _poles(folder: Path, document: Mapping[str, Any]) -> PoleTable | None:
    """The scored poles, if they were scored for the concepts of the results."""
    is_listed, arrays = listed_part(folder, PART)
    if arrays is None:
        if is_listed:
            logger.warning("%s is damaged: the same run makes it anew", folder / PART)
        return None
    table = PoleTable.of_arrays(arrays)
    is_same = set(table.concepts) == set(document["candidate_distribution"])
    return table if is_same else None


def _scan(folder: Path, document: Mapping[str, Any]) -> Everywhere | None:
    """The scan, if the results hold one."""
    if document["scan_overview"] is None:
        return None
    from conceptvec.effects.survey import read_survey

    try:
        return read_survey(folder, document["model"]["fingerprint"])
    except RequestError as error:
        logger.warning("%s", error)
        return None
