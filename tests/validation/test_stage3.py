"""Prompts, sets, continuations, interruption and broken numbers of Stage 3."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from conceptvec.concepts import BUILT_IN, Prompt, load_concepts
from conceptvec.errors import RequestError, RunError
from conceptvec.scoring.words import lemma, normalise
from conceptvec.tools.bench_validation import bench_validation
from conceptvec.validation.damage import Damage, continuation, damaging
from conceptvec.validation.engine import Engine
from tests.conftest import make_hf, wrap

PROMPTS = [
    Prompt("w1 w2 w3", " dog"),
    Prompt("w5 w6 w7 w8 w9", " red blue"),
    Prompt("w9 w8", " zoo"),
]


@pytest.mark.parametrize("name", [*BUILT_IN, "neutral"])
def test_prompts_keep_their_rules(name: str) -> None:
    prompts = load_concepts(None).prompts()[name]
    assert len(prompts) >= (60 if name == "neutral" else 30)
    assert len({p.prompt for p in prompts}) == len(prompts)
    answers = Counter(p.answer for p in prompts)
    assert len(answers) >= 15
    assert max(answers.values()) <= 4
    for p in prompts:
        assert p.answer.startswith(" ") and not p.prompt.endswith(" ")
        words = {lemma(normalise(w)) for w in p.prompt.replace("-", " ").split()}
        assert name == "neutral" or lemma(normalise(p.answer)) not in words, p


def test_several_layers_damaged_together_equal_an_edit(tiny) -> None:
    engine = Engine(tiny, PROMPTS, 2)
    members = {0: [3, 5], 2: [7]}
    zero = {
        n: [Damage(j, -1.0, 0.0, tiny.value_vectors(n)[j].clone()) for j in some]
        for n, some in members.items()
    }
    with damaging(tiny, zero):
        found = engine.clean(range(3))[0]
    before = engine.clean(range(3))[0]
    keep = {n: tiny.layers[n].mlp.down_proj.weight.clone() for n in members}
    with torch.no_grad():
        for n, some in members.items():
            tiny.layers[n].mlp.down_proj.weight[:, some] = 0
    expected = Engine(tiny, PROMPTS, 2).clean(range(3))[0]
    with torch.no_grad():
        for n, weight in keep.items():
            tiny.layers[n].mlp.down_proj.weight.copy_(weight)
    assert np.abs(found - expected).max() < 1e-5 < np.abs(found - before).max()


def test_continuation_is_greedy_and_damage_changes_it(tiny) -> None:
    text, chances = continuation(tiny, "w1 w2 w3", {}, 10)
    ids = tiny.encode("w1 w2 w3")
    with torch.inference_mode():
        best = int(tiny.hf(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert text.split()[0] == tiny.tokenizer.decode([best]).strip() and best == int(
        chances.argmax()
    )
    assert len(text.split()) <= 10 and abs(float(chances.sum()) - 1) < 1e-5
    push = Damage(0, 0.0, 50.0, tiny.unembedding[tiny.tokenizer.get_vocab()["▁dog"]].clone())
    assert continuation(tiny, "w1 w2 w3", {n: [push] for n in range(4)}, 10)[0] != text


def test_chat_template_puts_the_prompt_into_the_models_turn_with_one_bos(tiny) -> None:
    with pytest.raises(RequestError, match="chat template"):
        tiny.encode("w1", chat=True)
    tiny.tokenizer.chat_template = (
        "{{ bos_token }} w7 {{ messages[0]['content'] }}"
        "{% if add_generation_prompt %} w8{% endif %}"
    )
    ids = tiny.encode(" w1 w2", chat=True)
    assert ids.count(tiny.bos_id) == 1 and ids[0] == tiny.bos_id
    vocabulary = tiny.tokenizer.get_vocab()
    assert ids[-3:] == [vocabulary["▁w8"], vocabulary["▁w1"], vocabulary["▁w2"]]


@pytest.mark.parametrize(
    ("part", "place"), [("mlp.down_proj", "layer 3"), ("self_attn.o_proj", "layer 3")]
)
def test_broken_numbers_above_the_damage_name_their_layer(part: str, place: str) -> None:
    hf = make_hf()
    engine = Engine(wrap(hf), PROMPTS, 5)
    state = engine.state(0, [0])
    with torch.no_grad():
        hf.get_submodule(f"model.layers.3.{part}").weight[0, 0] = float("inf")
    with pytest.raises(RunError, match=f"{place}.*float16"):
        engine.measure(state, [Damage(0, -1.0, 0.0, torch.ones(32))], range(3))


def test_bench_agrees_and_reports(tmp_path) -> None:
    shape = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=6, vocab_size=500, head_dim=16
    )
    found = bench_validation(shape=shape, layers=3, per_layer=1, prompts=6, draws=2, batch_size=8)
    assert found["largest_difference"] < 1e-4
    assert found["layers"] == [0, 2, 5] and found["vectors"] == 3
    assert found["speedup"] == pytest.approx(found["seconds_naive"] / found["seconds_ours"])
    assert found["speedup_adaptive"] > found["speedup"] > 0
