"""How alike two readouts are, from the lists of tokens that a run has kept, without the model.

A list counts as a vector over tokens by their text: its values, and 0 for what is not listed. So
vectors of models of any size can be compared, where the directions themselves stand in spaces that
have nothing to do with each other. Two vectors of two runs are taken for the same if each is the
other's nearest and they are nearer than 99 % of the candidates are to any other of their own run;
of vectors that have nothing to do with each other some 2 % pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

QUANTILE = 0.99
Listed = dict[str, float]  # token → value, of length 1


class Lists:
    """The lists of some candidates, looked up by token.

    Args:
        entries: as the results document holds them.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self.lists = [unit_list(entry) for entry in entries]
        rows: dict[str, list[int]] = {}
        values: dict[str, list[float]] = {}
        for row, listed in enumerate(self.lists):
            for token, value in listed.items():
                rows.setdefault(token, []).append(row)
                values.setdefault(token, []).append(value)
        self._postings = {token: (np.array(rows[token]), np.array(values[token])) for token in rows}

    def cosines(self, listed: Listed) -> np.ndarray:
        """The cosine of one list with each of these: float64 (n,)."""
        sums = np.zeros(len(self.lists))
        for token, value in listed.items():
            if token in self._postings:
                rows, values = self._postings[token]
                sums[rows] += value * values
        return sums

    def nearest_other(self) -> list[float]:
        """For each list its largest cosine with another one of these."""
        nearest = []
        for row, listed in enumerate(self.lists):
            cosines = self.cosines(listed)
            cosines[row] = 0
            nearest.append(float(cosines.max()))
        return nearest


def unit_list(entry: Mapping[str, Any]) -> Listed:
    """The promoted tokens of a pole with the sizes of their values, of length 1 in all."""
    sizes: Listed = {}
    for token, value in entry["top_tokens"]:
        sizes[token] = sizes.get(token, 0.0) + abs(value or 0.0)
    length = float(np.linalg.norm(list(sizes.values()))) or 1.0
    return {token: size / length for token, size in sizes.items()}


def cosine(entry: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The cosine of two lists."""
    listed, others = unit_list(entry), unit_list(other)
    return sum(value * others.get(token, 0.0) for token, value in listed.items())


def same_vectors(first: Lists, other: Lists) -> tuple[list[tuple[int, int]], float]:
    """Rows of two runs that hold the same vector.

    Returns:
        the pairs, and the cosine from which on two vectors can be the same.
    """
    if not first.lists or not other.lists:
        return [], 1.0
    smallest = float(np.quantile([*first.nearest_other(), *other.nearest_other()], QUANTILE))
    pairs = [
        (row, column) for row, column, value in _mutually_nearest(first, other) if value > smallest
    ]
    return pairs, smallest


def _mutually_nearest(first: Lists, other: Lists) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows each of which is the other's nearest, with their cosine."""
    nearest = np.zeros(len(first.lists), int)
    best_row = np.zeros(len(other.lists), int)
    best_value = np.full(len(other.lists), -1.0)
    for row, listed in enumerate(first.lists):
        cosines = other.cosines(listed)
        nearest[row] = int(cosines.argmax())
        is_better = cosines > best_value
        best_row[is_better], best_value[is_better] = row, cosines[is_better]
    for row, column in enumerate(nearest.tolist()):
        if best_row[column] == row:
            yield row, column, float(best_value[column])
