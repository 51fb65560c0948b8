"""The values of the results document's fields: types, and what a JSON Schema says besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(frozen=True)
class Limits:
    """What a value must fulfil, under JSON Schema's own names; None is no limit."""

    minimum: int | None = None
    maximum: int | None = None
    pattern: str | None = None


Count = Annotated[int, Limits(minimum=0)]
Share = Annotated[float, Limits(minimum=0, maximum=1)]
PoleId = Annotated[str, Limits(pattern=r"^L\d{2,}_N\d{4,}[+-]$")]
TextAndValue = tuple[str, float]
Interval = tuple[float | None, float | None]
Verdict = Literal["validated", "not_specific", "no_effect", "inactive", "inconclusive"]
