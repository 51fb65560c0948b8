"""Which concepts a text is searched for: the run's own, and built-in ones to compare them with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from conceptvec.concepts import BUILT_IN, Concept, ConceptSet
from conceptvec.effects.statistics import Contrast
from conceptvec.scoring.words import normalise

LEAST_WORDS = 5  # known words that a concept needs to be compared with
SAME_SUBJECT = 0.5  # share of an own concept's words from which a built-in one is the same subject


def with_contrast(own: ConceptSet, built_in: ConceptSet) -> ConceptSet:
    """The run's concepts, and the built-in ones of other names less the words that they share.

    A built-in concept that has half of an own concept's words is the same subject: it is left out.
    """
    names = set(own.names)
    if names >= set(BUILT_IN):
        return own
    own_words = [_words(concept) for concept in own.concepts]
    taken = set[str]().union(*own_words)
    others = []
    for concept in built_in.concepts:
        shared = [len(words & _words(concept)) / max(len(words), 1) for words in own_words]
        if concept.name not in names and max(shared, default=0) < SAME_SUBJECT:
            others.append(_without(concept, taken))
    return replace(own, concepts=(*own.concepts, *others))


def _words(concept: Concept) -> set[str]:
    return {normalise(word) for words in concept.words.values() for word in words}


def _without(concept: Concept, taken: set[str]) -> Concept:
    words = {
        language: tuple(word for word in listed if normalise(word) not in taken)
        for language, listed in concept.words.items()
    }
    return replace(concept, words=words)


def contrast_of(word_concept: np.ndarray, n_concepts: int, own: list[int]) -> Contrast:
    """What each concept is compared with: the others that have enough known words.

    Args:
        word_concept: (n,) concept of each known word of the text.
        n_concepts: of all that are looked for.
        own: the run's concepts, which are taken where no other has enough words.
    """
    enough = np.bincount(word_concept, minlength=n_concepts) >= LEAST_WORDS
    if enough.sum() < 2:
        enough = np.zeros(n_concepts, bool)
        enough[own] = True
    against = np.repeat(enough[None].astype(float), n_concepts, 0)
    np.fill_diagonal(against, 0)
    return Contrast(word_concept, against / np.maximum(against.sum(1, keepdims=True), 1))
