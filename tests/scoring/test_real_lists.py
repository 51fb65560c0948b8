"""Stage 2 against two blind readers, on lists of the real Gemma 3 270M.

Skips where the model or the lists are not there: ``CONCEPTVEC_GEMMA_270M`` names the model's folder,
``CONCEPTVEC_GEMMA_LISTS`` the file of lists (each with its vector, the readers' labels, and how many
poles of the model it stands for).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conceptvec as cv
from conceptvec.concepts import BUILT_IN, load_concepts
from conceptvec.extraction.poles import make_projector
from conceptvec.scoring.answers import LABELS
from conceptvec.scoring.nulls import NullLists, both_poles, null_lists, null_readouts
from conceptvec.scoring.scorer import Scorer

MODEL = Path(os.environ.get("CONCEPTVEC_GEMMA_270M", "nowhere"))
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "gemma_270m_lists.json"
LISTS = Path(os.environ.get("CONCEPTVEC_GEMMA_LISTS", SHARED))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="CONCEPTVEC_GEMMA_270M names no folder"),
    pytest.mark.skipif(not LISTS.is_file(), reason="CONCEPTVEC_GEMMA_LISTS names no file"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return cv.load_model(cv.Config(model=str(MODEL), device="cpu"))


@pytest.fixture(scope="module")
def lists() -> list[dict[str, Any]]:
    return json.loads(LISTS.read_text(encoding="utf-8"))["lists"]


@pytest.fixture(scope="module")
def answers(model: Any, lists: list[dict[str, Any]]) -> tuple[list[str], list[NullLists]]:
    """What Stage 2 says of each list, and of the model's null directions."""
    config = cv.Config(model=str(MODEL), device="cpu")
    projector, tokens, masked = make_projector(model, config.top_k)
    hidden = masked.numpy()
    concepts = load_concepts(None, with_prompts=False)
    scorer = Scorer(tokens, hidden, model.unembedding, concepts, config.score_threshold)
    layers, shown = range(model.n_layers), int((~masked).sum())
    readouts = null_readouts(
        model, layers, hidden, config.top_k, fold=config.fold, seed=config.seed
    )
    nulls = null_lists(scorer, layers, readouts, shown)
    labels = []
    for one in lists:
        layer, neuron, pole = re.fullmatch(r"L(\d+)_N(\d+)([+-])", one["vector"]).groups()
        direction = model.folded(
            model.value_vectors(int(layer))[int(neuron)][None].float(), int(layer), config.fold
        )
        ids, standout = both_poles(projector(direction), shown)
        row = 0 if pole == "+" else 1
        assert [tokens[i] for i in ids[row]] == one["tokens"]
        null = nulls[int(layer)].coherence
        label = int(scorer(ids[row][None], standout[row : row + 1], null).label[0])
        labels.append(scorer.names[label] if label >= 0 else LABELS[label])
    return labels, nulls


def readers(one: dict[str, Any]) -> list[str]:
    return [reader["label"] for reader in one["readers"]]


def recall(labels: list[str], lists: list[dict[str, Any]], sure: bool) -> float:
    """The weighted part of what both readers give to a concept that Stage 2 gives to it too."""
    found = total = 0.0
    for label, one in zip(labels, lists, strict=True):
        first, second = readers(one)
        if first != second or first not in BUILT_IN:
            continue
        if sure and not all(reader["sure"] for reader in one["readers"]):
            continue
        total += one["weight"]
        found += one["weight"] * (label == first)
    return found / total


def test_what_it_calls_a_concept_a_reader_calls_so_too(answers: Any, lists: Any) -> None:
    pairs = [
        (label, one) for label, one in zip(answers[0], lists, strict=True) if label in BUILT_IN
    ]
    right = sum(label in readers(one) for label, one in pairs)
    print(f"{right} of {len(pairs)} candidates right by a reader")
    assert right >= 0.97 * len(pairs)


@pytest.mark.parametrize(("sure", "least"), [(False, 0.8), (True, 0.9)])
def test_what_both_readers_call_a_concept_is_found(
    answers: Any, lists: Any, sure: bool, least: float
) -> None:
    found = recall(answers[0], lists, sure)
    print(f"weighted recall{' where both are sure' if sure else ''}: {found:.3f}")
    assert found >= least


def test_the_label_is_a_reader_s_label(answers: Any, lists: Any) -> None:
    agree = [label in readers(one) for label, one in zip(answers[0], lists, strict=True)]
    print(f"the label agrees with a reader on {np.mean(agree):.1%} of the lists")
    assert np.mean(agree) >= 0.8


def test_null_directions_are_hardly_ever_a_concept(answers: Any) -> None:
    reached = sum(null.reached for null in answers[1])
    total = sum(len(null.score) for null in answers[1])
    print(f"null directions: {reached} of {total}")
    assert reached <= 0.005 * total
