"""The pass: one forward pass of a passage, and a backward pass for each of its rows.

A row is a target word in one passage. With a the input of ``down_proj`` and g the gradient of log
p(word) with respect to it, removing a pole costs the word about Σ_{t>0} a^± · g nats (attribution
patching: Nanda 2023), for every neuron of the model at once.

The rows of a passage share its forward pass. In slot s every passage of a batch contributes its
s-th row, so a batch takes as many backward passes as its passages have rows, and passages with
equally many are batched together. Only gradients of activations are computed: no parameter asks for
one, and the graph begins at the lowest ``down_proj``.

Memory: the graph of one batch (some 1.3 MB a token for Gemma 3 270M in float32), and a part's sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.effects import activity, rows
from conceptvec.effects.activity import Activity
from conceptvec.effects.batches import BatchRows, Done, PartSums, Size
from conceptvec.effects.moved import Moved
from conceptvec.effects.rows import Targets
from conceptvec.effects.sums import Effects
from conceptvec.model.memory import Batch
from conceptvec.model.network import check_finite

if TYPE_CHECKING:
    from conceptvec.model.network import Model

TOKENS = {"cpu": 1024, "mps": 1024, "cuda": 4096}  # of a batch, with padding
LOGIT_ROWS = 64  # positions unembedded at a time
PIECE = 2**14  # rows of the unembedding in float32 at a time


@dataclass(frozen=True)
class Clean:
    """One batch's forward pass and the n targets in it.

    Attributes:
        activations: input of every layer's ``down_proj`` (B, T, I).
        states: residual stream before the last norm where the targets are predicted (n, H).
        normed: the same after the norm, with the graph (n, H).
        passage: the targets' passages, as rows of the batch: int64 (n,).
        position: where they are predicted: int64 (n,).
    """

    activations: list[torch.Tensor]
    states: torch.Tensor
    normed: torch.Tensor
    passage: torch.Tensor
    position: torch.Tensor


@dataclass(frozen=True)
class Predicted:
    """What the clean logits say of n targets.

    Attributes:
        log_p: (n,) in nats.
        better: (n,) unmasked tokens with a larger logit.
        direction: (n, H), gradient of log p with respect to the normed state.
    """

    log_p: torch.Tensor
    better: torch.Tensor
    direction: torch.Tensor


class Gradients:
    """First-order effects of all neurons of some layers.

    Args:
        model: the model; never written.
        layers: their numbers, ascending.
        masked: tokens that do not count when a word is ranked: bool (V,).
        moved: vectors under other neurons' firing.
        tokens: of a batch, with padding; halves itself when memory runs out.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[int],
        masked: torch.Tensor,
        moved: Moved,
        tokens: int | None = None,
    ) -> None:
        self.model = model
        self.layers = tuple(layers)
        self.shown = ~masked.to(model.device)
        self.size = Size(self.layers, model.intermediate_size, len(moved))
        self.moved = [_MovedOfLayer(moved, layer, model.device) for layer in layers]
        self.batch = Batch(tokens or TOKENS[model.device.type], "tokens of a scan")

    def part(
        self, passages: Sequence[np.ndarray], numbers: np.ndarray, targets: Targets
    ) -> tuple[Effects, Activity]:
        """The sums over some passages.

        Args:
            passages: token ids of each.
            numbers: their numbers in the text, ascending: (P,).
            targets: the words in them; passages are named by their numbers.
        """
        within = np.searchsorted(numbers, targets.passage)
        local = targets.in_passages(within)
        lengths = np.array([len(ids) for ids in passages])
        slots = rows.slots_needed(local, len(passages))
        order = np.lexsort((lengths, slots))
        total = PartSums(self.size, targets)

        start = 0
        while start < len(order):

            def run(tokens: int, start: int = start) -> tuple[int, Done]:
                members = np.sort(rows.batch_from(order, start, lengths, slots, tokens))
                ids = [passages[i] for i in members]
                return len(members), self._batch(ids, members, numbers[members], local)

            n_passages, done = self.batch.run(run)
            total.add(done)
            start += n_passages
        return total.effects(), total.activity

    def _batch(
        self,
        passages: list[np.ndarray],
        members: np.ndarray,
        numbers: np.ndarray,
        targets: Targets,
    ) -> Done:
        """One batch: forward, then a backward pass per slot."""
        ids, lengths = padded(passages, self.model.device)
        inside = np.flatnonzero(np.isin(targets.passage, members))
        present = targets.at(inside)

        # The clean pass, and which of its words are known.
        clean = self._forward(ids, members, present)
        predicted = self._predict(clean, ids)
        better = predicted.better.cpu().numpy()
        chosen, slot = rows.choose(present, better < rows.KNOWN_BELOW)

        # The rows' gradients, slot by slot, reduced as they come.
        kept = BatchRows(self.size, len(chosen), self.model.device)
        for number in range(int(slot.max(initial=-1)) + 1):
            self._backward(kept, clean, predicted.direction, chosen, slot == number)
        activations = [a.detach() for a in clean.activations]
        return Done(
            targets=inside,
            log_p=predicted.log_p.cpu().numpy(),
            better=better,
            rows=inside[chosen],
            zero=kept.zero,
            gradient=kept.gradient,
            firing=self._firing(clean, chosen),
            moved=kept.moved,
            activity=activity.of_batch(self.layers, activations, lengths, numbers),
        )

    def _forward(self, ids: torch.Tensor, members: np.ndarray, targets: Targets) -> Clean:
        """Run the decoder; with targets, the graph from the lowest ``down_proj`` up is kept."""
        a: list[torch.Tensor] = []
        stream: list[torch.Tensor] = []

        def keep(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
            if a or not torch.is_grad_enabled():
                a.append(args[0])
                return None
            a.append(args[0].detach().requires_grad_())
            return (a[0],)

        modules = [self.model.layers[layer].mlp.down_proj for layer in self.layers]
        handles = [module.register_forward_pre_hook(keep) for module in modules]
        last = self.model.norm.register_forward_pre_hook(lambda _, args: stream.append(args[0]))
        row = np.zeros(int(members.max()) + 1, np.int64)
        row[members] = np.arange(len(members))
        passage = torch.from_numpy(row[targets.passage]).to(ids.device)
        position = torch.from_numpy(targets.position.astype(np.int64) - 1).to(ids.device)
        try:
            with torch.set_grad_enabled(len(targets) > 0):
                self.model.decoder(input_ids=ids, use_cache=False)
                last.remove()  # the norm is called once more, on the targets' states alone
                states = stream[0][passage, position]
                normed = self.model.norm(states)
        finally:
            for handle in (*handles, last):
                handle.remove()
        for layer, x in zip(self.layers, a, strict=True):
            check_finite(x.detach(), layer)
        return Clean(a, states.detach(), normed, passage, position)

    @torch.no_grad()
    def _predict(self, clean: Clean, ids: torch.Tensor) -> Predicted:
        """Log-probability, rank and gradient of the targets."""
        words = ids[clean.passage, clean.position + 1]
        parts = [
            self._predict_some(clean.states[i : i + LOGIT_ROWS], words[i : i + LOGIT_ROWS])
            for i in range(0, max(len(words), 1), LOGIT_ROWS)
        ]
        return Predicted(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _predict_some(self, states: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.model.logits(states)  # (n, V)
        of_word = logits.gather(1, words[:, None])
        log_p = of_word[:, 0] - logits.logsumexp(1)
        better = ((logits > of_word) & self.shown).sum(1)

        # ∂ log p / ∂ logits = onehot − softmax, through the soft cap where there is one …
        push = logits.softmax(1).neg_()
        push.scatter_add_(1, words[:, None], torch.ones_like(of_word))
        if self.model.softcap:
            push *= 1 - (logits / self.model.softcap).square()

        # … and through the unembedding, which is never copied as a whole in another precision.
        weight = self.model.unembedding
        if weight.dtype == push.dtype:
            return log_p, better, push @ weight
        direction = push.new_zeros(len(words), weight.shape[1])
        for columns, piece in zip(push.split(PIECE, 1), weight.split(PIECE), strict=True):
            direction += columns @ piece.to(push.dtype)
        return log_p, better, direction

    @torch.no_grad()
    def _firing(self, clean: Clean, chosen: np.ndarray) -> torch.Tensor:
        """Each pole's positive activation where the rows' words are predicted: (L, 2, R, I)."""
        at = torch.from_numpy(chosen).to(clean.passage.device)
        passage, position = clean.passage[at], clean.position[at]
        before = torch.stack([a[passage, position].float() for a in clean.activations])
        return torch.stack([before.clamp(min=0), (-before).clamp(min=0)], 1)

    def _backward(
        self,
        kept: BatchRows,
        clean: Clean,
        direction: torch.Tensor,
        chosen: np.ndarray,
        in_slot: np.ndarray,
    ) -> None:
        """One slot: every passage's gradients are those of its own row's word."""
        device = direction.device
        which = torch.from_numpy(np.flatnonzero(in_slot)).to(device)
        targets = torch.from_numpy(chosen[in_slot]).to(device)
        passage = clean.passage[targets]  # ascending
        everyone = len(passage) == len(clean.activations[0])
        upstream = torch.zeros_like(clean.normed)
        upstream[targets] = direction[targets].to(upstream.dtype)

        def of_rows(x: torch.Tensor) -> torch.Tensor:
            return x if everyone else x[passage]

        def reduce(i: int, g: torch.Tensor) -> None:
            # The first token is left out; behind the word the gradient is zero, padding included.
            a = of_rows(clean.activations[i].detach())[:, 1:].float()  # (R, T - 1, I)
            g = of_rows(g)[:, 1:].float()
            kept.gradient[i, which] = g.sum(1)
            kept.zero[i, 0, which] = (a.clamp(min=0) * g).sum(1)
            kept.zero[i, 1, which] = (a.clamp(max=0) * g).sum(1)
            moved = self.moved[i]
            if len(moved.columns):
                kept.moved[which[:, None], moved.columns] = moved.effect(a, g)

        lowest, *upper = clean.activations
        with reducing(upper, lambda i, g: reduce(i + 1, g)):
            (g,) = torch.autograd.grad(clean.normed, lowest, upstream, retain_graph=True)
        reduce(0, g)


class _MovedOfLayer:
    """The moved vectors of one layer, as tensors."""

    def __init__(self, moved: Moved, layer: int, device: torch.device) -> None:
        columns = np.flatnonzero(moved.layer == layer)
        self.columns = torch.from_numpy(columns).to(device)
        self.source = torch.from_numpy(moved.source[columns]).to(device)
        self.receiver = torch.from_numpy(moved.receiver[columns]).to(device)
        self.source_sign = torch.from_numpy(moved.source_sign[columns]).float().to(device)
        self.receiver_sign = torch.from_numpy(moved.receiver_sign[columns]).float().to(device)

    def effect(self, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """The receivers' positive activations times the gradient along the sources: (R, m).

        Args:
            a: activations (R, T, I).
            g: gradients (R, T, I).
        """
        strength = (a[..., self.receiver] * self.receiver_sign).clamp(min=0)
        return (strength * g[..., self.source]).sum(1) * self.source_sign


def padded(passages: list[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) and lengths (B,).

    Padding stands on the right, where no token can reach those before it.
    """
    lengths = [len(ids) for ids in passages]
    out = np.zeros((len(passages), max(lengths)), np.int64)
    for row, ids in enumerate(passages):
        out[row, : len(ids)] = ids
    return torch.from_numpy(out).to(device), torch.tensor(lengths, device=device)


@contextmanager
def reducing(
    tensors: Sequence[torch.Tensor], use: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Within the context a backward pass hands `use` the number and the gradient of each tensor."""
    handles = [x.register_hook(lambda g, i=i: use(i, g)) for i, x in enumerate(tensors)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
