"""The answer `other`, sorted: coherent lists outside the concepts, in groups with names.

A list stands for the mean of its words' rows (`Kinship.sketch`). The most coherent list opens a
group; a list joins the nearest group whose mean lies within `SAME_GROUP` of its own. Groups whose
means have grown together are one in the end, and so are groups of one name. A group's words are
those nearest to its mean, each counted by how many lists have it; English ones name it where there
are enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conceptvec.scoring.kinship import Kinship

SAME_GROUP = 0.5  # cosine of two means from which they are one group
WORDS_IN_NAME, WORDS_SHOWN = 3, 10


@dataclass(frozen=True)
class OtherList:
    """A list that was answered with `other`.

    Attributes:
        id: the pole's name.
        words: token ids of its distinct words, strongest first.
        coherence: mean pairwise cosine of them.
    """

    id: str
    words: np.ndarray
    coherence: float


class Group:
    """Lists of one theme: their names, their words, and the sum of their means."""

    def __init__(self, total: np.ndarray) -> None:
        self.total = total
        self.lists: list[OtherList] = []

    @property
    def mean(self) -> np.ndarray:
        """The direction of the group, of unit length."""
        return _unit(self.total)

    def add(self, other: OtherList, mean: np.ndarray) -> None:
        """Take a list in."""
        self.lists.append(other)
        if len(self.lists) > 1:
            self.total = self.total + mean

    def merge(self, group: Group) -> None:
        """Take another group in."""
        self.lists += group.lists
        self.total = self.total + group.total


def group(
    others: Sequence[OtherList], kinship: Kinship, tokens: Sequence[str]
) -> list[dict[str, Any]]:
    """The groups, largest first: name, central words, lists, and their largest coherence."""
    ordered = sorted(others, key=lambda other: (-other.coherence, other.id))
    groups = _merged(_gathered(ordered, kinship.sketch))
    by_name: dict[str, dict[str, Any]] = {}
    for one in groups:
        words = central_words(one, kinship, tokens)
        name = ", ".join(words[:WORDS_IN_NAME])
        entry = by_name.setdefault(name, {"name": name, "tokens": words, "ids": []})
        entry["ids"] += [other.id for other in one.lists]
        coherence = max(other.coherence for other in one.lists)
        entry["coherence"] = max(coherence, entry.get("coherence", coherence))
    for entry in by_name.values():
        entry["ids"].sort()
    return sorted(by_name.values(), key=lambda entry: (-len(entry["ids"]), entry["name"]))


def _gathered(ordered: Sequence[OtherList], sketch: np.ndarray) -> list[Group]:
    """Every list in the nearest group, or in a new one that it opens."""
    groups: list[Group] = []
    openers = np.zeros((len(ordered), sketch.shape[1]), np.float32)
    for other in ordered:
        mean = _unit(sketch[other.words].sum(0))
        near = openers[: len(groups)] @ mean
        best = int(near.argmax()) if len(groups) else -1
        if best < 0 or near[best] < SAME_GROUP:
            best = len(groups)
            openers[best] = mean
            groups.append(Group(mean))
        groups[best].add(other, mean)
    return groups


def _merged(groups: list[Group]) -> list[Group]:
    """Groups whose means lie within `SAME_GROUP` of a larger group's are taken into it."""
    kept: list[Group] = []
    means = np.zeros((len(groups), len(groups[0].total) if groups else 0), np.float32)
    for one in sorted(groups, key=lambda group: (-len(group.lists), group.lists[0].id)):
        near = means[: len(kept)] @ one.mean
        best = int(near.argmax()) if kept else -1
        if best < 0 or near[best] < SAME_GROUP:
            best = len(kept)
            kept.append(one)
        else:
            kept[best].merge(one)
        means[best] = kept[best].mean
    return kept


def central_words(one: Group, kinship: Kinship, tokens: Sequence[str]) -> list[str]:
    """The words nearest to a group's mean, each by how many of its lists have it, one per lemma."""
    ids, count = np.unique(np.concatenate([o.words for o in one.lists]), return_counts=True)
    near = kinship.sketch[ids] @ one.mean * count
    english = kinship.language[ids] == kinship.english
    # A group has as many English words as others in Gemma's vocabulary; a reader knows them best.
    enough = len(set(kinship.table.lemma[ids[english]].tolist())) >= WORDS_IN_NAME
    foreign = ~english if enough else np.zeros(len(ids), bool)
    words: dict[int, str] = {}
    for i in map(int, ids[np.lexsort((ids, -near, foreign))]):
        token, lemma = tokens[i].strip(), int(kinship.table.lemma[i])
        if lemma not in words or (token.islower() and not words[lemma].islower()):
            words[lemma] = token
        if len(words) >= 2 * WORDS_SHOWN:
            break
    return list(dict.fromkeys(words.values()))[:WORDS_SHOWN]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
