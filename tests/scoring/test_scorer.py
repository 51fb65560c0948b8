"""The answers with a model: concepts, one word, two themes, another theme, nothing; chance on random weights."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest
import torch
import transformers

import conceptvec as cv
from conceptvec.concepts import Concept, ConceptSet, load_concepts
from conceptvec.extraction.poles import make_projector
from conceptvec.extraction.stage import project_layer
from conceptvec.model.checkpoint import FAMILIES
from conceptvec.model.network import Model
from conceptvec.scoring import evidence as ev
from conceptvec.scoring.answers import LABELS
from conceptvec.scoring.scorer import Scorer
from conceptvec.tools.bench_scoring import bench_scoring
from tests.conftest import ANIMALS, COLORS
from tests.scoring.planted_vocabulary import (
    NEAR,
    NOISE,
    THEME,
    TWO,
    ids_of,
    make_scorer,
    planted,
)

CONCEPTS = load_concepts(None, with_prompts=False)
NULL = np.linspace(-0.05, 0.1, 400)  # coherences of null lists of this vocabulary are about 0


def answer(
    scorer: Scorer, words: list[str], standout: float = 1.0
) -> tuple[str, float, dict[str, float]]:
    """Label, score and components of one list."""
    found = scorer(ids_of(words)[None], np.array([standout]), NULL)
    label = int(found.label[0])
    name = scorer.names[label] if label >= 0 else LABELS[label]
    return name, float(found.score[0]), {k: float(v[0]) for k, v in found.components.items()}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return make_scorer()


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (ANIMALS[:8], "animals"),
        (COLORS[:8], "colors"),
        (NEAR, "animals"),  # none of them listed
        (THEME, "other"),
        (NOISE[:10], "none"),
        (ANIMALS[:4] + COLORS[:4], "mixed"),
        (ANIMALS[:3] + NOISE[:12], "none"),
    ],
)
def test_the_answers(scorer: Scorer, words: list[str], label: str) -> None:
    assert answer(scorer, words)[0] == label


def test_a_list_that_does_not_stand_out_needs_more_of_its_concept(scorer: Scorer) -> None:
    words = [w for pair in zip(ANIMALS[:5], NOISE[:5], strict=True) for w in pair] + NOISE[5:10]
    assert answer(scorer, words, standout=1.0)[0] == "animals"
    assert answer(scorer, words, standout=0.0)[0] != "animals"


def test_the_score_is_recomputed_from_the_components(scorer: Scorer) -> None:
    _, score, parts = answer(scorer, [*ANIMALS[:6], *NOISE[:4]], standout=0.4)
    logit = 4.75 + 4.5 * np.log(parts["share"] + 0.02) + 2.15 * parts["standout"]
    expected = min(parts["words"] / 3, 1) / (1 + np.exp(-logit))
    if parts["rival_share"] > 0.8 * parts["share"]:
        expected /= 2
    assert score == pytest.approx(expected)


def test_coherence_is_the_mean_pairwise_cosine(scorer: Scorer) -> None:
    words = [*ANIMALS[:6], *NOISE[:4]]
    rows = scorer.kinship.sketch[ids_of(words)]
    cosines = (rows @ rows.T)[~np.eye(10, dtype=bool)]
    parts = answer(scorer, words)[2]
    assert parts["coherence"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert parts["coherence_percentile"] == pytest.approx((parts["coherence"] > NULL).mean())


def test_a_word_of_two_concepts_belongs_to_neither() -> None:
    word = NEAR[0]
    both = [Concept(c.name, {"en": (*c.words["en"], word)}) for c in TWO.concepts]
    table = make_scorer(ConceptSet(tuple(both), ())).table
    listed = make_scorer().table.weight[ids_of(ANIMALS)].max(1)
    assert table.weight[ids_of([word])].max() < 1 == listed.min()


def test_the_order_of_concepts_changes_nothing() -> None:
    one, two = make_scorer(CONCEPTS), make_scorer(ConceptSet(CONCEPTS.concepts[::-1], ()))
    ids = np.random.default_rng(0).integers(0, 500, (200, 30))
    a, b = one(ids, np.ones(200), NULL), two(ids, np.ones(200), NULL)
    assert np.array_equal(a.label, b.label)
    assert np.array_equal(a.score, b.score)


def test_a_list_is_scored_alike_alone_and_among_others(scorer: Scorer) -> None:
    ids = np.random.default_rng(0).integers(0, 500, (100, 30))
    whole, half = scorer(ids, np.ones(100), NULL), scorer(ids[:50], np.ones(50), NULL)
    for name, values in half.components.items():
        assert np.array_equal(values, whole.components[name][:50]), name


def one_word_vocabulary() -> Scorer:
    """Translations of one word by one another, and the forms of it; fillers."""
    generator = torch.Generator().manual_seed(0)
    translations = ["fremd", "вещь", "物事", "الشيء", "τόπος"]
    words = ["thing", "things", "Thing", *translations]
    tokens = [f" {w}" for w in words] + [f" filler{i}" for i in range(3000)]
    rows = torch.randn(len(tokens), 48, generator=generator)
    rows[: len(words)] = 3 * torch.randn(48, generator=generator) + 0.3 * rows[: len(words)]
    return Scorer(tokens, np.zeros(len(tokens), bool), rows, CONCEPTS, 0.75)


def test_one_word_in_many_forms_and_languages_is_lexical() -> None:
    found = one_word_vocabulary()(np.arange(8)[None], np.ones(1), NULL)
    assert LABELS[int(found.label[0])] == "lexical"
    assert found.components["one_word"][0] > 0.73


def test_one_sign_is_lexical_and_many_signs_are_nothing() -> None:
    tokens = [",", ",,", " ,", ",(", ";", "!", "?", "%"] + [f" filler{i}" for i in range(300)]
    rows = torch.randn(len(tokens), 16, generator=torch.Generator().manual_seed(0))
    scorer = Scorer(tokens, np.zeros(len(tokens), bool), rows, CONCEPTS, 0.75)
    lists = scorer(np.array([[0, 1, 2, 3], [0, 4, 5, 6]]), np.ones(2), NULL)
    assert [LABELS[int(label)] for label in lists.label] == ["lexical", "none"]


def random_demo(intermediate: int = 100, seed: int = 0) -> Model:
    """A Gemma 3 of random weights with the demo's vocabulary and width."""
    folder = resources.files("conceptvec").joinpath("data", "demo")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    config = transformers.Gemma3TextConfig(**json.loads(folder.joinpath("config.json").read_text()))
    config.intermediate_size, config.num_hidden_layers = intermediate, 2
    config.layer_types = config.layer_types[:2]
    torch.manual_seed(seed)
    hf = transformers.Gemma3ForCausalLM(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.normal_()
    family = FAMILIES["gemma3_text"]
    return Model(hf.eval(), tokenizer, "random", None, family, torch.device("cpu"), torch.float32)


def test_random_weights_find_nothing() -> None:
    """None of 400 poles of a random model reaches the threshold, in the vocabulary of the demo."""
    model, config = random_demo(), cv.Config(device="cpu", max_vectors=None)
    projector, texts, masked = make_projector(model, config.top_k)
    scorer = Scorer(texts, masked.numpy(), model.unembedding, CONCEPTS, config.score_threshold)
    shown, reached = int((~masked).sum()), []
    for layer in range(model.n_layers):
        found = project_layer(model, projector, layer, config)
        for pole, sign in (("+", 1), ("-", -1)):
            ids, values = found.pole(pole)
            standout = ev.standout(sign * values, sign * found.mean, found.variance, shown)
            reached += (scorer(ids, standout).label >= 0).tolist()
    assert len(reached) == 400
    assert sum(reached) == 0


def test_the_unembedding_of_any_precision_gives_the_same_answers() -> None:
    tokens, rows = planted()
    exact = make_scorer()
    rounded = Scorer(tokens, np.zeros(len(tokens), bool), rows.bfloat16(), TWO, 0.75)
    ids = np.stack([ids_of(words[:8]) for words in (ANIMALS, COLORS, THEME, NOISE)])
    assert np.array_equal(exact(ids, np.ones(4), NULL).label, rounded(ids, np.ones(4), NULL).label)


def test_the_bench_runs() -> None:
    found = bench_scoring(layers=1, vocabulary=40_000, hidden=160)  # wider than the sketch
    assert found["lists"] == 2 * 6912
    assert found["reached"] <= 0.01
