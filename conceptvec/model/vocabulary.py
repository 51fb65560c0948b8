"""Which rows of the unembedding may be shown, and how a token is written.

Masked are rows that cannot be shown or were never trained: special tokens, ``<unusedN>``, byte tokens, ids beyond the
tokenizer or the matrix, and rows whose norm is below a tenth of the median norm.
"""

from __future__ import annotations

import re

import torch

from conceptvec.errors import RequestError
from conceptvec.model.weights import Weights

LOW_NORM = 0.1  # share of the median row norm under which a row counts as untrained
_HIDDEN = re.compile(r"<(0x[0-9A-F]{2}|unused\d+)>")


def token_texts(model: Weights) -> list[str]:
    """All tokens as the tokenizer writes them, ▁ shown as a space; ids without a token are empty."""
    size = min(model.vocab_size, len(model.tokenizer))
    texts = [str(t or "") for t in model.tokenizer.convert_ids_to_tokens(list(range(size)))]
    return [t.replace("▁", " ") for t in texts] + [""] * (model.vocab_size - size)


def masked_tokens(model: Weights, texts: list[str]) -> torch.Tensor:
    """The masked rows: bool (vocab_size,) on the CPU."""
    special = set(model.tokenizer.all_special_ids) | set(
        getattr(model.tokenizer, "added_tokens_decoder", {})
    )
    named = [
        not t.strip() or i in special or bool(_HIDDEN.fullmatch(t)) for i, t in enumerate(texts)
    ]
    parts = model.unembedding.split(2**14)  # no copy of the whole matrix in another precision
    norms = torch.cat([torch.linalg.vector_norm(rows.float(), dim=1).cpu() for rows in parts])
    named_mask = torch.tensor(named)
    if named_mask.all():
        raise RequestError(
            f"--model: {model.name} has no token that can be shown; its tokenizer is another model's"
        )
    return named_mask | (norms < LOW_NORM * norms[~named_mask].median())
