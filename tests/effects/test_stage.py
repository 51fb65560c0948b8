"""The running text of a run: as much as was asked for, whoever writes it."""

from __future__ import annotations

import numpy as np
import pytest

import conceptvec as cv
from conceptvec.concepts import load_concepts
from conceptvec.effects.stage import running_text
from conceptvec.runfolder import Parts

TOKENS = 20_000


@pytest.mark.whole
def test_texts_that_end_early_are_made_up_for() -> None:
    """The demo has learnt from single sentences: half of the tokens are missing at first."""
    config = cv.Config(device="cpu", corpus_tokens=TOKENS)
    model = cv.load_model(config)
    nothing_masked = np.zeros(model.vocab_size, bool)
    concepts = load_concepts(None, with_prompts=False)
    text = running_text(model, config, concepts, nothing_masked, Parts())
    assert text.passages.tokens > 0.9 * TOKENS
