"""The clean pass of Stage 3: activations of some neurons at every token of a text, and log p.

Memory: 5 bytes per neuron and token, and one state (H,) per token in the model's precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from conceptvec.extraction.activations import capturing, capturing_gates
from conceptvec.model.memory import Batch
from conceptvec.model.network import check_finite

if TYPE_CHECKING:
    from conceptvec.effects.passages import Passages
    from conceptvec.model.network import Model

TOKENS = {"cpu": 2048, "mps": 4096, "cuda": 16384}  # of a forward pass, padding included
LOGIT_ROWS = 64  # positions unembedded at a time


class CleanPass:
    """What the undamaged model does on a text.

    Args:
        model: the model; never written.
        passages: the text.
        neurons: layer → neurons whose activations are kept.

    Attributes:
        activations: layer → float32 (neurons of the layer, tokens of the text).
        gates: layer → bool of the same shape, whether the gate is positive.
    """

    def __init__(
        self, model: Model, passages: Passages, neurons: Mapping[int, Sequence[int]]
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
        self._run()

    def activation(self, layer: int, neuron: int) -> np.ndarray:
        """One neuron's activations: float32 (tokens,)."""
        return self.activations[layer][self.neurons[layer].index(neuron)]

    def gate_is_positive(self, layer: int, neuron: int) -> np.ndarray:
        """Where one neuron's gate is positive: bool (tokens,)."""
        return self.gates[layer][self.neurons[layer].index(neuron)]

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
            logits = self.model.logits(self._states[batch].to(self.model.device))
            tokens = torch.as_tensor(self.passages.ids[batch + 1], dtype=torch.long)
            of_word = logits.gather(1, tokens.to(logits.device)[:, None])[:, 0]
            self._log_p[batch] = (of_word - logits.logsumexp(1)).cpu().double().numpy()
        return self._log_p[positions]

    @torch.inference_mode()
    def _run(self) -> None:
        """One forward pass over all passages, those of like length together."""
        device = self.model.device
        lengths, starts = self.passages.lengths, self.passages.starts
        order = np.argsort(lengths, kind="stable")
        longest = int(lengths.max())
        batch = Batch(max(1, TOKENS[device.type] // longest), "passages of a forward pass")
        caught: dict[int, torch.Tensor] = {}
        gates: dict[int, torch.Tensor] = {}
        columns = {
            layer: torch.tensor(numbers, device=device) for layer, numbers in self.neurons.items()
        }

        def use(layer: int, a: torch.Tensor) -> None:
            caught[layer] = a[..., columns[layer]].float()

        def use_gates(layer: int, gate: torch.Tensor) -> None:
            gates[layer] = gate[..., columns[layer]] > 0

        def forward(rows: slice) -> None:
            members = order[rows]
            width = int(lengths[members].max())
            padded = np.zeros((len(members), width), np.int64)
            for row, member in enumerate(members):
                padded[row, : lengths[member]] = self.passages.passage(int(member))
            ids = torch.from_numpy(padded).to(device)
            layers = list(self.neurons)
            with (
                capturing(self.model, layers, use),
                capturing_gates(self.model, layers, use_gates),
            ):
                hidden = self._before_last_norm(ids).to("cpu")
            check_finite(hidden, self.model.n_layers - 1)
            for row, member in enumerate(members):
                span = slice(int(starts[member]), int(starts[member] + lengths[member]))
                self._states[span] = hidden[row, : lengths[member]]
                for layer, a in caught.items():
                    values = a[row, : lengths[member]].T.cpu().numpy()  # (n, T)
                    self.activations[layer][:, span] = values
                    signs = gates[layer][row, : lengths[member]].T.cpu().numpy()  # (n, T)
                    self.gates[layer][:, span] = signs
            bar.update(len(members))

        with tqdm(total=len(order), desc="Stage 3: clean pass", unit="passage", leave=False) as bar:
            batch.map(len(order), forward)

    def _before_last_norm(self, ids: torch.Tensor) -> torch.Tensor:
        """The residual stream before the last norm (B, T, H)."""
        last: list[torch.Tensor] = []
        handle = self.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
        try:
            self.model.decoder(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        return last[0]
