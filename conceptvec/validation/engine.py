"""The damage engine: what many damages cost on a fixed list of prompts, without computing anything twice.

Everything up to the damaged MLP is computed once; the layers above are replayed on rows that each carry their own
prompt and damage; only the positions that predict an answer are unembedded, and only they pass the last MLP. Prompts
are padded on the right: under causal attention what follows a position cannot reach it.

Memory, besides the model: three states (P, T, H) of all prompts, and what `batch_size` rows need in one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.concepts import Prompt
from conceptvec.errors import RequestError, RunError
from conceptvec.extraction.activations import MAX_TOKENS, capturing
from conceptvec.model.memory import Batch
from conceptvec.model.network import check_finite
from conceptvec.validation.damage import Damage

if TYPE_CHECKING:
    from conceptvec.model.network import Model

LOGIT_ROWS = 64  # positions unembedded at a time


@dataclass
class State:
    """One layer's clean state on all prompts: residual stream before the MLP, MLP output, some activations."""

    layer: int
    residual: torch.Tensor  # (P, T, H)
    mlp: torch.Tensor  # (P, T, H)
    neurons: dict[int, int]  # neuron → row of activations
    activations: torch.Tensor  # (n, P, T) float32


class _Enough(Exception):
    """Ends a forward pass whose first part was all that was wanted."""


class Engine:
    """Measures answers' log-probabilities on a fixed list of prompts, clean and damaged.

    Args:
        model: the model; never written.
        prompts: prompts with answers, each tokenised as prompt + answer with the BOS token once; or ready pairs of
            token ids and the index at which the answer starts.
        batch_size: rows (one prompt with one damage each) per forward pass.
        chat: whether the prompts stand in the model's turn of its chat template.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt | tuple[list[int], int]],
        batch_size: int,
        chat: bool = False,
    ) -> None:
        self.model, self.batch = model, Batch(batch_size, "rows of a forward pass")
        encoded = [p if isinstance(p, tuple) else split_answer(model, p, chat) for p in prompts]
        self.starts = np.array([start for _, start in encoded], int)
        self.lengths = np.array([len(ids) for ids, _ in encoded], int)
        self.width = int(self.lengths.max()) - 1  # an answer's last token is predicted, never read
        pad = [ids + [0] * (self.width + 1 - len(ids)) for ids, _ in encoded]
        self.ids = torch.tensor(pad, device=model.device)
        self._replay: dict[int, list[tuple[tuple, dict[str, Any]]]] = {}
        self._stream: tuple[int, torch.Tensor] | None = (
            None  # a layer and what enters it, all prompts (P, T, H)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def _arguments(self, width: int) -> list[tuple[tuple, dict[str, Any]]]:
        """What the decoder passes to each layer besides the hidden states, for one row of `width` tokens."""
        if width not in self._replay:
            caught: list[tuple[tuple, dict[str, Any]]] = []

            def catch(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
                caught.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

            handles = [
                layer.register_forward_pre_hook(catch, with_kwargs=True)
                for layer in self.model.layers
            ]
            try:
                self.model.decoder(input_ids=self.ids[:1, :width], use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
            self._replay[width] = caught
        return self._replay[width]

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        """What enters the first layer: (B, T, H)."""
        first: list[torch.Tensor] = []

        def catch(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            first.append(args[0] if args else kwargs["hidden_states"])
            raise _Enough

        handle = self.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model.decoder(input_ids=ids, use_cache=False)
        except _Enough:
            pass
        finally:
            handle.remove()
        return first[0]

    def _run(
        self, hidden: torch.Tensor, first: int, last: int | None = None, check: bool = False
    ) -> torch.Tensor:
        """Run the layers from `first` to before `last` (default: all the rest) on states (R, T, H)."""
        arguments = self._arguments(hidden.shape[1])
        last = self.model.n_layers if last is None else last
        for layer in range(first, last):
            args, kwargs = arguments[layer]
            out = self.model.layers[layer](hidden, *args, **kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
            if check:
                check_finite(hidden, layer)
        return hidden

    def _run_to_answers(
        self, hidden: torch.Tensor, first: int, prompts: np.ndarray
    ) -> torch.Tensor:
        """Run the layers from `first` on and return the states that predict answers, one per token (N, H)."""
        row, at = self._predicting(prompts)
        self._arguments(hidden.shape[1])  # a forward pass of its own, before the hook
        handle = None
        if len(row) == len(prompts) and first < self.model.n_layers:
            # One answer position per row: the last MLP need see no other. What it writes is then broadcast over the
            # row's positions, right at the one that is read.
            handle = self.model.layers[-1].mlp.register_forward_pre_hook(
                lambda _, args: (args[0][row, at][:, None],)
            )
        try:
            states = self._run(hidden, first)[row, at]
        finally:
            if handle is not None:
                handle.remove()
        if not torch.isfinite(states).all():
            self._run(hidden, first, check=True)
            check_finite(states, self.model.n_layers - 1)
        return states

    def _predicting(self, prompts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and positions whose next token belongs to an answer, row by row: (N,), (N,)."""
        found = [
            (i, at - 1)
            for i, p in enumerate(prompts)
            for at in range(self.starts[p], self.lengths[p])
        ]
        row, at = torch.tensor(found, device=self.ids.device).T
        return row, at

    def cost(self, layer: int, prompts: Sequence[int] | np.ndarray, damaged: int = 1) -> np.ndarray:
        """Work of damaged rows: [layer-tokens replayed above the layer, positions unembedded]."""
        lengths, starts = self.lengths[list(prompts)], self.starts[list(prompts)]
        tokens = (lengths - 1).sum() * (self.model.n_layers - 1 - layer)
        return np.array([damaged * tokens, damaged * (lengths - starts).sum()], np.float64)

    def _map(self, prompts: np.ndarray, compute: Callable[[np.ndarray], None]) -> None:
        """`compute` over batches of positions in `prompts`, prompts of like length together."""
        order = np.argsort(self.lengths[prompts], kind="stable")
        self.batch.map(len(order), lambda rows: compute(order[rows]))

    def _token_rows(self, prompts: np.ndarray) -> torch.Tensor:
        """Ids that a batch reads: (B, T)."""
        return self.ids[
            torch.as_tensor(prompts, device=self.ids.device), : int(self.lengths[prompts].max()) - 1
        ]

    @torch.inference_mode()
    def state(self, layer: int, neurons: Sequence[int]) -> State:
        """The clean state at one layer, for damages of the given neurons.

        What enters the layer is kept, so that a sweep over rising layers runs every layer once or twice.
        """
        model, block = self.model, self.model.layers[layer]
        known, entering = (
            self._stream if self._stream and self._stream[0] <= layer else (None, None)
        )
        own = torch.as_tensor(list(neurons), dtype=torch.long, device=model.device)
        kept: dict[str, torch.Tensor] = {}
        handles = [
            getattr(block, model.family.mlp_norm).register_forward_pre_hook(
                lambda _, x: kept.update(residual=x[0])
            ),
            block.mlp.register_forward_hook(lambda _, __, y: kept.update(mlp=y)),
        ]
        whole: dict[str, torch.Tensor] = {}

        def forward(batch: np.ndarray) -> None:
            rows, width = (
                torch.as_tensor(batch, device=model.device),
                int(self.lengths[batch].max()) - 1,
            )
            hidden = (
                self._embed(self._token_rows(batch)) if entering is None else entering[rows, :width]
            )
            kept["entering"] = self._run(hidden, known or 0, layer)
            self._run(kept["entering"], layer, layer + 1)
            for name, x in kept.items():
                if name not in whole:
                    whole[name] = x.new_zeros(len(self), self.width, x.shape[2])
                whole[name][rows, :width] = x

        try:
            with capturing(model, [layer], lambda _, a: kept.update(a=a[..., own].float())):
                self._map(np.arange(len(self)), forward)
        finally:
            for handle in handles:
                handle.remove()
        for name in ("residual", "mlp"):
            check_finite(whole[name], layer)
        self._stream = (layer, whole["entering"])
        numbered = {int(n): i for i, n in enumerate(neurons)}
        return State(
            layer,
            whole["residual"],
            whole["mlp"],
            numbered,
            whole["a"].permute(2, 0, 1).contiguous(),
        )

    @torch.inference_mode()
    def at_answers(self, layers: Sequence[int]) -> dict[int, np.ndarray]:
        """All neurons' activations where the answers' first tokens are predicted: layer → float32 (P, I)."""
        out = {n: np.zeros((len(self), self.model.intermediate_size), np.float32) for n in layers}

        def forward(batch: np.ndarray) -> None:
            at = torch.as_tensor(self.starts[batch] - 1, device=self.model.device)
            hidden = self._embed(self._token_rows(batch))
            self._arguments(hidden.shape[1])  # a forward pass of its own, before the hooks

            def use(layer: int, a: torch.Tensor) -> None:
                out[layer][batch] = (
                    a[torch.arange(len(a), device=a.device), at].float().cpu().numpy()
                )

            with capturing(self.model, layers, use):
                self._run(hidden, 0)

        self._map(np.arange(len(self)), forward)
        return out

    def measure(
        self, state: State, damaged: Sequence[Damage], prompts: Sequence[int]
    ) -> np.ndarray:
        """Answers' log-probabilities of all prompts under every damage: float64 (D, len(prompts)), nats per token."""
        pairs = np.array([(d, p) for d in range(len(damaged)) for p in prompts], int).reshape(-1, 2)
        return self.measure_pairs(state, damaged, pairs)[0].reshape(len(damaged), len(prompts))

    @torch.inference_mode()
    def measure_pairs(
        self, state: State, damaged: Sequence[Damage], pairs: np.ndarray,
        reference: Mapping[int, torch.Tensor] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Answers' log-probabilities of (damage, prompt) pairs, many vectors and draws in one forward pass.

        Args:
            state: the clean state at the damaged layer.
            damaged: damages of that layer.
            pairs: int (N, 2), index of the damage and of the prompt.
            reference: clean log-probabilities (V,) of the first answer token, for the prompts on which the
                Kullback-Leibler divergence from them is wanted.

        Returns:
            float64 (N,) in nats per answer token, and the divergences (N,) in nats, NaN where not wanted.
        """
        out, divergence = np.zeros(len(pairs)), np.full(len(pairs), np.nan)
        if not len(pairs):
            return out, divergence
        directions = torch.stack([d.direction for d in damaged])
        scale, shift = (
            directions.new_tensor([getattr(d, k) for d in damaged]) for k in ("scale", "shift")
        )
        which = torch.tensor([state.neurons[d.neuron] for d in damaged], device=directions.device)

        def forward(batch: np.ndarray) -> None:
            d, p = torch.as_tensor(pairs[batch].T, device=directions.device)
            width = int(self.lengths[pairs[batch, 1]].max()) - 1
            amount = scale[d, None] * state.activations[which[d], p, :width] + shift[d, None]
            mlp = state.mlp[p, :width]
            mlp = torch.baddbmm(mlp.float(), amount[:, :, None], directions[d][:, None]).to(
                mlp.dtype
            )
            hidden = state.residual[p, :width] + self.model.mlp_written(state.layer, mlp)
            states = self._run_to_answers(hidden, state.layer + 1, pairs[batch, 1])
            out[batch], _, divergence[batch] = self._answers(
                states, pairs[batch, 1], reference or {}
            )

        self._map(pairs[:, 1], forward)
        return out, divergence

    @torch.inference_mode()
    def clean(self, prompts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Clean log-probability (nats per answer token) and the answer's worst rank (1 is the most likely token)."""
        chosen = np.asarray(prompts, int)
        logp, rank = np.zeros(len(chosen)), np.zeros(len(chosen), int)

        def forward(batch: np.ndarray) -> None:
            states = self._run_to_answers(
                self._embed(self._token_rows(chosen[batch])), 0, chosen[batch]
            )
            logp[batch], rank[batch], _ = self._answers(states, chosen[batch], {}, ranks=True)

        self._map(chosen, forward)
        return logp, rank

    @torch.inference_mode()
    def clean_distribution(self, prompts: Sequence[int]) -> dict[int, torch.Tensor]:
        """Clean log-probabilities of the first answer token: prompt → float32 (V,)."""
        chosen, out = np.asarray(prompts, int), {}

        def forward(batch: np.ndarray) -> None:
            states = self._run_to_answers(
                self._embed(self._token_rows(chosen[batch])), 0, chosen[batch]
            )
            first = np.cumsum([0, *(self.lengths - self.starts)[chosen[batch]][:-1]])
            rows = self.model.logits(
                states[torch.as_tensor(first, device=states.device)]
            ).log_softmax(1)
            out.update(zip(chosen[batch].tolist(), rows, strict=True))

        self._map(chosen, forward)
        return out

    def _answers(
        self,
        states: torch.Tensor,
        prompts: np.ndarray,
        reference: Mapping[int, torch.Tensor],
        ranks: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per row: mean log-probability of the answer's tokens, their worst rank, divergence from the reference.

        Args:
            states: what `_run_to_answers` returned for `prompts` (N, H).
            prompts: the rows' prompts (R,).
            reference: see `measure_pairs`.
            ranks: whether ranks are wanted (0 otherwise).
        """
        row, at = self._predicting(prompts)
        answers = self.ids[torch.as_tensor(prompts, device=row.device)[row], at + 1]
        first = (at == torch.as_tensor(self.starts[prompts], device=row.device)[row] - 1).tolist()
        total, worst = np.zeros(len(prompts)), np.zeros(len(prompts), int)
        divergence, rows = np.full(len(prompts), np.nan), row.cpu().numpy()
        for part in range(0, len(rows), LOGIT_ROWS):
            span = slice(part, part + LOGIT_ROWS)
            logits = self.model.logits(states[span])
            normaliser, own = logits.logsumexp(1), logits.gather(1, answers[span, None])
            np.add.at(total, rows[span], (own[:, 0] - normaliser).cpu().double().numpy())
            if ranks:
                np.maximum.at(worst, rows[span], (logits > own).sum(1).cpu().numpy() + 1)
            known = reference or {}
            clean = [
                known.get(int(prompts[r])) if first[part + i] else None
                for i, r in enumerate(rows[span])
            ]
            if hit := [i for i, c in enumerate(clean) if c is not None]:
                p = torch.stack([c for c in clean if c is not None])
                kl = (p.exp() * (p - logits[hit] + normaliser[hit, None])).sum(1)
                divergence[rows[span][hit]] = kl.cpu().double().numpy()
        if not np.isfinite(total).all():
            raise RunError(
                "NaN or infinity in the logits after the last layer: likely float16 arithmetic or a broken "
                "unembedding. Run again with --dtype float32; if it stays, check the model's files."
            )
        return total / (self.lengths - self.starts)[prompts], worst, divergence


def split_answer(model: Model, prompt: Prompt, chat: bool = False) -> tuple[list[int], int]:
    """Token ids of prompt + answer and where the answer's tokens start.

    Raises:
        RequestError: the prompt and its answer cannot be told apart in tokens, or are too long.
    """
    before, ids = (
        model.encode(text, chat) for text in (prompt.prompt, prompt.prompt + prompt.answer)
    )
    if len(ids) > MAX_TOKENS:
        raise RequestError(
            f"the prompt {prompt.prompt[:40]!r}… has {len(ids)} tokens with its answer, expected at most {MAX_TOKENS}; "
            "shorten it"
        )
    start = next(
        (i for i, (x, y) in enumerate(zip(before, ids, strict=False)) if x != y),
        min(len(before), len(ids)),
    )
    if start < 1 or start >= len(ids):
        raise RequestError(
            f"the answer {prompt.answer!r} adds no token to the prompt {prompt.prompt!r}; answers need a text of their "
            "own, usually with a leading space"
        )
    return ids, start
