"""How much text there should be, how much of each concept it holds, and what it still lacks.

The scan wants `WORDS` distinct words of a concept and `DOCUMENTS` documents with one of them. A
concept that has fewer words in the vocabulary can't give more, and is asked for those that it has.
What a text lacks in the end is said; it is never an error.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from conceptvec.effects.passages import Passages
from conceptvec.effects.target_words import TargetWords, occurrences

logger = logging.getLogger(__name__)

WORDS = 30
DOCUMENTS = 100
# Operations that text and scan may take where the user names no number of tokens: about 20 minutes
# of two cores, 10 of a T4 or a laptop's GPU; and the numbers of tokens that are never left.
BUDGET = {"cpu": 1.6e14, "mps": 6e14, "cuda": 1.5e15}
FEWEST, MOST = 20_000, 240_000
MOST_ON_CPU = 120_000
SMALL_MODEL, SMALL_TOKENS = 5_000_000, 40_000  # parameters of the layers; a toy needs no more


def default_tokens(decoder_parameters: int, unembedding_parameters: int, device: str) -> int:
    """How many tokens are written and scanned by default: whole thousands.

    It depends on the model's size and the kind of device alone, so that the same command gives the
    same results on any machine of a kind.

    Args:
        decoder_parameters: of the layers, without embeddings.
        unembedding_parameters: vocabulary × hidden size.
        device: cpu, mps or cuda.
    """
    # Writing is a forward pass with logits everywhere; the scan takes three and a half passes, with
    # logits at the scored positions, which are few.
    operations = 2 * (4.5 * decoder_parameters + 1.5 * unembedding_parameters)
    kind = device.partition(":")[0]
    most = MOST_ON_CPU if kind == "cpu" else MOST
    tokens = min(max(BUDGET[kind] / max(operations, 1), FEWEST), most)
    return int(tokens // 1000) * 1000


def tokens_of_run(decoder_parameters: int, unembedding_parameters: int, device: str) -> int:
    """`default_tokens`, and fewer for a toy, whose run shall take a minute."""
    if decoder_parameters < SMALL_MODEL:
        return SMALL_TOKENS
    return default_tokens(decoder_parameters, unembedding_parameters, device)


@dataclass(frozen=True)
class Coverage:
    """What a text holds of C concepts.

    Attributes:
        concepts: their names.
        is_seen: whether each distinct word occurs: bool (W,).
        word_concept: the concept of each distinct word: int32 (W,).
        documents: documents with a word of each concept: int64 (C,).
    """

    concepts: tuple[str, ...]
    is_seen: np.ndarray
    word_concept: np.ndarray
    documents: np.ndarray

    @classmethod
    def of(cls, passages: Passages, targets: TargetWords) -> Coverage:
        """Count the target words of a text."""
        targets_there = occurrences(passages, targets)
        is_seen = np.zeros(len(targets.word_concept), bool)
        is_seen[targets_there.word] = True
        concept = targets.word_concept[targets_there.word]
        document = passages.documents[targets_there.passage]
        pairs = np.unique(np.stack([concept, document]), axis=1)
        documents = np.bincount(pairs[0], minlength=len(targets.concepts))
        return cls(targets.concepts, is_seen, targets.word_concept, documents)

    def with_more(self, further: Coverage) -> Coverage:
        """Both texts together, which share no document."""
        is_seen = self.is_seen | further.is_seen
        return replace(self, is_seen=is_seen, documents=self.documents + further.documents)

    @property
    def words(self) -> np.ndarray:
        """Distinct words of each concept that occur: int64 (C,)."""
        return np.bincount(self.word_concept[self.is_seen], minlength=len(self.concepts))

    @property
    def available(self) -> np.ndarray:
        """Distinct words of each concept in the vocabulary: int64 (C,)."""
        return np.bincount(self.word_concept, minlength=len(self.concepts))

    @property
    def missing_words(self) -> np.ndarray:
        """Words that each concept lacks, of those that it has: int64 (C,)."""
        return np.maximum(np.minimum(WORDS, self.available) - self.words, 0)

    @property
    def missing_documents(self) -> np.ndarray:
        """Documents that each concept lacks; none where it has no word: int64 (C,)."""
        return np.where(self.available > 0, np.maximum(DOCUMENTS - self.documents, 0), 0)

    @property
    def is_short(self) -> np.ndarray:
        """Whether a concept lacks words or documents: bool (C,)."""
        return (self.missing_words > 0) | (self.missing_documents > 0)

    def say(self) -> None:
        """Log which concepts the vocabulary and the text are short of."""
        few = [
            f"{name} {available}"
            for name, available in zip(self.concepts, self.available.tolist(), strict=True)
            if available < WORDS
        ]
        if few:
            said = "short of %d words that are single tokens of this model: %s"
            logger.info(said, WORDS, ", ".join(few))
        short = [
            f"{self.concepts[i]} {self.words[i]} in {self.documents[i]}"
            for i in np.flatnonzero(self.is_short)
        ]
        if short:
            said = (
                "for %d of %d concepts the text holds fewer than %d words (or than all that are "
                "single tokens) or fewer than %d documents; give more --corpus-tokens or another "
                "--corpus: %s"
            )
            about = len(short), len(self.concepts), WORDS, DOCUMENTS
            logger.warning(said, *about, ", ".join(short))
