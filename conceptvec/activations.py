"""Activation statistics over a corpus: one streaming pass, memory bounded by the number of neurons.

The activation of neuron j is ``a_j = act(gate_j) · up_j``, the input of ``down_proj``; the beginning-of-sequence
position is left out (its activations are an outlier of every model). A neuron **fires** at a position where |a_j| is
at least an eighth of its largest |a_j| rounded down to a power of two, so the rate needs one pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from conceptvec.concepts import load_concepts
from conceptvec.config import Config
from conceptvec.errors import RequestError
from conceptvec.store import Arrays, plain

if TYPE_CHECKING:
    from conceptvec.models import Model

MAX_TOKENS = 128  # a passage is cut here
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
        """The smallest |a| at which each neuron of the layer counts as firing: (I,)."""
        _, exponent = np.frexp(self.max_abs[layer])
        return np.ldexp(1.0, np.clip(exponent - 1, LOWEST, LOWEST + BINS - 1) - FIRES_BELOW_MAX).astype(np.float32)

    def of(self, layer: int, neuron: int, model: Model) -> dict[str, Any]:
        """One neuron's statistics as plain numbers, with the strongest contexts as text (» « around the token)."""
        contexts = []
        for value, (passage, at) in zip(
            self.context_values[layer][neuron], self.context_at[layer][neuron], strict=True
        ):
            if value and passage >= 0:
                contexts.append([_context(model, self.passages[passage], int(at)), plain(value)])
        return {
            "mean": plain(self.mean[layer][neuron]), "max_abs": plain(self.max_abs[layer][neuron]),
            "firing_rate": plain(self.firing_rate[layer][neuron]),
            "positive_share": plain(self.positive_share[layer][neuron]), "contexts": contexts,
        }  # fmt: skip


def _context(model: Model, passage: str, at: int, width: int = 12) -> str:
    ids = model.encode(passage)[:MAX_TOKENS]
    show = lambda part: model.tokenizer.decode(part, skip_special_tokens=True)
    return f"{show(ids[max(0, at - width) : at])}»{show(ids[at : at + 1])}«{show(ids[at + 1 : at + 1 + width])}".strip()


def read_corpus(path: str | None) -> list[str]:
    """The passages, one per line."""
    if path is None:
        text = (resources.files("conceptvec") / "data" / "corpus.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"--corpus: {path} is not readable UTF-8 text ({error})") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise RequestError(f"--corpus: {path} holds no text; expected one passage per line")
    return lines


@contextmanager
def capturing(model: Model, layers: Sequence[int], use: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Within the context every forward pass hands `use` a layer's number and its MLP activations (B, T, I)."""
    handles = [
        model.layers[layer].mlp.down_proj.register_forward_pre_hook(lambda _, args, layer=layer: use(layer, args[0]))
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_batches(model: Model, texts: Sequence[str], size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Texts of equal token length together, so that nothing is padded: (indices of the texts, ids (B, T))."""
    ids = [model.encode(t)[:MAX_TOKENS] for t in texts]
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    batch: list[int] = []
    for i in order:
        if batch and (len(ids[i]) != len(ids[batch[0]]) or len(batch) * len(ids[i]) >= size):
            yield batch, torch.tensor([ids[b] for b in batch], device=model.device)
            batch = []
        batch.append(i)
    if batch:
        yield batch, torch.tensor([ids[b] for b in batch], device=model.device)


@torch.inference_mode()
def corpus_activations(model: Model, config: Config, layers: Sequence[int]) -> Activations:
    """One pass over the corpus and the concepts' prompts (with their answers).

    Raises:
        RunError: a forward pass gives NaN or infinity.
    """
    from conceptvec.models import check_finite

    concepts = load_concepts(config.concepts)
    prompts = [p.prompt + p.answer for group in concepts.prompts().values() for p in group]
    passages = read_corpus(config.corpus) + prompts
    gather = {layer: _Gather(model.intermediate_size, model.device) for layer in layers}
    rows: list[int] = []

    def use(layer: int, a: torch.Tensor) -> None:
        check_finite(a, layer)
        gather[layer].add(a[:, 1:].float(), rows)

    with capturing(model, layers, use):
        batches = list(token_batches(model, passages, size=4096))
        for passages_now, ids in tqdm(batches, desc="Stage 1: corpus", unit="batch", leave=False):
            rows[:] = passages_now
            if ids.shape[1] > 1:
                model.decoder(input_ids=ids, use_cache=False)
    parts = {layer: g.result() for layer, g in gather.items()}
    columns = {name: {n: part[i] for n, part in parts.items()} for i, name in enumerate(STATISTICS)}
    return Activations(**columns, passages=passages, positions=next(iter(gather.values())).n)


class _Gather:
    """Running statistics of one layer."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.n = 0
        self.sum = torch.zeros(size, device=device)
        self.positive = torch.zeros(size, device=device)
        self.largest = torch.zeros(size, device=device)
        self.histogram = torch.zeros(size, BINS, dtype=torch.int32, device=device)
        self.values = torch.zeros(size, CONTEXTS, device=device)
        self.at = torch.full((size, CONTEXTS, 2), -1, dtype=torch.int32, device=device)

    def add(self, a: torch.Tensor, rows: list[int]) -> None:
        flat = a.flatten(0, 1)
        self.n += len(flat)
        self.sum += flat.sum(0)
        self.positive += (flat > 0).sum(0)
        self.largest = torch.maximum(self.largest, flat.abs().amax(0))
        exponent = torch.frexp(flat.abs().cpu()).exponent.to(flat.device) - 1
        bins = (exponent.clamp(LOWEST, LOWEST + BINS - 1) - LOWEST).T.long()
        self.histogram.scatter_add_(1, bins, (flat.T != 0).to(torch.int32))
        # The strongest position of every passage, then the strongest passages (one context per passage).
        strength, position = a.abs().max(1)
        signed = a.gather(1, position[:, None]).squeeze(1)
        passage = torch.tensor(rows, dtype=torch.int32, device=a.device)[:, None].expand_as(position)
        at = torch.stack([passage, position.int() + 1], dim=2)
        values = torch.cat([self.values, signed.T], 1)
        best = values.abs().argsort(dim=1, descending=True, stable=True)[:, :CONTEXTS]
        self.at = torch.cat([self.at, at.transpose(0, 1)], 1).gather(1, best[:, :, None].expand(-1, -1, 2))
        self.values = values.gather(1, best)

    def result(self) -> tuple[np.ndarray, ...]:
        _, top = torch.frexp(self.largest.cpu())
        level = ((top - 1).clamp(LOWEST, LOWEST + BINS - 1) - LOWEST - FIRES_BELOW_MAX).clamp(min=0)
        fires = (torch.arange(BINS)[None] >= level[:, None]) * self.histogram.cpu()
        n = max(self.n, 1)
        tensors = (self.sum / n, self.largest, fires.sum(1) / n, self.positive / n, self.values, self.at)
        return tuple(t.cpu().numpy() for t in tensors)
