"""Which rows of the unembedding may be shown, and how a token is written.

Masked are rows that cannot be shown or were never trained: special tokens, ``<unusedN>``, byte
tokens and bytes that are no text, ids beyond the tokenizer or the matrix, and rows whose norm is
below a tenth of the median norm.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from conceptvec.errors import RequestError
from conceptvec.model.weights import Weights

LOW_NORM = 0.1  # share of the median row norm under which a row counts as untrained
_HIDDEN = re.compile(r"(<0x[0-9A-F]{2}>)+|<unused\d+>")
_MARKUP = re.compile(r"<.*>|\[.*\]", re.DOTALL)
_BYTE = re.compile("[\udc80-\udcff]")  # as Python writes a byte that is no text


def token_texts(model: Weights) -> list[str]:
    """All tokens as the tokenizer writes them; ids without a token are empty.

    ▁ is shown as a space. Byte-level tokenizers write every byte as a letter (``Ġ`` is a space):
    their tokens are decoded, and bytes that are no text by themselves become ``<0xE7>``, as other
    tokenizers write them.
    """
    texts = written_tokens(model.tokenizer, model.vocab_size)
    if is_byte_level(texts):
        letters = byte_letters()
        added = added_ids(model.tokenizer)
        texts = [
            text if number in added else _decoded(text, letters)
            for number, text in enumerate(texts)
        ]
    return [text.replace("▁", " ") for text in texts]


def written_tokens(tokenizer: Any, size: int) -> list[str]:
    """The first `size` ids as the tokenizer writes them; ids that it does not have are empty.

    A vocabulary may have holes, so how many tokens there are says nothing of the largest id.
    """
    texts = [""] * size
    for token, number in tokenizer.get_vocab().items():
        if 0 <= number < size:
            texts[number] = str(token)
    return texts


def added_ids(tokenizer: Any) -> set[int]:
    """The tokens that were added to a vocabulary; these are written as plain text in any."""
    return set(getattr(tokenizer, "added_tokens_decoder", {}))


def start_of_text(tokenizer: Any) -> list[int]:
    """What the tokenizer's own encoding puts in front of a text: ``[BOS]``, or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return list(full[: full.index(bare[0])]) if bare and bare[0] in full else []


def empty_opening(tokenizer: Any) -> list[int]:
    """What stands before a text that begins with nothing: its start, or its bos or eos token.

    A tokenizer without any of them gives an empty list: there is nothing to begin with.
    """
    start = start_of_text(tokenizer)
    if start:
        return start
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [mark for mark in marks if mark is not None][:1]


def is_byte_level(texts: list[str]) -> bool:
    """Whether tokens are written byte by byte: more of them start with ``Ġ`` than with ▁."""
    return sum(text[:1] == "Ġ" for text in texts) > sum(text[:1] == "▁" for text in texts)


def byte_letters() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: which byte a letter stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    return letters | {chr(256 + number): byte for number, byte in enumerate(rest)}


def _decoded(text: str, letters: dict[str, int]) -> str:
    """The text that byte letters stand for; a special token with other letters stays."""
    if not all(letter in letters for letter in text):
        return text
    decoded = bytes(letters[letter] for letter in text).decode("utf-8", errors="surrogateescape")
    return _BYTE.sub(lambda byte: f"<0x{ord(byte[0]) - 0xDC00:02X}>", decoded)


def _special_ids(tokenizer: Any) -> set[int]:
    """The tokens that are no text: special ones, and added ones in brackets, such as ``<table>``.

    Other added tokens are words like any.
    """
    special = set(tokenizer.all_special_ids)
    for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if token.special or _MARKUP.fullmatch(token.content.strip()):
            special.add(number)
    return special


def masked_tokens(model: Weights, texts: list[str]) -> torch.Tensor:
    """The masked rows: bool (vocab_size,) on the CPU."""
    special = _special_ids(model.tokenizer)
    named = [
        not text.strip() or i in special or bool(_HIDDEN.fullmatch(text.strip()))
        for i, text in enumerate(texts)
    ]
    parts = model.unembedding.split(2**14)  # no copy of the whole matrix in another precision
    norms = torch.cat([torch.linalg.vector_norm(rows.float(), dim=1).cpu() for rows in parts])
    named_mask = torch.tensor(named)
    if named_mask.all():
        raise RequestError(
            f"--model: {model.name} has no token that can be shown; "
            "its tokenizer is another model's"
        )
    return named_mask | (norms < LOW_NORM * norms[~named_mask].median())
