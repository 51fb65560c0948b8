"""What the pass leaves behind: sums over rows per distinct word, and over positions per neuron.

Parts of a text are added in a fixed order, so that a resumed run and several processes come to the
same bytes. All effects are kept as sums over the rows of a word. Mean ablation is linear in them:
with the mean ā of a pole's part over the whole text, known only at the end, it is
``zero − ā · gradient``.

Memory: 20 bytes per word and neuron, half of that on disk. With 1,000 words Gemma 3 270M takes .74
GB and the 1B 3.6 GB; a part takes as much for the words in it alone (128 passages of the 270M: some
130 words, 48 MB on disk; of the 1B 234 MB).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

Arrays = dict[str, Any]
POLES = ("+", "-")


@dataclass(frozen=True)
class Effects:
    """Sums over the rows of a part of the text, or of all of it.

    Attributes:
        layers: the layers' numbers in the model.
        words: int32 (n,), the words that have rows, ascending.
        rows: int32 (n,), how many.
        zero: float32 (L, 2, n, I), Σ_{t>0} of the pole's part × gradient; poles + and −.
        gradient: float32 (L, n, I), Σ_{t>0} of the gradient.
        firing: float32 (L, 2, n, I), the pole's positive activation where the word is predicted.
        moved: float32 (n, M), Σ_{t>0} of the receiver's positive activation × the gradient along
            the source's pole.
        occurrences: int32 (m, 2), passage and position of every occurrence that the pass looked at.
        better: int32 (m,), unmasked tokens with a larger logit than the word's.
        log_p: float32 (m,), the word's log-probability in nats.
        chosen: bool (m,), whether the occurrence became a row.
    """

    layers: tuple[int, ...]
    words: np.ndarray
    rows: np.ndarray
    zero: np.ndarray
    gradient: np.ndarray
    firing: np.ndarray
    moved: np.ndarray
    occurrences: np.ndarray
    better: np.ndarray
    log_p: np.ndarray
    chosen: np.ndarray

    def arrays(self) -> Arrays:
        """The record as arrays of one part of a run folder; the large ones layer by layer, packed.

        A part is used as `of_arrays` gives it back, whether it was computed or read, so that a
        resumed run comes to the same bytes.
        """
        out: Arrays = {"about_json": {"layers": list(self.layers)}}
        for name in PLAIN:
            out[name] = getattr(self, name)
        for name in LAYERED:
            for layer, values in zip(self.layers, getattr(self, name), strict=True):
                out[f"{name}.{layer}"], out[f"{name}_scale.{layer}"] = packed(values)
        return out

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Effects:
        """The inverse of `arrays`."""
        layers = tuple(arrays["about_json"]["layers"])
        values = {name: arrays[name] for name in PLAIN}
        for name in LAYERED:
            pieces = [(arrays[f"{name}.{n}"], arrays[f"{name}_scale.{n}"]) for n in layers]
            values[name] = np.stack([unpacked(*piece) for piece in pieces])
        return cls(layers, **values)

    def seen(
        self, occurrences: np.ndarray, better: np.ndarray, log_p: np.ndarray, chosen: np.ndarray
    ) -> Effects:
        """The same with what was looked at, and without words that have no rows."""
        kept = self.rows > 0
        return replace(
            self,
            words=self.words[kept],
            rows=self.rows[kept],
            zero=self.zero[:, :, kept],
            gradient=self.gradient[:, kept],
            firing=self.firing[:, :, kept],
            moved=self.moved[kept],
            occurrences=occurrences,
            better=better,
            log_p=log_p,
            chosen=chosen,
        )

    def index(self, word: np.ndarray) -> np.ndarray:
        """Rows of the arrays that belong to words; every one must be there."""
        return np.searchsorted(self.words, word)


LAYERED = ("zero", "gradient", "firing")
SEEN = ("occurrences", "better", "log_p", "chosen")
PLAIN = tuple(f.name for f in fields(Effects) if f.name not in (*LAYERED, "layers"))


def packed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (…, n, I) as float16 in units of each word's largest, and that largest (…, n, 1)."""
    scale = np.abs(values).max(-1, keepdims=True, initial=0.0)
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return (values / scale).astype(np.float16), scale


def unpacked(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The inverse of `packed`, to 2^-11 of each value, or of the word's largest by 16,000."""
    return values.astype(np.float32) * scale


def empty(layers: Sequence[int], words: np.ndarray, neurons: int, moved: int) -> Effects:
    """No rows yet, with place for the given words."""
    n, n_layers = len(words), len(layers)
    return Effects(
        tuple(layers),
        words.astype(np.int32),
        np.zeros(n, np.int32),
        np.zeros((n_layers, 2, n, neurons), np.float32),
        np.zeros((n_layers, n, neurons), np.float32),
        np.zeros((n_layers, 2, n, neurons), np.float32),
        np.zeros((n, moved), np.float32),
        np.zeros((0, 2), np.int32),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        np.zeros(0, bool),
    )


def add(parts: Iterable[Effects]) -> Effects:
    """The parts added in the order in which they come, over all words that any of them has."""
    parts = list(parts)
    words = np.unique(np.concatenate([part.words for part in parts]))
    total = empty(parts[0].layers, words, parts[0].gradient.shape[2], parts[0].moved.shape[1])
    for part in parts:
        at = total.index(part.words)
        total.rows[at] += part.rows
        total.moved[at] += part.moved
        total.gradient[:, at] += part.gradient
        total.zero[:, :, at] += part.zero
        total.firing[:, :, at] += part.firing
    looked_at = {name: np.concatenate([getattr(part, name) for part in parts]) for name in SEEN}
    return replace(total, **looked_at)
