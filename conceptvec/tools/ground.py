"""What planted vectors stand on: a text, and the concepts' words that the model knows in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.config import Config, parse_layers
from conceptvec.effects.running_text import RunningText
from conceptvec.effects.scan_record import Scan
from conceptvec.effects.stage import running_text, scan_text
from conceptvec.errors import RequestError
from conceptvec.extraction.activations import capturing
from conceptvec.model.vocabulary import masked_tokens, token_texts
from conceptvec.runfolder import Parts
from conceptvec.tools.planting import text_hashes
from conceptvec.validation.further import Run
from conceptvec.validation.positions import own_positions
from conceptvec.validation.rule import RULE
from conceptvec.validation.stage import run_on

if TYPE_CHECKING:
    from conceptvec.model.network import Model

MOST_PLANTED = 0.5  # of a layer's neurons
LOOKED_AT = 64  # passages from which it is told which neurons write least


@dataclass(frozen=True)
class Ground:
    """What all rounds of a calibration share: the text, and the undamaged model on it.

    Attributes:
        model: the model.
        text: the running text.
        run: Stage 3 on a scan of the model as it is, over its last layer alone.
        hashes: of the beginning that ends at each token: int64 (tokens,).
        before_words: the plantable concepts, each with the positions before its known words, int64.
        not_planted: name of a concept → why nothing can be planted for it.
    """

    model: Model
    text: RunningText
    run: Run
    hashes: np.ndarray
    before_words: dict[int, np.ndarray]
    not_planted: dict[str, str]

    @property
    def scan(self) -> Scan:
        """The scan of the model as it is."""
        return self.run.scan

    @property
    def names(self) -> tuple[str, ...]:
        """All concepts that the text was searched for."""
        return self.scan.concepts

    @property
    def concepts(self) -> list[int]:
        """The numbers of those for which something is planted."""
        return list(self.before_words)

    @property
    def not_first(self) -> np.ndarray:
        """Whether a token is not the first of its passage: bool (tokens,)."""
        later = np.ones(len(self.text.passages.ids), bool)
        later[self.text.passages.starts] = False
        return later

    @cached_property
    def known_tokens(self) -> np.ndarray:
        """The tokens that are known words of any concept somewhere in the text, ascending."""
        seen, passages = self.scan.seen, self.text.passages
        return np.unique(passages.ids[passages.starts[seen.passage] + seen.position][seen.known])

    def is_word_of(self, concept: int) -> np.ndarray:
        """Which of the `known_tokens` are words of a concept: bool (n,)."""
        words = self.text.words
        return words.word_concept[words.token_word[self.known_tokens]] == concept

    def facts(self, corpus: str) -> dict[str, Any]:
        """What the document says of the text."""
        passages = self.text.passages
        known_words = self.run.text.known_words
        return {
            "corpus": corpus,
            "digest": passages.digest,
            "passages": len(passages),
            "tokens": len(passages.ids),
            "known_words": {self.names[c]: known_words(c) for c in self.text.run_concepts},
        }


def survey(model: Model, config: Config, parts: Parts) -> Ground:
    """Text, known words, and the concepts for which something can be planted.

    Raises:
        RequestError: there is none, or the corpus cannot be read.
    """
    parts.bind(config, model.facts(), ())
    concepts = parts.concepts(config, with_prompts=False)
    masked = masked_tokens(model, token_texts(model)).numpy()
    text = running_text(model, config, concepts, masked, parts)
    # The last layer alone: what is wanted is which words the model knows where.
    scan = scan_text(text, model, config, [model.n_layers - 1], [], parts)
    run = run_on(scan, config, Parts())

    before_words: dict[int, np.ndarray] = {}
    not_planted: dict[str, str] = {}
    known = np.flatnonzero(run.text.target >= 0)
    concept_of = run.text.word_concept[run.text.target[known]]
    for concept in text.run_concepts:
        at = known[concept_of == concept]
        if reason := _why_not(run, concept, at):
            not_planted[scan.concepts[concept]] = reason
        else:
            before_words[concept] = at
    if not before_words:
        name, reason = next(iter(not_planted.items()))
        raise RequestError(
            f"calibrate: nothing can be planted for any of {len(not_planted)} concepts ({name}: "
            f"{reason}); give more --corpus-tokens, another --corpus or other --concepts"
        )
    # Controls and random neurons stand on what is left of a layer.
    most = int(model.intermediate_size * MOST_PLANTED)
    if len(before_words) > most:
        raise RequestError(
            f"calibrate: {len(before_words)} concepts to plant for, expected at most {most} of "
            f"the {model.intermediate_size} neurons of a layer; give fewer --concepts"
        )
    hashes = text_hashes(text.passages)
    return Ground(model, text, run, hashes, before_words, not_planted)


def _why_not(run: Run, concept: int, before_words: np.ndarray) -> str | None:
    """Why a vector planted for a concept could not be judged on this text; None where it could."""
    words = run.text.known_words(concept)
    if words < RULE.known_words:
        return f"{words} known words in the text, {RULE.known_words - words} too few"
    everywhere = np.zeros(len(run.text.target), np.float32)
    everywhere[before_words] = 1.0
    words_of_concept = np.unique(run.text.target[before_words])
    of_concept = len(own_positions(run.text, everywhere, words_of_concept)[0])
    if of_concept < RULE.positions:
        return f"{of_concept} own positions in the text, {RULE.positions - of_concept} too few"
    if not run.scan.contrast.against[concept].any():
        return "no other concept has known words in the text to compare it with"
    return None


def planting_layers(config: Config, n_layers: int) -> list[int]:
    """The upper half of the chosen layers, without the model's last.

    Raises:
        RequestError: none is left.
    """
    chosen = parse_layers(config.layers, n_layers)
    below_last = [layer for layer in chosen if layer < n_layers - 1]
    if not below_last:
        raise RequestError(
            f"--layers: got {config.layers!r}, expected one below the last of the model's "
            f"{n_layers} layers: calibrate plants its vectors there"
        )
    upper = [layer for layer in below_last if layer >= chosen[len(chosen) // 2]]
    return upper or below_last[-1:]


@torch.inference_mode()
def quietest(model: Model, layer: int, text: RunningText) -> list[int]:
    """The neurons of a layer by what they write on the beginning of a text, least first."""
    total = torch.zeros(model.intermediate_size, device=model.device)

    def add(_: int, a: torch.Tensor) -> None:
        total.add_(a[0, 1:].abs().float().sum(0))

    with capturing(model, [layer], add):
        for number in range(min(len(text.passages), LOOKED_AT)):
            ids = torch.from_numpy(text.passages.passage(number).astype(np.int64))
            model.decoder(input_ids=ids[None].to(model.device), use_cache=False)
    norms = torch.linalg.vector_norm(model.value_vectors(layer).float(), dim=1)
    return (total * norms).argsort(stable=True).tolist()
