"""Drawing tokens: at temperature 1 with nothing cut off, for less than the product of the logits.

**Two levels.** The logits are exponentiated in place, summed in blocks, and inverted in two steps,
block and then token, each by a uniform number of its own. A full cumulative sum over 262,144 tokens
would read and write all of it once more, in order.

**Rough proposals.** A processor with units for bfloat16 multiplies it four times faster than
float32. There a product of rounded numbers only proposes tokens, and the float32 logit of the
proposed token decides (von Neumann's rejection): a token x that was proposed with the rough logit
b(x) is taken with probability exp(l(x) − b(x) − δ), which makes its distribution that of l. This is
exact where l − b stays below the slack δ. On Gemma 3 270M and SmolLM2 135M the rounding reaches
.16 and δ = .25 loses less than 1e-8 of the probability; four of five proposals are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from conceptvec.extraction.projection import preselection
from conceptvec.model.device import wide_products

if TYPE_CHECKING:
    from conceptvec.model.network import Model

BLOCK = 512  # tokens whose probabilities are summed before one of them is drawn
IN_CACHE = 2**20  # logits that are worked on at a time on a CPU, to stay in its cache
TRIES = 12  # proposals for each token; that all are refused happens once in 10^8
SLACK = 0.25  # nats by which a logit may exceed its rough one, for logits up to 32
SMALLEST = 2**24  # entries of an unembedding from which on rough proposals pay
UNIFORMS = 3 * TRIES  # random numbers that a token takes

Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def drawer(model: Model) -> Draw:
    """The function that draws tokens (B,) from normalised states (B, H) and uniforms (B, UNIFORMS).

    Where it proposes from rough logits it holds a copy of the unembedding in bfloat16.
    """
    unembedding = model.unembedding
    if proposes(model.device) and unembedding.numel() >= SMALLEST:
        return partial(draw_by_proposals, model, padded(unembedding.bfloat16()))
    return partial(_draw_directly, model)


def proposes(device: torch.device) -> bool:
    """Whether rough proposals pay on a device, for large vocabularies."""
    return device.type == "cpu" and preselection(device) is torch.bfloat16


def _draw_directly(model: Model, states: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    return draw(logits_of(model, states), uniforms)


def logits_of(model: Model, states: torch.Tensor) -> torch.Tensor:
    """Unembedding of normalised states (N, H): float32 logits (N, V), also for bfloat16 models."""
    if states.dtype is torch.float32 and states.device.type != "mps":
        logits = states @ model.unembedding.T
    elif wide_products(states.device):
        logits = torch.mm(states, model.unembedding.T, torch.float32)
    else:
        parts = model.unembedding.split(2**14)
        logits = torch.cat([states.float() @ rows.float().T for rows in parts], 1)
    return capped(model, logits)


def capped(model: Model, logits: torch.Tensor) -> torch.Tensor:
    """Logits as the model's soft cap leaves them, if it has one."""
    return torch.tanh(logits / model.softcap) * model.softcap if model.softcap else logits


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token of each row, with the probabilities that the logits stand for.

    Args:
        logits: float32 (B, V); overwritten.
        uniforms: numbers in [0, 1): (B, 2 or more), for the block and for the token in it.

    Returns:
        (B,) token ids. A token of probability 0 is never drawn.
    """
    rows, size = logits.shape
    together = max(1, IN_CACHE // size) if logits.device.type == "cpu" else rows
    sums = torch.cat([_exponentiate(part) for part in logits.split(together)])  # (B, blocks)

    block = _invert(sums, uniforms[:, :1])
    columns = block * BLOCK + torch.arange(BLOCK, device=logits.device)  # (B, BLOCK)
    weights = logits.gather(1, columns.clamp(max=size - 1))
    weights = torch.where(columns < size, weights, 0)
    return (block * BLOCK + _invert(weights, uniforms[:, 1:2])).squeeze(1)


def _exponentiate(logits: torch.Tensor) -> torch.Tensor:
    """Logits (b, V) become weights in place, the largest 1; their sums by block: (b, blocks)."""
    size = logits.shape[1]
    whole = size // BLOCK * BLOCK
    logits.sub_(logits.amax(1, keepdim=True)).exp_()
    sums = logits[:, :whole].unflatten(1, (-1, BLOCK)).sum(2) if whole else logits[:, :0]
    if whole < size:
        sums = torch.cat([sums, logits[:, whole:].sum(1, keepdim=True)], 1)
    return sums


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The indices at which the cumulative weights (..., n) pass shares of their sum.

    Args:
        weights: not negative: (..., n).
        uniforms: the shares, in [0, 1): (..., m).

    Returns:
        (..., m). Rounding may put a share at the very end, where only weights of 0 are left: the
        last index that carries any weight is taken then.
    """
    cumulative = weights.cumsum(-1)
    shares = uniforms * cumulative[..., -1:]
    passed = cumulative[..., None, :] <= shares[..., None]  # (..., m, n)
    index = passed.sum(-1, dtype=torch.int32)
    places = torch.arange(weights.shape[-1], dtype=torch.int32, device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(-1, keepdim=True)
    return torch.minimum(index, last).long()


def padded(unembedding: torch.Tensor) -> torch.Tensor:
    """The unembedding (V, H) with rows of 0 up to a whole number of blocks."""
    missing = -len(unembedding) % BLOCK
    return torch.nn.functional.pad(unembedding, (0, 0, 0, missing)) if missing else unembedding


def draw_by_proposals(
    model: Model, rough: torch.Tensor, states: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    """One token of each row, proposed by rough logits and taken by float32 ones: (B,).

    Args:
        model: the model.
        rough: its unembedding in bfloat16, `padded`.
        states: normalised states (B, H).
        uniforms: (B, UNIFORMS).
    """
    rows = len(states)
    products = states.bfloat16() @ rough.T  # (B, blocks · BLOCK)
    sums, top = _block_sums(model, products)
    choice, position, acceptance = uniforms.view(rows, TRIES, 3).unbind(2)

    # All proposals of a row at once: the blocks, their rough logits, the tokens in them.
    block = _invert(sums, choice)  # (B, TRIES)
    columns = block[..., None] * BLOCK + torch.arange(BLOCK)  # (B, TRIES, BLOCK)
    logits = capped(model, products.gather(1, columns.flatten(1)).view_as(columns).float())
    weights = torch.where(columns < model.vocab_size, (logits - top[..., None]).exp(), 0)
    place = _invert(weights, position[..., None])  # (B, TRIES, 1)
    token = columns.gather(2, place).squeeze(2)

    # The first that its float32 logit accepts; the last one where none is.
    proposed = logits.gather(2, place).squeeze(2)
    exact = torch.einsum("bh,bth->bt", states.float(), model.unembedding[token].float())
    slack = (top / 128).clamp(min=SLACK)
    is_taken = acceptance < (capped(model, exact) - proposed - slack).exp()
    is_taken[:, -1] = True
    first = is_taken.int().argmax(1, keepdim=True)
    return token.gather(1, first).squeeze(1)


def _block_sums(model: Model, products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the weights of rough logits (B, V) by block, the largest weight 1; the top logits."""
    together = max(1, IN_CACHE // products.shape[1])
    sums: list[torch.Tensor] = []
    tops: list[torch.Tensor] = []
    for part in products.split(together):
        logits = capped(model, part.float())
        top = logits[:, : model.vocab_size].amax(1, keepdim=True)
        weights = logits.sub_(top).exp_()
        weights[:, model.vocab_size :] = 0
        sums.append(weights.unflatten(1, (-1, BLOCK)).sum(2))
        tops.append(top)
    return torch.cat(sums), torch.cat(tops)  # (B, blocks), (B, 1)
