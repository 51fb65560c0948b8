"""The slow and exact way, which shares nothing with the fast paths: float64 on the CPU.

Devices have returned wrong products without an error, so a sample of every run's own rows is
computed a second time: readouts against the whole vocabulary (`exact_readouts`), and an ordinary
forward pass by transformers itself, layer by layer, with a really edited weight column
(`reference`). RMSNorm and softmax of transformers compute in float32 even then. `agreement` says
how far the run's own figures are from it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from conceptvec.errors import RunError
from conceptvec.model.network import Model
from conceptvec.model.weights import Weights
from conceptvec.text import plain

ROWS = 2**14  # of the unembedding in float64 at a time: the whole takes gigabytes


@dataclass(frozen=True)
class Edit:
    """A change of one weight column, for a case of `reference`.

    Attributes:
        layer: zero-based.
        neuron: the column of the layer's ``down_proj``.
        change: what is added to the column, (hidden_size,).
    """

    layer: int
    neuron: int
    change: torch.Tensor


def exact_readouts(model: Weights, states: torch.Tensor) -> torch.Tensor:
    """``states @ unembedding.T`` in float64 on the CPU, for float64 states (N, H): (N, V)."""
    chunks = model.unembedding.split(ROWS)
    return torch.cat([states @ rows.cpu().double().T for rows in chunks], 1)


def agreement(
    what: str, rows: int, difference: float, allowed: float, unit: str, device: torch.device
) -> dict[str, Any]:
    """What the results say of a sample that was computed a second time.

    Args:
        what: was compared, as in "the projection".
        rows: how many.
        difference: the largest that was seen.
        allowed: by the precision of the arithmetic.
        unit: of both.
        device: the one that is checked.

    Raises:
        RunError: the difference is larger than allowed.
    """
    if not difference <= allowed:  # NaN fails too
        raise RunError(
            f"{device} computes wrongly: the {what} of a sample differs by {difference:.3g} "
            f"({unit}) from the CPU, allowed are {allowed:g}. Nothing that this device computed "
            "can be trusted: run `conceptvec selfcheck --device …` to see which operation fails, "
            "then use --device cpu or another torch."
        )
    return {
        "rows": rows,
        "largest_difference": plain(difference),
        "allowed": allowed,
        "unit": unit,
    }


@torch.inference_mode()
def reference(
    model: Model, texts: Sequence[tuple[list[int], int]], edits: Sequence[Edit]
) -> np.ndarray:
    """Mean log-probability of the texts' ends by an ordinary forward pass: (edits, texts).

    Args:
        model: the model; its layers are copied one at a time.
        texts: token ids of equal number, and where the end starts that counts.
        edits: the weights' changes, each measured on all texts.
    """
    ids = torch.tensor([row for _ in edits for row, _ in texts])  # (E·P, T), edits outermost
    used, small_ids = ids.unique(return_inverse=True)
    decoder = _decoder_on_cpu(model, used, edits, len(texts))
    hidden = decoder(input_ids=small_ids, use_cache=False).last_hidden_state  # (E·P, T, H), normed

    # The states before the tokens that count, as rows of one matrix.
    places = [
        (row, position)
        for row, (tokens, start) in enumerate(list(texts) * len(edits))
        for position in range(start, len(tokens))
    ]
    row, position = torch.tensor(places).T
    logits = exact_readouts(model, hidden[row, position - 1])  # (N, V)
    if model.softcap:
        logits = torch.tanh(logits / model.softcap) * model.softcap
    targets = ids[row, position][:, None]
    values = logits.log_softmax(1).gather(1, targets)[:, 0].numpy()

    mean = np.bincount(row, values) / np.bincount(row)
    return mean.reshape(len(edits), len(texts))


def _decoder_on_cpu(model: Model, used: torch.Tensor, edits: Sequence[Edit], texts: int) -> Any:
    """The decoder in float64 over the few tokens that are `used`, whose layers copy themselves."""
    embedding = model.decoder.embed_tokens
    embed = copy.copy(embedding)  # the same module over a few rows
    rows = embedding.weight.detach()[used.to(model.device)]
    weight = torch.nn.Parameter(rows.cpu().double(), requires_grad=False)
    embed._parameters = {"weight": weight}
    embed._buffers = {
        name: buffer.cpu().to(model.dtype).double()
        for name, buffer in embed._buffers.items()
        if buffer is not None
    }
    embed.padding_idx = None
    layers = torch.nn.ModuleList()
    for number, block in enumerate(model.layers):
        changes = [
            _RowsEdit(case * texts, texts, edit.neuron, edit.change.cpu().double())
            for case, edit in enumerate(edits)
            if edit.layer == number
        ]
        layers.append(_OnCPU(block, changes))
    memo: dict[int, Any] = {id(embedding): embed, id(model.layers): layers}
    return copy.deepcopy(model.decoder, memo).cpu().double()  # in this order: MPS has no float64


@dataclass(frozen=True)
class _RowsEdit:
    """An edit of a column that counts for `number` rows of the batch from `start` on."""

    start: int
    number: int
    neuron: int
    change: torch.Tensor


class _OnCPU(torch.nn.Module):
    """A layer that copies itself to the CPU in float64 when it is called.

    For the rows of an edit it runs again with the column changed.
    """

    def __init__(self, block: torch.nn.Module, edits: list[_RowsEdit]) -> None:
        super().__init__()
        self._source = (block,)  # in a tuple, so that it is no submodule
        self._edits = edits

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_source"][0], name)

    def __deepcopy__(self, memo: dict) -> _OnCPU:
        return self

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own; its output is a tuple or a tensor, by the version of transformers."""
        block: Any = copy.deepcopy(self._source[0]).cpu().double()
        weight = block.mlp.down_proj.weight
        out = block(hidden, *args, **kwargs)
        for edit in self._edits:
            kept = weight[:, edit.neuron].clone()
            weight[:, edit.neuron] += edit.change
            edited = block(hidden, *args, **kwargs)
            rows = slice(edit.start, edit.start + edit.number)
            _states(out)[rows] = _states(edited)[rows]
            weight[:, edit.neuron] = kept
        return out


def _states(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
