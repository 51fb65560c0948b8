"""Whether this process is one of several, as ``torchrun`` or ``accelerate launch`` says.

They set `WORLD_SIZE` together with `LAUNCHED`. Single variables are left over from elsewhere (a
cluster's job, an image): a process that is alone is alone, whatever its ``RANK`` says.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from conceptvec.errors import RequestError

LAUNCHED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
ALONE = "unset WORLD_SIZE to run alone, or start with torchrun or accelerate launch"


class Place(NamedTuple):
    """This process among the others: its number, how many there are, its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0


def place() -> Place:
    """This process's place, from the environment.

    Raises:
        RequestError: several processes are announced, and what they need to meet is not there.
    """
    world = _number("WORLD_SIZE", 1)
    if world < 2:
        return Place()
    missing = [name for name in LAUNCHED if not os.environ.get(name)]
    if missing:
        raise RequestError(
            f"WORLD_SIZE is {world} and {', '.join(missing)} not set, expected all or none: {ALONE}"
        )
    rank = _number("RANK", 0)
    if not 0 <= rank < world:
        raise RequestError(f"RANK: got {rank}, expected 0 to {world - 1} (WORLD_SIZE): {ALONE}")
    return Place(rank, world, _number("LOCAL_RANK", 0))


def is_first() -> bool:
    """Whether this process is the one that talks; one with no sound place is."""
    try:
        return place().rank == 0
    except RequestError:
        return True


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise RequestError(f"{name}: got {text[:80]!r}, expected a whole number: {ALONE}") from None
