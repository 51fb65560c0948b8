"""The damage engine: what many damages cost on a list of texts, without computing anything twice.

1. Everything up to the damaged MLP is computed once for a layer (`Engine.state`).
2. The layers above are replayed on rows that each carry a text and a damage of their own.
3. Only the positions that predict an answer are unembedded, and only they pass the last MLP.

Memory, besides the model: two states (N, T, H) of all texts, four where the walk goes on from a
lower layer, and what `batch_size` rows need in one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from conceptvec.errors import RunError
from conceptvec.extraction.activations import capturing
from conceptvec.model.memory import Batch
from conceptvec.model.network import check_finite
from conceptvec.validation.damage import Damage
from conceptvec.validation.replay import Replay

if TYPE_CHECKING:
    from conceptvec.model.network import Model

LOGIT_ROWS = 64  # positions unembedded at a time
CPU_ROWS = 32  # more of them fall out of a core's cache: at 200 a damage takes 1.6 times as long


class Text(NamedTuple):
    """Token ids, and the index at which the answer starts; the answer goes on to the end."""

    ids: Sequence[int]
    start: int


@dataclass(frozen=True)
class State:
    """One layer's clean state on all texts.

    Attributes:
        layer: which.
        residual: the residual stream before the MLP (N, T, H).
        mlp: the MLP's output (N, T, H).
        neurons: neuron → row of `activations`.
        activations: float32 (n, N, T).
    """

    layer: int
    residual: torch.Tensor
    mlp: torch.Tensor
    neurons: Mapping[int, int]
    activations: torch.Tensor


class Answers(NamedTuple):
    """What the model says of the answers of R rows; all of shape (R,).

    Attributes:
        log_p: nats per answer token.
        divergence: from the reference at the first answer token, nats; NaN where not wanted.
        better: tokens with a larger logit than the answer's least likely one; 0 where not wanted.
    """

    log_p: np.ndarray
    divergence: np.ndarray
    better: np.ndarray


class Engine:
    """Measures answers' log-probabilities on a list of texts, clean and damaged.

    Args:
        model: the model; never written.
        texts: token ids with the start of the answer.
        batch_size: rows (one text with one damage each) per forward pass; on a CPU at most
            `CPU_ROWS`.
        replay: shared by engines of one model, which saves what it has caught.
    """

    def __init__(
        self, model: Model, texts: Sequence[Text], batch_size: int, replay: Replay | None = None
    ) -> None:
        self.model = model
        self.replay = replay or Replay(model)
        rows = min(batch_size, CPU_ROWS) if model.device.type == "cpu" else batch_size
        self.batch = Batch(rows, "rows of a forward pass")
        self.starts = np.array([text.start for text in texts], int)
        self.lengths = np.array([len(text.ids) for text in texts], int)
        self.width = int(self.lengths.max()) - 1  # an answer's last token is predicted, never read
        padded = [[*text.ids, *[0] * (self.width + 1 - len(text.ids))] for text in texts]
        self.ids = torch.tensor(padded, device=model.device)  # (N, width + 1)

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def state(self, layer: int, neurons: Sequence[int], below: State | None = None) -> State:
        """The clean state at one layer, for damages of the given neurons.

        Args:
            layer: which.
            neurons: of this layer.
            below: the state at a lower layer, from which the walk goes on; without it, it begins
                with the embeddings.
        """
        model, block = self.model, self.model.layers[layer]
        columns = torch.as_tensor(list(neurons), dtype=torch.long, device=model.device)
        caught: dict[str, torch.Tensor] = {}

        def forward(batch: np.ndarray) -> dict[str, torch.Tensor]:
            states, first = self._entering(below, batch)
            self.replay.run(states, first, layer + 1)
            return caught

        self._prepare()  # forward passes of their own, before the hooks
        norm = getattr(block, model.family.mlp_norm)
        handles = [
            norm.register_forward_pre_hook(lambda _, args: caught.update(residual=args[0])),
            block.mlp.register_forward_hook(lambda _, __, output: caught.update(mlp=output)),
        ]
        keep_activations = capturing(
            model, [layer], lambda _, a: caught.update(activations=a[..., columns].float())
        )
        try:
            with keep_activations:
                whole = self._on_all_texts(forward)
        finally:
            for handle in handles:
                handle.remove()
        for name in ("residual", "mlp"):
            check_finite(whole[name], layer)
        numbered = {int(neuron): row for row, neuron in enumerate(neurons)}
        activations = whole["activations"].permute(2, 0, 1).contiguous()
        return State(layer, whole["residual"], whole["mlp"], numbered, activations)

    @torch.inference_mode()
    def measure(
        self,
        state: State,
        damages: Sequence[Damage],
        pairs: np.ndarray,
        reference: Mapping[int, torch.Tensor] | None = None,
    ) -> Answers:
        """Answers under damage, many vectors and draws in one forward pass.

        Args:
            state: the clean state at the damaged layer.
            damages: damages of that layer.
            pairs: int (R, 2), index of the damage and of the text of every row.
            reference: clean log-probabilities (V,) of the first answer token, by text, where the
                Kullback-Leibler divergence from them is wanted.

        Returns:
            log-probabilities in nats per answer token, and divergences in nats (NaN: not wanted),
            float64 (R,).
        """
        out = _no_answers(len(pairs))
        if not len(pairs):
            return out
        directions = torch.stack([damage.direction for damage in damages])  # (D, H)
        scale = directions.new_tensor([damage.scale for damage in damages])
        shift = directions.new_tensor([damage.shift for damage in damages])
        rows = [state.neurons[damage.neuron] for damage in damages]
        row_of = torch.tensor(rows, device=directions.device)

        def forward(batch: np.ndarray) -> None:
            d, n = torch.as_tensor(pairs[batch].T, device=directions.device)
            width = int(self.lengths[pairs[batch, 1]].max()) - 1
            a = state.activations[row_of[d], n, :width]
            amount = scale[d, None] * a + shift[d, None]  # (R, T)
            # What the damage adds to the MLP's output, in float32 whatever the model's precision.
            clean = state.mlp[n, :width]
            mlp = torch.baddbmm(clean.float(), amount[:, :, None], directions[d][:, None])
            written = self.model.mlp_written(state.layer, mlp.to(clean.dtype))
            stream = state.residual[n, :width] + written
            answers = self._answers(stream, state.layer + 1, pairs[batch, 1], reference or {})
            out.log_p[batch], out.divergence[batch] = answers.log_p, answers.divergence

        self._map(pairs[:, 1], forward)
        return out

    @torch.inference_mode()
    def clean(self, texts: Sequence[int], below: State | None = None) -> Answers:
        """The answers without damage, in nats per token, and how many tokens are likelier.

        Args:
            texts: which.
            below: the state at a layer, from which the walk goes on; without it, it begins with the
                embeddings.
        """
        chosen, out = np.asarray(texts, int), _no_answers(len(texts))

        def forward(batch: np.ndarray) -> None:
            states, first = self._entering(below, chosen[batch])
            answers = self._answers(states, first, chosen[batch], {}, ranked=True)
            out.log_p[batch], out.better[batch] = answers.log_p, answers.better

        self._map(chosen, forward)
        return out

    @torch.inference_mode()
    def clean_distribution(self, texts: Sequence[int]) -> dict[int, torch.Tensor]:
        """Clean log-probabilities of the first answer token: text → float32 (V,)."""
        chosen = np.asarray(texts, int)
        out: dict[int, torch.Tensor] = {}

        def forward(batch: np.ndarray) -> None:
            members = chosen[batch]
            states = self._predicting_states(self.replay.embed(self._rows(members)), 0, members)
            tokens = (self.lengths - self.starts)[members]  # of each answer
            first = torch.as_tensor(np.cumsum([0, *tokens[:-1]]), device=states.device)
            rows = self.model.logits(states[first]).log_softmax(1)
            out.update(zip(members.tolist(), rows, strict=True))

        self._map(chosen, forward)
        return out

    def cost(self, layer: int, texts: np.ndarray) -> np.ndarray:
        """Work of damaged rows: [layer-tokens replayed above the layer, positions unembedded]."""
        lengths, starts = self.lengths[texts], self.starts[texts]
        tokens = (lengths - 1).sum() * (self.model.n_layers - 1 - layer)
        return np.array([tokens, (lengths - starts).sum()], np.float64)

    def _prepare(self) -> None:
        for width in np.unique(self.lengths - 1):
            self.replay.prepare(int(width))

    def _entering(self, below: State | None, batch: np.ndarray) -> tuple[torch.Tensor, int]:
        """What enters the layer above a state on some texts (B, T, H), and its number."""
        if below is None:
            return self.replay.embed(self._rows(batch)), 0
        width = int(self.lengths[batch].max()) - 1
        rows = torch.as_tensor(batch, device=self.ids.device)
        written = self.model.mlp_written(below.layer, below.mlp[rows, :width])
        return below.residual[rows, :width] + written, below.layer + 1

    def _on_all_texts(
        self, forward: Callable[[np.ndarray], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """What `forward` gives of B texts as (B, T, C), for all texts: (N, width, C) by name."""
        whole: dict[str, torch.Tensor] = {}

        def keep(batch: np.ndarray) -> None:
            rows = torch.as_tensor(batch, device=self.ids.device)
            for name, values in forward(batch).items():
                if name not in whole:
                    whole[name] = values.new_zeros(len(self), self.width, values.shape[2])
                whole[name][rows, : values.shape[1]] = values

        self._map(np.arange(len(self)), keep)
        return whole

    def _map(self, texts: np.ndarray, compute: Callable[[np.ndarray], None]) -> None:
        """`compute` over batches of positions in `texts`, texts of like length together."""
        order = np.argsort(self.lengths[texts], kind="stable")
        self.batch.map(len(order), lambda rows: compute(order[rows]))

    def _rows(self, texts: np.ndarray) -> torch.Tensor:
        """The ids that a batch reads: (B, T)."""
        width = int(self.lengths[texts].max()) - 1
        return self.ids[torch.as_tensor(texts, device=self.ids.device), :width]

    def _predicting(self, texts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and positions whose next token belongs to an answer, row by row: (P,), (P,)."""
        places = [
            (row, position - 1)
            for row, text in enumerate(texts)
            for position in range(self.starts[text], self.lengths[text])
        ]
        row, position = torch.tensor(places, device=self.ids.device).T
        return row, position

    def _predicting_states(
        self, states: torch.Tensor, first: int, texts: np.ndarray
    ) -> torch.Tensor:
        """Run the layers from `first` on; the states that predict answers, one per token (P, H)."""
        row, position = self._predicting(texts)
        self.replay.prepare(states.shape[1])  # a forward pass of its own, before the hook
        handle = None
        if len(row) == len(texts) and first < self.model.n_layers:
            # One answer token per row: the last MLP need see no other position. What it writes is
            # then broadcast over the row's positions, right at the one that is read.
            handle = self.model.layers[-1].mlp.register_forward_pre_hook(
                lambda _, args: (args[0][row, position][:, None],)
            )
        try:
            last = self.replay.run(states, first)[row, position]
        finally:
            if handle is not None:
                handle.remove()
        if not torch.isfinite(last).all():
            self.replay.run(states, first, check=True)  # names the layer
            check_finite(last, self.model.n_layers - 1)
        return last

    def _answers(
        self,
        states: torch.Tensor,
        first: int,
        texts: np.ndarray,
        reference: Mapping[int, torch.Tensor],
        ranked: bool = False,
    ) -> Answers:
        """Run the layers from `first` on states (R, T, H) and read the rows' answers."""
        last = self._predicting_states(states, first, texts)
        row, position = self._predicting(texts)
        of_text = torch.as_tensor(texts, device=row.device)[row]
        answers = self.ids[of_text, position + 1]
        starts = torch.as_tensor(self.starts[texts], device=row.device)[row]
        is_first = (position == starts - 1).tolist()

        total, divergence, better = _no_answers(len(texts))
        rows = row.cpu().numpy()
        for begin in range(0, len(rows), LOGIT_ROWS):
            span = slice(begin, begin + LOGIT_ROWS)
            logits = self.model.logits(last[span])
            log_p = logits.log_softmax(1) if reference else None
            of_answer = logits.gather(1, answers[span, None])
            of_token = of_answer[:, 0] - logits.logsumexp(1)
            np.add.at(total, rows[span], of_token.cpu().double().numpy())
            if ranked:
                np.maximum.at(better, rows[span], (logits > of_answer).sum(1).cpu().numpy())
            if log_p is None:
                continue
            for i, r in enumerate(rows[span]):
                clean = reference.get(int(texts[r])) if is_first[begin + i] else None
                if clean is not None:
                    divergence[r] = float((clean.exp() * (clean - log_p[i])).sum())
        if not np.isfinite(total).all():
            raise RunError(
                "NaN or infinity in the logits after the last layer: likely float16 arithmetic or "
                "a broken unembedding. Run again with --dtype float32; if it stays, check the "
                "model's files."
            )
        return Answers(total / (self.lengths - self.starts)[texts], divergence, better)


def _no_answers(rows: int) -> Answers:
    return Answers(np.zeros(rows), np.full(rows, np.nan), np.zeros(rows, int))
