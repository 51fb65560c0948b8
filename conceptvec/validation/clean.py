"""The clean pass of Stage 3: activations of some neurons at every token of a text, and log p.

Memory: 5 bytes per neuron and token, and one state (H,) per token in the model's precision; where
several processes share the pass, for a moment the states of a process's share once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from conceptvec.effects.gradients import padded
from conceptvec.extraction.activations import capturing, capturing_gates
from conceptvec.model.memory import Batch
from conceptvec.model.network import check_finite
from conceptvec.runfolder import Parts, shard

if TYPE_CHECKING:
    from conceptvec.effects.passages import Passages
    from conceptvec.model.network import Model

TOKENS = {"cpu": 2048, "mps": 4096, "cuda": 16384}  # of a forward pass, padding included
LOGIT_ROWS = 64  # positions unembedded at a time


class CleanPass:
    """What the undamaged model does on a text.

    The processes of a run make it together: each reads its share of the passages and gets what the
    others have read.

    Args:
        model: the model; never written.
        passages: the text.
        neurons: layer → neurons whose activations are kept.
        parts: the run's processes; alone where not given.

    Attributes:
        activations: layer → float32 (neurons of the layer, tokens of the text).
        gates: layer → bool of the same shape, whether the gate is positive.
    """

    def __init__(
        self,
        model: Model,
        passages: Passages,
        neurons: Mapping[int, Sequence[int]],
        parts: Parts | None = None,
    ) -> None:
        self.model, self.passages = model, passages
        self.neurons = {layer: list(numbers) for layer, numbers in neurons.items() if len(numbers)}
        size = len(passages.ids)
        self.activations = {
            layer: np.zeros((len(numbers), size), np.float32)
            for layer, numbers in self.neurons.items()
        }
        self.gates = {
            layer: np.zeros((len(numbers), size), bool) for layer, numbers in self.neurons.items()
        }
        self._states = torch.zeros((size, model.hidden_size), dtype=model.dtype)  # on the CPU
        self._log_p = np.full(size, np.nan)
        self._run(parts or Parts())

    def activation(self, layer: int, neuron: int) -> np.ndarray:
        """One neuron's activations: float32 (tokens,)."""
        return self.activations[layer][self.neurons[layer].index(neuron)]

    def gate_is_positive(self, layer: int, neuron: int) -> np.ndarray:
        """Where one neuron's gate is positive: bool (tokens,)."""
        return self.gates[layer][self.neurons[layer].index(neuron)]

    def states(self, positions: np.ndarray) -> torch.Tensor:
        """The residual stream before the last norm at some positions: (n, H), on the CPU."""
        return self._states[positions]

    def know_only(self, positions: np.ndarray, log_p: np.ndarray) -> None:
        """Take over log-probabilities of an earlier pass, and forget those computed here."""
        self._log_p[:] = np.nan
        self._log_p[positions] = log_p

    @torch.inference_mode()
    def log_p(self, positions: np.ndarray) -> np.ndarray:
        """Log-probability of the token after each position, nats: float64 (n,)."""
        todo = np.unique(positions[np.isnan(self._log_p[positions])])
        for start in range(0, len(todo), LOGIT_ROWS):
            batch = todo[start : start + LOGIT_ROWS]
            logits = self.model.logits(self.states(batch).to(self.model.device))
            tokens = torch.as_tensor(self.passages.ids[batch + 1], dtype=torch.long)
            of_word = logits.gather(1, tokens.to(logits.device)[:, None])[:, 0]
            self._log_p[batch] = (of_word - logits.logsumexp(1)).cpu().double().numpy()
        return self._log_p[positions]

    def _run(self, parts: Parts) -> None:
        """One forward pass over all passages, those of like length together."""
        lengths = self.passages.lengths
        order = np.argsort(lengths, kind="stable")
        together = max(1, TOKENS[self.model.device.type] // int(lengths.max()))
        batches = [order[start : start + together] for start in range(0, len(order), together)]

        # Every process reads a share of the batches …
        shares = [shard(batches, rank, parts.world) for rank in range(parts.world)]
        read_here = shares[parts.rank]
        batch = Batch(together, "passages of a forward pass")
        silent = parts.rank > 0
        desc = "Stage 3: clean pass"
        with tqdm(
            total=len(read_here), desc=desc, unit="batch", leave=False, disable=silent
        ) as bar:
            for members in read_here:
                batch.map(len(members), lambda rows, members=members: self._read(members[rows]))
                bar.update(1)

        # … and takes over what the others have read.
        if parts.world > 1:
            for rank, share in enumerate(shares):
                self._take_over(self._places(np.concatenate([order[:0], *share])), rank, parts)

    def _places(self, members: np.ndarray) -> np.ndarray:
        """The places of some passages' tokens in the text, passage after passage: int64 (n,)."""
        starts, lengths = self.passages.starts[members], self.passages.lengths[members]
        begins = np.cumsum(lengths) - lengths
        return np.repeat(starts - begins, lengths) + np.arange(lengths.sum())

    def _take_over(self, places: np.ndarray, rank: int, parts: Parts) -> None:
        """Fill in what one of the processes has read."""
        states = self._states.view(torch.uint8).numpy()  # numpy has no bfloat16
        states[places] = parts.shared(states[places], rank)
        for layer in self.neurons:
            for kept in (self.activations[layer], self.gates[layer]):
                kept[:, places] = parts.shared(kept[:, places], rank)

    @torch.inference_mode()
    def _read(self, members: np.ndarray) -> None:
        """The forward pass of a batch of passages."""
        texts = [self.passages.passage(int(member)) for member in members]
        ids, lengths = padded(texts, self.model.device)
        inside = (torch.arange(ids.shape[1]) < lengths.cpu()[:, None]).numpy()  # (B, T)
        places = self._places(members)

        def use(layer: int, a: torch.Tensor) -> None:
            values = a[..., self.neurons[layer]].float().cpu().numpy()
            self.activations[layer][:, places] = values[inside].T

        def use_gates(layer: int, gate: torch.Tensor) -> None:
            signs = (gate[..., self.neurons[layer]] > 0).cpu().numpy()
            self.gates[layer][:, places] = signs[inside].T

        layers = list(self.neurons)
        with capturing(self.model, layers, use), capturing_gates(self.model, layers, use_gates):
            hidden = self._before_last_norm(ids).cpu()[torch.from_numpy(inside)]
        check_finite(hidden, self.model.n_layers - 1)
        self._states[places] = hidden

    def _before_last_norm(self, ids: torch.Tensor) -> torch.Tensor:
        """The residual stream before the last norm (B, T, H)."""
        last: list[torch.Tensor] = []
        handle = self.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
        try:
            self.model.decoder(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        return last[0]
