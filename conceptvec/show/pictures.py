"""Pictures come last: what keeps one from being drawn costs the picture and a line, no result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conceptvec.errors import first_line

logger = logging.getLogger(__name__)


def attempted(draw: Callable[[], Any], what: str) -> Any:
    """What `draw` gives; None and a line where it fails, in whatever way.

    Fonts, backends, locales and disks fail in as many ways as there are.
    """
    try:
        return draw()
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        logger.warning("%s could not be drawn (%s); the results are kept", what, reason)
        return None


def save_run_figures(results: Mapping[str, Any], folder: Path) -> None:
    """Write a run's figures, as many as can be drawn."""

    def draw() -> None:
        from conceptvec.show.figures import save_figures

        save_figures(results, folder)

    attempted(draw, "figures")


def save_calibration_figure(document: Mapping[str, Any], path: Path) -> None:
    """Write a calibration's figure, if it can be drawn."""

    def draw() -> None:
        from conceptvec.show.figures import calibration, save_figure

        save_figure(calibration(document), path)

    attempted(draw, "the figure")
