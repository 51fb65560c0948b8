"""The pass: one forward pass of a passage, and a backward pass for each of its rows.

A row is a target word of one concept in one passage. With a the input of ``down_proj`` and g the gradient of log p(word)
with respect to it, removing a pole costs the word about Σ_{t>0} a^± · g nats (attribution patching: Nanda 2023), for
every neuron of the model at once.

The rows of a passage share its forward pass. In slot s every passage of a batch contributes its s-th row, so a batch
takes as many backward passes as its passages have rows, and passages with equally many are batched together. Only
gradients of activations are computed: no parameter asks for one, and the graph begins at the lowest ``down_proj``.

Memory: the graph of one batch (some 1.3 MB a token for Gemma 3 270M in float32), and the sums of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.effects import activity, rows, sums
from conceptvec.effects.activity import Activity
from conceptvec.effects.moved import Moved
from conceptvec.effects.rows import Targets
from conceptvec.effects.sums import Effects
from conceptvec.model.memory import Batch
from conceptvec.model.network import check_finite

if TYPE_CHECKING:
    from conceptvec.model.network import Model

TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 8192}  # tokens of a batch, with padding
LOGIT_ROWS = 64  # positions unembedded at a time
PIECE = 2**14  # rows of the unembedding in float32 at a time


@dataclass(frozen=True)
class Words:
    """What the logits say of the words that stand in a batch: all of shape (n,) but the last."""

    log_p: torch.Tensor
    better: torch.Tensor
    direction: torch.Tensor  # (n, H), gradient of log p with respect to the normed state


@dataclass
class _Batch:
    """One batch's rows, not yet added to the sums: nothing is lost or doubled when memory runs out on the way."""

    passages: np.ndarray
    seen: slice  # of the part's occurrences, if the batch were sorted: see `at`
    at: np.ndarray  # the batch's occurrences
    better: np.ndarray
    log_p: np.ndarray
    chosen: np.ndarray  # (R,), into `at`
    zero: torch.Tensor  # (L, 2, R, I)
    gradient: torch.Tensor  # (L, R, I)
    firing: torch.Tensor  # (L, 2, R, I)
    moved: torch.Tensor  # (R, M)
    activity: Activity


class Gradients:
    """First-order effects of all neurons of some layers.

    Args:
        model: the model; never written.
        layers: their numbers, ascending.
        masked: bool (V,), tokens that do not count when a word is ranked.
        moved: vectors under other neurons' firing.
        tokens: of a batch; halves itself when memory runs out.
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
        self.moved = moved
        self.batch = Batch(tokens or TOKENS[model.device.type], "tokens of a scan")
        self._moved_of = [_on(model.device, moved, layer) for layer in layers]

    def part(
        self, passages: Sequence[np.ndarray], numbers: np.ndarray, targets: Targets
    ) -> tuple[Effects, Activity]:
        """The sums over some passages.

        Args:
            passages: token ids of each.
            numbers: (P,) their numbers in the text, ascending.
            targets: the words in them, by passage and position; passages are named by their numbers.
        """
        local = Targets(
            np.searchsorted(numbers, targets.passage), *list(vars(targets).values())[1:]
        )
        lengths = np.array([len(ids) for ids in passages])
        slots = rows.slots_needed(local, len(passages))
        order = np.lexsort((lengths, slots))

        total = _Sums(self, targets, np.unique(targets.word))
        start = 0
        while start < len(order):

            def run(tokens: int, start: int = start) -> _Batch:
                members = rows.batch_from(order, start, lengths, slots, tokens)
                return self._batch([passages[i] for i in members], members, numbers, local)

            done = self.batch.run(run)
            total.add(done)
            start += len(done.passages)
        return total.result()

    def _batch(
        self, passages: list[np.ndarray], members: np.ndarray, numbers: np.ndarray, targets: Targets
    ) -> _Batch:
        """Forward, then one backward pass per slot."""
        device = self.model.device
        T = max(len(ids) for ids in passages)
        padded = np.zeros((len(passages), T), np.int64)
        for row, ids in enumerate(passages):
            padded[row, : len(ids)] = ids
        ids = torch.from_numpy(padded).to(device)
        lengths = torch.tensor([len(p) for p in passages], device=device)

        inside = np.flatnonzero(np.isin(targets.passage, members))
        here = targets.at(inside)
        row_of = np.full(int(members.max()) + 1, -1)
        row_of[members] = np.arange(len(members))
        b = torch.from_numpy(row_of[here.passage]).to(device)
        t = torch.from_numpy(here.position - 1).to(device)  # where the word is predicted

        with torch.set_grad_enabled(len(here) > 0):
            a, hidden = self._forward(ids)
            normed = self.model.norm(hidden[b, t])  # (n, H)
        said = self._words(hidden[b, t].detach(), ids[b, t + 1])
        better = said.better.cpu().numpy()
        chosen, slot = rows.choose(here, better < rows.KNOWN_BELOW)

        R, L, I, M = len(chosen), len(self.layers), self.model.intermediate_size, len(self.moved)
        new = lambda *shape: torch.zeros(*shape, device=device)
        out = _Batch(
            members, slice(0), inside, better, said.log_p.cpu().numpy(), chosen,
            new(L, 2, R, I), new(L, R, I), new(L, 2, R, I), new(R, M),
            activity.of_batch(self.layers, [x.detach() for x in a], lengths, numbers[members]),
        )  # fmt: skip
        self._fire(out, a, b, t)
        for s in range(int(slot.max(initial=-1)) + 1):
            which = np.flatnonzero(slot == s)
            upstream = torch.zeros_like(normed)
            at = torch.from_numpy(chosen[which]).to(device)
            upstream[at] = said.direction[at].to(normed.dtype)
            self._backward(out, a, b[at], normed, upstream, torch.from_numpy(which).to(device))
        return out

    def _forward(self, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The activations of every layer (B, T, I), and the residual stream before the last norm (B, T, H)."""
        a: list[torch.Tensor] = []
        last: list[torch.Tensor] = []

        def keep(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
            if a or not torch.is_grad_enabled():
                a.append(args[0])
                return None
            a.append(args[0].detach().requires_grad_())  # the graph begins here
            return (a[0],)

        modules = [self.model.layers[layer].mlp.down_proj for layer in self.layers]
        handles = [module.register_forward_pre_hook(keep) for module in modules]
        handles.append(
            self.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
        )
        try:
            self.model.decoder(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        for layer, x in zip(self.layers, a, strict=True):
            check_finite(x.detach(), layer)
        return a, last[0]

    @torch.no_grad()
    def _words(self, hidden: torch.Tensor, words: torch.Tensor) -> Words:
        """Log-probability, rank and gradient of words (n,) that states (n, H) before the last norm predict."""
        parts = [
            self._some_words(hidden[i : i + LOGIT_ROWS], words[i : i + LOGIT_ROWS])
            for i in range(0, len(words), LOGIT_ROWS)
        ]
        if not parts:
            none = hidden.new_zeros(0, dtype=torch.float32)
            return Words(none, none.int(), none[:, None].expand(0, self.model.hidden_size))
        return Words(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _some_words(self, hidden: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.model.logits(hidden)  # (n, V)
        own = logits.gather(1, words[:, None])
        log_p = own[:, 0] - logits.logsumexp(1)
        better = ((logits > own) & self.shown).sum(1)

        # ∂ log p / ∂ logits = onehot − softmax, through the soft cap where there is one, then the unembedding.
        push = -logits.softmax(1)
        push.scatter_add_(1, words[:, None], torch.ones_like(own))
        if self.model.softcap:
            push *= 1 - (logits / self.model.softcap).square()
        pieces = zip(push.split(PIECE, 1), self.model.unembedding.split(PIECE), strict=True)
        if self.model.unembedding.dtype == push.dtype:
            return log_p, better, push @ self.model.unembedding
        direction = torch.zeros(len(words), self.model.hidden_size, device=push.device)
        for some, weight in pieces:
            direction += some @ weight.float()
        return log_p, better, direction

    @torch.no_grad()
    def _fire(self, out: _Batch, a: list[torch.Tensor], b: torch.Tensor, t: torch.Tensor) -> None:
        """Each pole's positive activation where the rows' words are predicted."""
        at = torch.from_numpy(out.chosen).to(b.device)
        for i, x in enumerate(a):
            before = x[b[at], t[at]].float()  # (R, I)
            out.firing[i, 0] = before.clamp(min=0)
            out.firing[i, 1] = (-before).clamp(min=0)

    def _backward(
        self, out: _Batch, a: list[torch.Tensor], b: torch.Tensor, normed: torch.Tensor,
        upstream: torch.Tensor, which: torch.Tensor,
    ) -> None:  # fmt: skip
        """One slot: the gradients of its rows, at passages `b` of the batch, reduced layer by layer as they come."""

        def reduce(i: int, g: torch.Tensor) -> None:
            g, x = g[b, 1:].float(), a[i].detach()[b, 1:].float()  # (R, T - 1, I)
            out.gradient[i, which] = g.sum(1)
            positive = (x.clamp(min=0) * g).sum(1)
            out.zero[i, 0, which] = positive
            out.zero[i, 1, which] = (x.clamp(max=0) * g).sum(1)
            columns, source, source_sign, receiver, receiver_sign = self._moved_of[i]
            if len(columns):
                s = (x[..., receiver] * receiver_sign).clamp(min=0)
                out.moved[which[:, None], columns] = (s * g[..., source]).sum(1) * source_sign

        with reducing(a[1:], lambda i, g: reduce(i + 1, g)):
            (first,) = torch.autograd.grad(normed, a[0], upstream, retain_graph=True)
        reduce(0, first)


@contextmanager
def reducing(
    tensors: Sequence[torch.Tensor], use: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Within the context a backward pass hands `use` the number and the gradient of each of the tensors."""
    handles = [x.register_hook(lambda g, i=i: use(i, g)) for i, x in enumerate(tensors)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on(device: torch.device, moved: Moved, layer: int) -> tuple[torch.Tensor, ...]:
    """A layer's moved vectors as tensors: their columns, sources, signs, receivers and their signs."""
    columns = np.flatnonzero(moved.layer == layer)
    signs = (moved.source_sign[columns], moved.receiver_sign[columns])
    source_sign, receiver_sign = (
        torch.tensor(x, dtype=torch.float32, device=device) for x in signs
    )
    source, receiver = (
        torch.from_numpy(x[columns]).long().to(device) for x in (moved.source, moved.receiver)
    )
    return torch.from_numpy(columns).to(device), source, source_sign, receiver, receiver_sign


class _Sums:
    """The sums of a part, filled batch by batch in main memory."""

    def __init__(self, of: Gradients, targets: Targets, words: np.ndarray) -> None:
        self.targets = targets
        self.effects = sums.empty(of.layers, words, of.model.intermediate_size, len(of.moved))
        self.activity = activity.nothing(of.layers, of.model.intermediate_size)
        self.better = np.zeros(len(targets), np.int32)
        self.log_p = np.zeros(len(targets), np.float32)
        self.chosen = np.zeros(len(targets), bool)

    def add(self, batch: _Batch) -> None:
        self.better[batch.at] = batch.better
        self.log_p[batch.at] = batch.log_p
        self.chosen[batch.at[batch.chosen]] = True
        self.activity = activity.add([self.activity, batch.activity])

        effects = self.effects
        zero, gradient, firing, moved = (
            getattr(batch, name).cpu().numpy() for name in ("zero", "gradient", "firing", "moved")
        )
        place = effects.index(self.targets.word[batch.at[batch.chosen]])
        for row, word in enumerate(place):
            effects.rows[word] += 1
            effects.zero[:, :, word] += zero[:, :, row]
            effects.gradient[:, word] += gradient[:, row]
            effects.firing[:, :, word] += firing[:, :, row]
            effects.moved[word] += moved[row]

    def result(self) -> tuple[Effects, Activity]:
        """The part, without words none of whose occurrences became a row."""
        effects, kept = self.effects, self.effects.rows > 0
        return (
            Effects(
                effects.layers,
                effects.words[kept],
                effects.rows[kept],
                effects.zero[:, :, kept],
                effects.gradient[:, kept],
                effects.firing[:, :, kept],
                effects.moved[kept],
                np.stack([self.targets.passage, self.targets.position], 1).astype(np.int32),
                self.better,
                self.log_p,
                self.chosen,
            ),
            self.activity,
        )
