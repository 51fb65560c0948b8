"""The cloze prompts against edits of the weights; vectors of one layer share its clean state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conceptvec.concepts import Prompt
from conceptvec.validation.transfer import (
    PromptTable,
    measure_transfer,
    split_answer,
    transfer_entry,
)
from tests.conftest import ANIMALS, COLORS
from tests.validation.test_damage import brute, edited
from tests.validation.test_measure import LAYER, own, setting_of


def prompts(cue: str, answers: list[str]) -> list[Prompt]:
    return [Prompt(f"w{i} w{i + 1} {cue}", f" {answers[i]}") for i in range(5)]


ALL = {
    "animals": prompts("zoo", ANIMALS),
    "colors": prompts("paint", COLORS),
    "neutral": [Prompt(f"w{i} w{i + 3}", f" w{i + 7}") for i in range(6)],
}


@torch.inference_mode()
def distribution(model, ids: list[int]) -> np.ndarray:
    logits = model.hf(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits.double().log_softmax(0).numpy()


def test_drops_and_divergence_equal_edits_of_the_weights(tiny) -> None:
    setting = setting_of(tiny)
    table = PromptTable.build(tiny, ALL, 7, chat=False)
    assert table is not None
    subjects = [own(3), own(11)]
    measured = measure_transfer(table, subjects, ["animals", "animals"], setting, 0)
    texts = [split_answer(tiny, prompt) for group in ALL.values() for prompt in group]
    for subject, arrays in zip(subjects, measured, strict=True):
        neutral = [list(texts[i].ids[: texts[i].start]) for i in table.members["neutral"]]
        clean = [brute(tiny, text) for text in texts]
        undamaged = [distribution(tiny, ids) for ids in neutral]
        nothing = torch.zeros(tiny.hidden_size)
        with edited(tiny, LAYER, subject.neuron, nothing):
            drops = np.array(clean) - [brute(tiny, text) for text in texts]
            damaged = [distribution(tiny, ids) for ids in neutral]
        divergence = [(np.exp(p) * (p - q)).sum() for p, q in zip(undamaged, damaged, strict=True)]
        assert np.abs(arrays["own"] - drops[list(table.members["animals"])]).max() < 1e-4
        assert np.abs(arrays["unrelated"] - drops[list(table.members["colors"])]).max() < 1e-4
        assert np.abs(arrays["divergence"] - divergence).max() < 1e-5
        assert np.abs(arrays["own"]).max() > 1e-3

        entry = transfer_entry(arrays)
        assert entry is not None and entry["n"] == 5
        assert entry["neutral_kl"] == pytest.approx(np.mean(divergence), abs=1e-5)


def test_company_in_the_layer_changes_nothing(tiny) -> None:
    setting = setting_of(tiny)
    table = PromptTable.build(tiny, ALL, 7, chat=False)
    assert table is not None
    together = measure_transfer(table, [own(3), own(11)], ["animals", "colors"], setting, 0)
    for subject, concept, arrays in zip(
        (own(3), own(11)), ("animals", "colors"), together, strict=True
    ):
        (alone,) = measure_transfer(table, [subject], [concept], setting, 0)
        for name, values in alone.items():
            assert (values == arrays[name]).all()
