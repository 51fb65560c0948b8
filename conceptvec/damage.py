"""The damage engine: damaged forward passes without ever writing to the model.

Replacing the value vector d_j of layer ℓ by ``d_j + ε`` adds ``a_j·ε`` to that layer's MLP output and changes nothing
below it. So every damage is an addition, ``(α·a_j + β)·v``:

* **noise**: α=1, β=0, v=ε on the sphere of radius r‖d_j‖ (or Gaussian with σ per element: the literature's variant);
* **zero**: α=−1, β=0, v=d_j;
* **mean**: α=−1, β=ā_j (the mean activation over the corpus), v=d_j.

Everything up to the damaged MLP is computed once; the layers above are replayed on rows that each carry their own
prompt and damage; only the positions that predict an answer are unembedded. Prompts are padded on the right: under
causal attention what follows a position cannot reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.activations import capturing
from conceptvec.concepts import Prompt
from conceptvec.errors import RequestError
from conceptvec.memory import Batch
from conceptvec.models import check_finite

if TYPE_CHECKING:
    from conceptvec.models import Model

LOGIT_ROWS = 64  # positions unembedded at a time


@dataclass(frozen=True)
class Damage:
    """An addition of ``(scale·a_j + shift)·direction`` to the MLP output of one layer."""

    neuron: int
    scale: float
    shift: float
    direction: torch.Tensor  # (H,) float32


def damages(
    model: Model,
    layer: int,
    neuron: int,
    kind: str,
    mean: float,
    draws: int,
    ratio: float,
    sigma: float | None,
    seed: int,
) -> list[Damage]:
    """The damages of one kind for one neuron: `draws` for noise, one for zero and mean.

    Noise is drawn on the CPU from a generator that depends on seed, layer, neuron and draw alone.
    """
    vector = model.value_vectors(layer)[neuron].float()
    if kind == "zero":
        return [Damage(neuron, -1.0, 0.0, vector)]
    if kind == "mean":
        return [Damage(neuron, -1.0, mean, vector)]
    out = []
    for draw in range(draws):
        key = np.random.SeedSequence([seed, layer, neuron, draw, 2]).generate_state(1, np.uint64)[0]
        noise = torch.randn(len(vector), generator=torch.Generator().manual_seed(int(key >> np.uint64(1))))
        length = torch.linalg.vector_norm(noise)
        noise = (
            noise * sigma if sigma is not None else noise / length * (ratio * torch.linalg.vector_norm(vector).cpu())
        )
        out.append(Damage(neuron, 1.0, 0.0, noise.to(vector.device)))
    return out


@contextmanager
def damaging(model: Model, damaged: Mapping[int, Sequence[Damage]]) -> Iterator[None]:
    """Within the context every forward pass carries the damages (layer → its damages), in any number of layers.

    Upper activations follow from the damaged stream, as after an edit of all the columns at once.
    """
    handles = []
    for layer, some in damaged.items():
        which = [d.neuron for d in some]
        directions = torch.stack([d.direction for d in some])
        scale, shift = (directions.new_tensor([getattr(d, k) for d in some]) for k in ("scale", "shift"))

        def add(_: Any, args: tuple, out: torch.Tensor, which=which, scale=scale, shift=shift, v=directions) -> Any:
            return (out.float() + (args[0][..., which].float() * scale + shift) @ v).to(out.dtype)

        handles.append(model.layers[layer].mlp.down_proj.register_forward_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class State:
    """One layer's clean state on all prompts: residual stream before the MLP, MLP output, some activations."""

    layer: int
    residual: torch.Tensor  # (P, T, H)
    mlp: torch.Tensor  # (P, T, H)
    neurons: dict[int, int]  # neuron → row of activations
    activations: torch.Tensor  # (n, P, T) float32
    at_end: torch.Tensor  # (P, I) float32: all neurons where the answer's first token is predicted


class Engine:
    """Measures answers' log-probabilities on a fixed list of prompts, clean and damaged.

    Args:
        model: the model; never written.
        prompts: prompts with answers; each is tokenised as prompt + answer with the BOS token once.
        batch_size: rows (one prompt with one damage each) per forward pass.
    """

    def __init__(self, model: Model, prompts: Sequence[Prompt], batch_size: int) -> None:
        self.model, self.batch = model, Batch(batch_size, "rows of a forward pass")
        encoded = [split_answer(model, p) for p in prompts]
        self.starts = [start for _, start in encoded]
        self.lengths = [len(ids) for ids, _ in encoded]
        self.width = max(self.lengths)
        pad = [ids + [0] * (self.width - len(ids)) for ids, _ in encoded]
        self.ids = torch.tensor(pad, device=model.device)
        self._replay: dict[int, list[tuple[tuple, dict[str, Any]]]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def _arguments(self, width: int) -> list[tuple[tuple, dict[str, Any]]]:
        """What the decoder passes to each layer besides the hidden states, for one row of `width` tokens."""
        if width not in self._replay:
            caught: list[tuple[tuple, dict[str, Any]]] = []

            def catch(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
                caught.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

            handles = [layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in self.model.layers]
            try:
                self.model.decoder(input_ids=self.ids[:1, :width], use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
            self._replay[width] = caught
        return self._replay[width]

    def run_above(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers above `layer` on residual-stream states (R, T, H)."""
        arguments = self._arguments(hidden.shape[1])
        for block, (args, kwargs) in zip(self.model.layers[layer + 1 :], arguments[layer + 1 :], strict=True):
            out = block(hidden, *args, **kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden

    def cost(self, layer: int, prompts: Sequence[int], damaged: int) -> np.ndarray:
        """Work of `measure`: [layer-tokens replayed above the layer, positions unembedded]."""
        tokens = sum(self.lengths[p] for p in prompts)
        answers = sum(self.lengths[p] - self.starts[p] for p in prompts)
        return np.array([damaged * tokens * (self.model.n_layers - 1 - layer), damaged * answers], np.float64)

    def _by_length(self, pairs: np.ndarray) -> np.ndarray:
        """(damage, prompt) pairs in an order that brings prompts of like length together."""
        lengths = np.array(self.lengths)[pairs[:, 1]]
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], lengths))]

    @torch.inference_mode()
    def state(self, layer: int, neurons: Sequence[int]) -> State:
        """The clean state at one layer, for damages of the given neurons."""
        model, block = self.model, self.model.layers[layer]
        kept: dict[str, list[torch.Tensor]] = {"residual": [], "mlp": []}
        own = torch.as_tensor(list(neurons), dtype=torch.long, device=model.device)
        start = torch.tensor(self.starts, device=model.device)
        handles = [
            getattr(block, model.family.mlp_norm).register_forward_pre_hook(lambda _, x: kept["residual"].append(x[0])),
            block.mlp.register_forward_hook(lambda _, __, y: kept["mlp"].append(y)),
        ]
        some, ends = [], []
        rows = everything = torch.arange(len(self), device=model.device)

        def use(_: int, a: torch.Tensor) -> None:
            some.append(a[:, :, own].float().permute(2, 0, 1))
            ends.append(a[torch.arange(len(a)), start[rows] - 1].float())

        done = 0

        def forward(span: slice) -> None:
            nonlocal rows, done
            for store in (*kept.values(), some, ends):
                del store[done:]  # what a batch left that ran out of memory
            rows = everything[span]
            model.decoder(input_ids=self.ids[rows], use_cache=False)
            done += 1

        try:
            with capturing(model, [layer], use):
                self.batch.map(len(self), forward)
        finally:
            for handle in handles:
                handle.remove()
        state = State(
            layer, torch.cat(kept["residual"]), torch.cat(kept["mlp"]), {int(n): i for i, n in enumerate(neurons)},
            torch.cat(some, 1), torch.cat(ends),
        )  # fmt: skip
        check_finite(state.residual, layer)
        check_finite(state.mlp, layer)
        return state

    @torch.inference_mode()
    def measure(
        self, state: State, damaged: Sequence[Damage], prompts: Sequence[int], reference: torch.Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Answers' log-probabilities under each damage.

        Args:
            state: the clean state at the damaged layer.
            damaged: D damages of that layer; an empty direction list is allowed.
            prompts: indices of the prompts to run.
            reference: clean log-probabilities (len(prompts) or fewer rows, V) of the *last* prompts in `prompts`;
                the Kullback-Leibler divergence from them is measured on those prompts.

        Returns:
            float64 (D, len(prompts)) in nats per answer token, and the divergences (D, len(reference)) in nats.
        """
        out = np.zeros((len(damaged), len(prompts)))
        n_reference = 0 if reference is None else len(reference)
        divergence = np.zeros((len(damaged), n_reference))
        if not len(damaged) or not len(prompts):
            return out, divergence
        column = {int(p): i for i, p in enumerate(prompts)}
        directions = torch.stack([d.direction for d in damaged])
        scale = torch.tensor([d.scale for d in damaged], device=directions.device)
        shift = torch.tensor([d.shift for d in damaged], device=directions.device)
        which = torch.tensor([state.neurons[d.neuron] for d in damaged], device=directions.device)
        pairs = self._by_length(np.array([(d, p) for d in range(len(damaged)) for p in prompts]))

        def measure(rows: slice) -> None:
            batch = pairs[rows]
            width = max(self.lengths[p] for p in batch[:, 1])
            d = torch.as_tensor(batch[:, 0], device=directions.device)
            p = torch.as_tensor(batch[:, 1], device=directions.device)
            a = state.activations[which[d], p, :width]
            amount = scale[d, None] * a + shift[d, None]
            mlp = state.mlp[p, :width]
            mlp = (mlp.float() + amount[:, :, None] * directions[d][:, None]).to(mlp.dtype)
            hidden = state.residual[p, :width] + self.model.mlp_written(state.layer, mlp)
            hidden = self.run_above(state.layer, hidden)
            wanted = [column[int(q)] - (len(prompts) - n_reference) for q in batch[:, 1]]
            logp, kl = self._answers(hidden, batch[:, 1], state.layer, reference, wanted)
            where = [column[int(q)] for q in batch[:, 1]]
            out[batch[:, 0], where] = logp
            for row, at, value in zip(batch[:, 0], wanted, kl, strict=True):
                if at >= 0 and n_reference:
                    divergence[row, at] = value

        self.batch.map(len(pairs), measure)
        return out, divergence

    @torch.inference_mode()
    def clean(self, prompts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Clean log-probability (nats per answer token) and the answer's worst rank (1 is the most likely token)."""
        logp, rank = np.zeros(len(prompts)), np.zeros(len(prompts), int)
        where = {int(p): i for i, p in enumerate(prompts)}
        pairs = self._by_length(np.array([(0, p) for p in prompts]).reshape(-1, 2))

        def measure(rows: slice) -> None:
            batch = pairs[rows]
            width = max(self.lengths[p] for p in batch[:, 1])
            hidden = self._embed_and_run(self.ids[torch.as_tensor(batch[:, 1], device=self.ids.device), :width])
            check_finite(hidden, self.model.n_layers - 1)
            for i, p in enumerate(batch[:, 1]):
                logits = self.model.logits(hidden[i, self.starts[p] - 1 : self.lengths[p] - 1])
                answer = self.ids[p, self.starts[p] : self.lengths[p], None]
                own = logits.gather(1, answer)
                logp[where[int(p)]] = float((own[:, 0] - logits.logsumexp(1)).double().mean())
                rank[where[int(p)]] = int((logits > own).sum(1).max()) + 1

        self.batch.map(len(pairs), measure)
        return logp, rank

    def _embed_and_run(self, ids: torch.Tensor) -> torch.Tensor:
        """The last layer's output before the final norm, the replayed way: (B, T, H)."""
        first: list[torch.Tensor] = []
        handle = self.model.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: first.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        try:
            self.model.decoder(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        return self.run_above(-1, first[0])

    @torch.inference_mode()
    def clean_distribution(self, prompts: Sequence[int]) -> torch.Tensor:
        """Clean log-probabilities of the first answer position: float32 (len(prompts), V)."""
        rows = []
        for p in prompts:
            hidden = self._embed_and_run(self.ids[p : p + 1, : self.lengths[p]])
            rows.append(self.model.logits(hidden[0, self.starts[p] - 1]).log_softmax(0))
        return torch.stack(rows) if rows else torch.zeros(0, self.model.vocab_size)

    def _answers(
        self, hidden: torch.Tensor, prompts: np.ndarray, layer: int, reference: torch.Tensor | None, wanted: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean log-probability of every row's answer tokens, and the divergence of the rows that want it."""
        rows = [(i, at) for i, p in enumerate(prompts) for at in range(self.starts[p], self.lengths[p])]
        row = torch.tensor([r for r, _ in rows], device=hidden.device)
        at = torch.tensor([a for _, a in rows], device=hidden.device)
        states = hidden[row, at - 1]
        check_finite(states, layer)
        answers = self.ids[torch.as_tensor(prompts, device=hidden.device)[row], at]
        total, count = np.zeros(len(prompts)), np.zeros(len(prompts))
        kl = np.zeros(len(prompts))
        for part in range(0, len(rows), LOGIT_ROWS):
            span = slice(part, part + LOGIT_ROWS)
            logits = self.model.logits(states[span])
            normaliser = logits.logsumexp(1)
            own = (logits.gather(1, answers[span, None]).squeeze(1) - normaliser).double().cpu().numpy()
            np.add.at(total, row[span].cpu().numpy(), own)
            np.add.at(count, row[span].cpu().numpy(), 1)
            if reference is not None:
                for i, (r, position) in enumerate(rows[span]):
                    if position == self.starts[prompts[r]] and wanted[r] >= 0:
                        clean = reference[wanted[r]]
                        kl[r] = float((clean.exp() * (clean - logits[i] + normaliser[i])).sum())
        return total / count, kl


def split_answer(model: Model, prompt: Prompt) -> tuple[list[int], int]:
    """Token ids of prompt + answer and where the answer's tokens start.

    Raises:
        RequestError: the prompt and its answer cannot be told apart in tokens.
    """
    before, ids = model.encode(prompt.prompt), model.encode(prompt.prompt + prompt.answer)
    start = next((i for i, (x, y) in enumerate(zip(before, ids, strict=False)) if x != y), min(len(before), len(ids)))
    if start < 1 or start >= len(ids):
        raise RequestError(
            f"the answer {prompt.answer!r} adds no token to the prompt {prompt.prompt!r}; answers need a text of their "
            "own, usually with a leading space"
        )
    return ids, start
