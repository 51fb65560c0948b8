"""Text with vectors amplified or removed: contexts in which every forward pass carries them.

`steer` adds a direction to the residual stream after a layer at every position, so also at every
token that ``generate`` decodes; the neuron's own activation plays no part. `damaging` removes
value vectors, as an edit of the weights would. The model is never written.

What is added is worked out under the libraries' own defaults, whatever a session has set; the
passes themselves are the user's, and run under the session's settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from conceptvec.errors import RequestError
from conceptvec.model.ambient import set_aside
from conceptvec.records import pole_of
from conceptvec.validation import damage

if TYPE_CHECKING:
    from conceptvec.model.network import Model

LARGEST = torch.finfo(torch.float32).max


@contextmanager
def steer(model: Model, strengths: Mapping[str, float]) -> Iterator[None]:
    """Within the context the residual stream is pushed along the vectors, at every token.

    Args:
        model: the model.
        strengths: the length of the push by vector, such as ``{"L12_N0345+": 4.0}``; what is added
            after layer 12 is the strength times `Weights.residual_direction`.

    Raises:
        RequestError: a vector is not the model's, or a strength is no number.
    """
    additions = _additions(model, strengths)
    handles = [
        model.layers[layer].register_forward_hook(_adding(addition))
        for layer, addition in additions.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@set_aside
def _additions(model: Model, strengths: Mapping[str, float]) -> dict[int, torch.Tensor]:
    """What is added after each layer: float32 (H,)."""
    additions: dict[int, torch.Tensor] = {}
    for name, strength in strengths.items():
        length = _finite(f"{name}: got the strength", strength)
        pole = pole_of(name)
        addition = length * model.residual_direction(pole)
        additions[pole.layer] = additions.get(pole.layer, torch.zeros_like(addition)) + addition
    return additions


def _adding(addition: torch.Tensor) -> Any:
    """A forward hook that adds to the states of a layer, which come as a tuple up to 4.x."""

    def add(_: Any, __: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output  # (B, T, H)
        changed = (states.float() + addition).to(states.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return add


@contextmanager
def damaging(model: Model, ids: Iterable[str], times: float = 0.0) -> Iterator[None]:
    """Within the context the vectors write `times` what they do; 0 removes them.

    Raises:
        RequestError: a vector is not the model's, or `times` is no number.
    """
    with damage.damaging(model, _removals(model, ids, times)):
        yield


@set_aside
def _removals(model: Model, ids: Iterable[str], times: float) -> dict[int, list[damage.Damage]]:
    """The damages of each layer."""
    if isinstance(ids, str):
        raise RequestError(f"damaging: got the text {ids!r}, expected a list such as [{ids!r}]")
    factor = _finite("damaging: got the factor", times)
    by_layer: dict[int, list[damage.Damage]] = {}
    neurons = dict[tuple[int, int], None]()  # each once, whichever of its poles are named
    for pole in map(pole_of, ids):
        model.check_place(pole)
        neurons[pole.layer, pole.neuron] = None
    for layer, neuron in neurons:
        removal = damage.removal(model, layer, neuron, factor)
        by_layer.setdefault(layer, []).append(removal)
    return by_layer


def _finite(got: str, given: Any) -> float:
    """A number that float32 can hold.

    Raises:
        RequestError: it is none; the message begins with `got`.
    """
    try:
        number = math.nan if isinstance(given, str) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise RequestError(f"{got} {given!r:.40}, expected a finite number")
    return number
