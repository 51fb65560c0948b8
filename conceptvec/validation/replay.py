"""Running some layers of a decoder on states, without a forward pass of the whole.

transformers' layers are called as the decoder itself calls them: the arguments that it passes to
each are caught once for a width of text, at one row, and used again for any number of rows. They
are the same for every row because texts are padded on the right and nothing is masked: under causal
attention what follows a position cannot reach it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from conceptvec.model.network import check_finite

if TYPE_CHECKING:
    from conceptvec.model.network import Model

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Enough(Exception):
    """Ends a forward pass whose first part was all that was wanted."""


class Replay:
    """Runs the decoder in pieces.

    Args:
        model: the model; never written.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._arguments: dict[int, list[Arguments]] = {}  # by width

    def prepare(self, width: int) -> list[Arguments]:
        """What the decoder passes to each layer besides the states, for texts of `width` tokens."""
        if width in self._arguments:
            return self._arguments[width]
        caught: list[Arguments] = []

        def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            caught.append((args[1:], rest))

        handles = [
            layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in self.model.layers
        ]
        ids = torch.zeros((1, width), dtype=torch.long, device=self.model.device)
        try:
            self.model.decoder(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        self._arguments[width] = caught
        return caught

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """What enters the first layer for token ids (B, T): (B, T, H)."""
        entering: list[torch.Tensor] = []

        def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering.append(args[0] if args else kwargs["hidden_states"])
            raise _Enough

        handle = self.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model.decoder(input_ids=ids, use_cache=False)
        except _Enough:
            pass
        finally:
            handle.remove()
        return entering[0]

    def run(
        self, states: torch.Tensor, first: int, last: int | None = None, check: bool = False
    ) -> torch.Tensor:
        """Run the layers from `first` to before `last` (default: all that follow).

        Args:
            states: what enters the first of them (B, T, H).
            first: number of a layer.
            last: number of a layer.
            check: raise where NaN or infinity comes out of a layer.

        Returns:
            what leaves the last of them (B, T, H).
        """
        arguments = self.prepare(states.shape[1])
        stop = self.model.n_layers if last is None else last
        for layer in range(first, stop):
            args, kwargs = arguments[layer]
            output = self.model.layers[layer](states, *args, **kwargs)
            states = output[0] if isinstance(output, tuple) else output  # a tuple in 4.x
            if check:
                check_finite(states, layer)
        return states
