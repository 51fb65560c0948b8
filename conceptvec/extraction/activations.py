"""Activation statistics over a corpus of any length: one pass, memory bounded by the neurons.

The activation of neuron j is ``a_j = act(gate_j) · up_j``, the input of ``down_proj``; the
beginning-of-sequence position is left out (its activations are an outlier of every model). A
neuron **fires** at a position where |a_j| is at least an eighth of its largest |a_j| rounded down
to a power of two, so the rate needs one pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from conceptvec.errors import RequestError, RunError
from conceptvec.files import Arrays
from conceptvec.model.network import Model, check_finite
from conceptvec.text import plain

MAX_TOKENS = 128  # a passage is cut here; a prompt may be no longer
# Tokens of a forward pass; the statistics hold several copies.
PASS = {"cpu": 4096, "mps": 1024, "cuda": 1024}
WINDOW = 4096  # passages that are sorted by length at a time
CONTEXTS = 5  # strongest contexts kept per neuron
BINS = 32  # powers of two of |a|, from 2^-20 up
LOWEST = -20
FIRES_BELOW_MAX = 3  # powers of two
STATISTICS = ("mean", "max_abs", "firing_rate", "positive_share", "context_values", "context_at")


@dataclass
class Activations:
    """Statistics per layer, dicts layer → numpy arrays over all its neurons (I,)."""

    mean: dict[int, np.ndarray]
    max_abs: dict[int, np.ndarray]
    firing_rate: dict[int, np.ndarray]
    positive_share: dict[int, np.ndarray]
    context_values: dict[int, np.ndarray]  # (I, CONTEXTS), signed, strongest first
    context_at: dict[int, np.ndarray]  # (I, CONTEXTS, 2): passage and position
    passages: list[str]
    positions: int

    def arrays(self) -> Arrays:
        """The statistics as the arrays of one part."""
        out: Arrays = {"about_json": {"passages": self.passages, "positions": self.positions}}
        for name in STATISTICS:
            out |= {f"{name}.{layer}": values for layer, values in getattr(self, name).items()}
        return out

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Activations:
        """The inverse of `arrays`."""
        columns: dict[str, dict[int, np.ndarray]] = {name: {} for name in STATISTICS}
        for key, values in arrays.items():
            name, _, layer = key.partition(".")
            if name in columns:
                columns[name][int(layer)] = values
        return cls(**columns, **arrays["about_json"])

    def firing_level(self, layer: int) -> np.ndarray:
        """The smallest |a| at which each neuron of the layer counts as firing: float32 (I,)."""
        _, exponent = np.frexp(self.max_abs[layer])
        bounded = np.clip(exponent - 1, LOWEST, LOWEST + BINS - 1)
        return np.ldexp(1.0, bounded - FIRES_BELOW_MAX).astype(np.float32)

    def of(self, layer: int, neuron: int, model: Model) -> dict[str, Any]:
        """One neuron's statistics as plain numbers, with its strongest contexts as text.

        The token at which it fires stands between » and «.
        """
        values = self.context_values[layer][neuron]
        places = self.context_at[layer][neuron]
        contexts = []
        for value, (passage, at) in zip(values, places, strict=True):
            if value and passage >= 0:
                contexts.append([_context(model, self.passages[passage], int(at)), plain(value)])
        return {
            "mean": plain(self.mean[layer][neuron]),
            "max_abs": plain(self.max_abs[layer][neuron]),
            "firing_rate": plain(self.firing_rate[layer][neuron]),
            "positive_share": plain(self.positive_share[layer][neuron]),
            "contexts": contexts,
        }


def _context(model: Model, passage: str, at: int, width: int = 12) -> str:
    ids = model.encode(passage)[:MAX_TOKENS]
    parts = (ids[max(0, at - width) : at], ids[at : at + 1], ids[at + 1 : at + 1 + width])
    texts = [model.tokenizer.decode(part, skip_special_tokens=True) for part in parts]
    return f"{texts[0]}»{texts[1]}«{texts[2]}".strip()


def read_corpus(path: str | None) -> Iterator[str]:
    """The passages, one per line.

    Raises:
        RequestError: the file is not readable, or holds no text.
    """
    source = resources.files("conceptvec") / "data" / "corpus.txt" if path is None else Path(path)
    empty = True
    try:
        with source.open("r", encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    empty = False
                    yield line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--corpus: {path} is not readable UTF-8 text ({error})") from None
    if empty:
        raise RequestError(f"--corpus: {path} holds no text; expected one passage per line")


@contextmanager
def capturing(
    model: Model, layers: Sequence[int], use: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Within the context every forward pass hands `use` a layer's number and MLP activations.

    These have the shape (B, T, I).
    """
    handles = []
    for layer in layers:
        module = model.layers[layer].mlp.down_proj
        handle = module.register_forward_pre_hook(lambda _, args, layer=layer: use(layer, args[0]))
        handles.append(handle)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_batches(
    model: Model, texts: Sequence[str], size: int
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Texts of equal token length together, so that nothing is padded.

    Gives the indices of the texts and their ids (B, T), at most about `size` of them.
    """
    ids = [model.encode(text)[:MAX_TOKENS] for text in texts]
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    batch: list[int] = []
    for i in order:
        is_full = len(batch) * len(ids[i]) >= size
        if batch and (is_full or len(ids[i]) != len(ids[batch[0]])):
            yield batch, torch.tensor([ids[b] for b in batch], device=model.device)
            batch = []
        batch.append(i)
    if batch:
        yield batch, torch.tensor([ids[b] for b in batch], device=model.device)


@torch.inference_mode()
def corpus_activations(
    model: Model, passages: Callable[[], Iterable[str]], layers: Sequence[int]
) -> Activations:
    """Statistics of the layers' neurons over a text, which is read twice.

    Args:
        model: the model.
        passages: gives the text from its beginning.
        layers: whose neurons are measured.

    Raises:
        RunError: a forward pass gives NaN or infinity.
    """
    gather = {layer: _Gather(model.intermediate_size, model.device) for layer in layers}
    rows: list[int] = []  # the passages of the batch

    def use(layer: int, a: torch.Tensor) -> None:
        check_finite(a, layer)
        gather[layer].add(a[:, 1:].float(), rows)

    stream, start = iter(passages()), 0
    with tqdm(desc="Stage 1: corpus", unit="passage", leave=False) as bar:
        while window := list(islice(stream, WINDOW)):
            for members, ids in token_batches(model, window, PASS[model.device.type]):
                rows[:] = [start + i for i in members]
                if ids.shape[1] > 1:
                    is_first = not gather[layers[0]].n
                    checking = _checking(model, layers) if is_first else nullcontext()
                    with capturing(model, layers, use), checking:
                        model.decoder(input_ids=ids, use_cache=False)
                bar.update(len(members))
            start += len(window)

    parts = {layer: running.result() for layer, running in gather.items()}
    columns = {
        name: {layer: part[i] for layer, part in parts.items()} for i, name in enumerate(STATISTICS)
    }
    wanted = _renumber(list(columns["context_at"].values()))
    texts = [text for i, text in enumerate(passages()) if i in wanted]
    return Activations(**columns, passages=texts, positions=gather[layers[0]].n)


def _renumber(context_at: Sequence[np.ndarray]) -> set[int]:
    """Number the passages that are some neuron's context anew, in place.

    Gives their old numbers.
    """
    kept = np.unique(np.concatenate([at[..., 0].ravel() for at in context_at]))
    kept = kept[kept >= 0]
    for at in context_at:
        at[..., 0] = np.where(at[..., 0] >= 0, np.searchsorted(kept, at[..., 0]), -1)
    return set(kept.tolist())


@contextmanager
def _checking(model: Model, layers: Sequence[int]) -> Iterator[None]:
    """Within the context a forward pass checks that Σ_j a_j d_j is the MLP output.

    It does so at each last position.
    """
    last: dict[int, torch.Tensor] = {}

    def keep(layer: int, a: torch.Tensor) -> None:
        last[layer] = a[:, -1]

    def check(layer: int, output: torch.Tensor) -> None:
        expected = last[layer] @ model.value_vectors(layer)
        # Relative to Σ_j |a_j| |d_j|, which rounding is proportional to, whatever cancels.
        size = last[layer].abs() @ model.value_vectors(layer).abs()
        distance = (output[:, -1] - expected).float().norm()
        error = distance / size.float().norm().clamp(min=1e-30)
        if not error <= 64 * torch.finfo(model.dtype).eps:
            raise RunError(
                f"the MLP output of layer {layer} is not the sum of its value vectors (relative "
                f"error {error:.1e}): this model writes it in another way, or the device "
                "computes wrongly; try --device cpu"
            )

    handles = []
    for layer in layers:
        handle = model.layers[layer].mlp.register_forward_hook(
            lambda _, args, out, layer=layer: check(layer, out)
        )
        handles.append(handle)
    try:
        with capturing(model, layers, keep):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Gather:
    """Running statistics of one layer."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.n = 0
        # On the CPU: a float32 sum stops growing, and MPS has no other.
        self.sum = torch.zeros(size, dtype=torch.float64)
        self.positive = torch.zeros(size, dtype=torch.int64)
        self.largest = torch.zeros(size, device=device)
        self.histogram = torch.zeros(size, BINS, dtype=torch.int32, device=device)
        self.values = torch.zeros(size, CONTEXTS, device=device)
        self.at = torch.full((size, CONTEXTS, 2), -1, dtype=torch.int32, device=device)

    def add(self, a: torch.Tensor, rows: list[int]) -> None:
        """Take in activations (B, T, I) of the passages `rows`."""
        flat = a.flatten(0, 1)  # (B·T, I)
        self.n += len(flat)
        self.sum += flat.sum(0).cpu()
        self.positive += (flat > 0).sum(0).cpu()
        self.largest = torch.maximum(self.largest, flat.abs().amax(0))
        # floor(log2 |a|) from the bits of the float32, on any device.
        exponent = (flat.contiguous().view(torch.int32) >> 23 & 0xFF) - 127
        bins = exponent.clamp(LOWEST, LOWEST + BINS - 1) - LOWEST
        counted = (flat.T != 0).to(torch.int32).contiguous()
        self.histogram.scatter_add_(1, bins.T.long().contiguous(), counted)
        self._keep_contexts(a, rows)

    def _keep_contexts(self, a: torch.Tensor, rows: list[int]) -> None:
        """The strongest position of every passage, then the strongest passages."""
        _, position = a.abs().max(1)  # (B, I)
        signed = a.gather(1, position[:, None]).squeeze(1)
        numbers = torch.tensor(rows, dtype=torch.int32, device=a.device)
        passage = numbers[:, None].expand_as(position)
        at = torch.stack([passage, position.int() + 1], dim=2)  # (B, I, 2)
        values = torch.cat([self.values, signed.T], 1)  # (I, CONTEXTS + B)
        order = values.abs().argsort(dim=1, descending=True, stable=True)
        best = order[:, :CONTEXTS]
        both = torch.cat([self.at, at.transpose(0, 1)], 1)
        self.at = both.gather(1, best[:, :, None].expand(-1, -1, 2))
        self.values = values.gather(1, best)

    def result(self) -> tuple[np.ndarray, ...]:
        """The statistics in the order of `STATISTICS`."""
        _, top = torch.frexp(self.largest.cpu())
        largest_bin = (top - 1).clamp(LOWEST, LOWEST + BINS - 1) - LOWEST
        level = (largest_bin - FIRES_BELOW_MAX).clamp(min=0)
        fires = (torch.arange(BINS)[None] >= level[:, None]) * self.histogram.cpu()
        n = max(self.n, 1)
        tensors = (
            (self.sum / n).float(),
            self.largest,
            fires.sum(1) / n,
            self.positive / n,
            self.values,
            self.at,
        )
        return tuple(tensor.cpu().numpy() for tensor in tensors)
