"""Passages: running text as token ids, in arrays that are one part of the run folder.

Two things hold for every passage, whoever wrote it:

1. It begins as the tokenizer begins a text: with BOS where its own encoding puts one.
2. It ends where a word ends, so that its last token may be a target like any other. Longer texts
   are cut there, and the model's texts are cut back to the last such place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

MAX_TOKENS = 128  # of a passage, its start included
LEAD_IN = 4  # tokens of a text that was read, which give the first target something to follow from


@dataclass(frozen=True)
class Passages:
    """N passages, one after the other.

    Attributes:
        ids: every passage's tokens, the tokenizer's start first: int32 (sum of the lengths,).
        lengths: int32 (N,).
        scored_from: index of the first token that may be a target, at least 1: int32 (N,).
        documents: the line, record or written text that a passage comes from: int32 (N,).
    """

    ids: np.ndarray
    lengths: np.ndarray
    scored_from: np.ndarray
    documents: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def passage(self, index: int) -> np.ndarray:
        """The tokens of one passage: a view of `ids`."""
        start = int(self.starts[index])
        return self.ids[start : start + int(self.lengths[index])]

    @property
    def starts(self) -> np.ndarray:
        """Where each passage begins in `ids`: int64 (N,)."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    @property
    def tokens(self) -> int:
        """How many tokens may be scored."""
        return int((self.lengths - self.scored_from).sum())

    @property
    def digest(self) -> str:
        """SHA-256 over all that the passages are."""
        digest = hashlib.sha256()
        for name, values in sorted(self.arrays().items()):
            digest.update(f"{name} {len(values)} ".encode())
            digest.update(np.ascontiguousarray(values, "<i4").tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """The passages as the arrays of one part."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: dict[str, Any]) -> Passages:
        """The inverse of `arrays`."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    @classmethod
    def of_lists(
        cls,
        passages: Sequence[Sequence[int] | np.ndarray],
        scored_from: Sequence[int],
        documents: Sequence[int],
    ) -> Passages:
        """Passages from lists of token ids."""
        flat = [np.asarray(ids, np.int32) for ids in passages]
        return cls(
            ids=np.concatenate([np.zeros(0, np.int32), *flat]),
            lengths=np.array([len(ids) for ids in flat], np.int32),
            scored_from=np.asarray(scored_from, np.int32).reshape(-1),
            documents=np.asarray(documents, np.int32).reshape(-1),
        )

    def take(self, indices: np.ndarray) -> Passages:
        """Passages by index, in the order asked for; documents keep their numbers."""
        starts = self.starts
        pieces = [self.ids[starts[i] : starts[i] + self.lengths[i]] for i in indices]
        return Passages(
            ids=np.concatenate([np.zeros(0, np.int32), *pieces]),
            lengths=self.lengths[indices],
            scored_from=self.scored_from[indices],
            documents=self.documents[indices],
        )


def joined(parts: Iterable[Passages], renumber: bool = True) -> Passages:
    """Parts one after the other.

    Args:
        parts: the parts.
        renumber: give every part document numbers of its own; False where they have them already.
    """
    columns = [Passages.of_lists([], [], [])]
    next_document = 0
    for part in parts:
        documents = part.documents + next_document if renumber else part.documents
        columns.append(replace(part, documents=documents.astype(np.int32)))
        next_document = int(documents.max(initial=next_document - 1)) + 1
    names = [field.name for field in fields(Passages)]
    return Passages(**{name: np.concatenate([getattr(c, name) for c in columns]) for name in names})


def cut(
    ids: Sequence[int], start: Sequence[int], continues: np.ndarray, longest: int = MAX_TOKENS
) -> list[list[int]]:
    """One text as passages that each begin with `start` and end where a word ends.

    Args:
        ids: the text's tokens, without a start.
        start: the tokenizer's start.
        continues: whether a token goes on with the word before it: bool (V,).
        longest: most tokens of a passage.

    A run of tokens without any such place is cut where it is full.
    """
    room = max(longest - len(start), 1)
    flags = continues[np.asarray(ids, np.int64)] if len(ids) else np.zeros(0, bool)
    passages: list[list[int]] = []
    begin = 0
    while begin < len(ids):
        end = min(begin + room, len(ids))
        if end < len(ids):
            boundaries = np.flatnonzero(~flags[begin + 1 : end + 1])
            end = begin + 1 + int(boundaries[-1]) if len(boundaries) else end
        passages.append([*start, *ids[begin:end]])
        begin = end
    return passages
