"""Stage 2 with a model: soft hits, coherence, the answers, the null calibration, chance on random weights."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import conceptvec as cv
from conceptvec.concepts import Concept, ConceptSet, load_concepts
from conceptvec.extraction.stage import make_projector, project_layer
from conceptvec.model.network import FAMILIES, Model
from conceptvec.results import Results, check
from conceptvec.scoring import stage as scoring
from conceptvec.tools.bench_scoring import bench_scoring
from tests.conftest import ANIMALS, COLORS

CONCEPTS = load_concepts(None, with_prompts=False)
UNLISTED = [f"zq{i:02d}x" for i in range(40)]  # words of no lexicon


def planted(spread: float = 0.5) -> tuple[list[str], np.ndarray]:
    """A vocabulary whose animals, colours and first ten unlisted words each share a direction: tokens, rows (V, 48).

    Five more unlisted words lie among the animals.
    """
    rng = np.random.default_rng(0)
    words = ANIMALS + COLORS + UNLISTED + [f"vb{i:04d}k" for i in range(5000)]
    rows = rng.normal(size=(len(words), 48))
    centres = rng.normal(size=(3, 48)) * 3
    for i, word in enumerate(words):
        if word in ANIMALS or word in UNLISTED[10:15]:
            rows[i] = centres[0] + spread * rows[i]
        elif word in COLORS:
            rows[i] = centres[1] + spread * rows[i]
        elif word in UNLISTED[:10]:
            rows[i] = centres[2] + spread * rows[i]
    return [f" {w}" for w in words], rows


def make_scorer(concepts: ConceptSet = CONCEPTS) -> scoring.Scorer:
    tokens, rows = planted()
    return scoring.Scorer(
        tokens, np.zeros(len(tokens), bool), torch.tensor(rows, dtype=torch.float32), concepts, 0.75
    )


def ids_of(words: list[str]) -> np.ndarray:
    index = {t.strip(): i for i, t in enumerate(planted()[0])}
    return np.array([index[w] for w in words])


NULL = np.linspace(-0.05, 0.1, 400)  # coherences of null lists of this vocabulary are about 0


def answer(scorer: scoring.Scorer, words: list[str]) -> tuple[str, float, dict[str, float]]:
    found = scorer(ids_of(words)[None], np.zeros(1), NULL)
    label = int(found.label[0])
    name = scorer.names[label] if label >= 0 else scoring.LABELS[label]
    return name, float(found.score[0]), {k: float(v[0]) for k, v in found.components.items()}


def test_the_answers() -> None:
    scorer = make_scorer()
    noise = UNLISTED[20:30]
    assert answer(scorer, ANIMALS[:8])[0] == "animals"
    assert answer(scorer, COLORS[:8])[0] == "colors"
    assert answer(scorer, UNLISTED[:10])[0] == "other"
    assert answer(scorer, noise)[0] == "none"
    assert answer(scorer, ANIMALS[:4] + COLORS[:4])[0] == "mixed"


TWO = ConceptSet(
    (Concept("animals", {"en": tuple(ANIMALS)}), Concept("colors", {"en": tuple(COLORS)})), ()
)


def test_unlisted_neighbours_raise_the_share_and_never_the_count() -> None:
    scorer = make_scorer(TWO)
    near = [
        w for w in UNLISTED[10:15] if scorer.soft[ids_of([w])] == 0
    ]  # as near as half of the animals are
    assert near
    assert (scorer.soft[ids_of(UNLISTED[20:])] == -1).all()
    assert answer(scorer, near + UNLISTED[20:25])[2]["words"] == 0
    _, score, parts = answer(scorer, ANIMALS[:3] + near + UNLISTED[20:22])
    assert parts["share"] > parts["lexicon_share"] > 0.3
    assert parts["words"] == 3
    assert score == 0.75  # three words, however near the rest is


def test_a_word_of_two_concepts_is_no_soft_hit_either() -> None:
    word = next(w for w in UNLISTED[10:15] if make_scorer(TWO).soft[ids_of([w])] == 0)
    both = [Concept(c.name, {"en": (*c.words["en"], word)}) for c in TWO.concepts]
    scorer = make_scorer(ConceptSet(tuple(both), ()))
    assert scorer.soft[ids_of([word])] == -1
    assert scorer.hit[ids_of([word])] == 0


def test_components_are_what_they_say() -> None:
    scorer = make_scorer()
    words = [*ANIMALS[:6], *UNLISTED[20:24]]
    _, _, parts = answer(scorer, words)
    rows = planted()[1].astype(np.float32)
    unit = rows - rows.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit[ids_of(words)] @ unit[ids_of(words)].T
    assert parts["coherence"] == pytest.approx(cosines[~np.eye(10, dtype=bool)].mean(), abs=1e-5)
    assert parts["coherence_percentile"] == pytest.approx((parts["coherence"] > NULL).mean())
    assert parts["distinct_words"] == 10
    assert parts["embedding_margin"] > 0


def test_order_of_concepts_and_batch_change_nothing() -> None:
    one, two = make_scorer(), make_scorer(ConceptSet(CONCEPTS.concepts[::-1], ()))
    ids = np.random.default_rng(0).integers(0, len(one.lemma), (200, 30))
    a, b = one(ids, np.zeros(200), NULL), two(ids, np.zeros(200), NULL)
    assert np.array_equal(a.label, b.label)
    assert np.array_equal(a.score, b.score)
    half = one(ids[:100], np.zeros(100), NULL)
    for key, value in half.components.items():
        assert np.array_equal(value, a.components[key][:100]), key


def test_groups_of_other_are_named_by_what_their_lists_share() -> None:
    tokens, rows = planted()
    unit = (rows - rows.mean(0)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)

    def entry(name: str, words: list[str], coherence: float) -> dict[str, Any]:
        return {"id": name, "words": ids_of(words), "score_components": {"coherence": coherence}}

    theme, rest = UNLISTED[:10], UNLISTED[20:]
    found = scoring.group(
        [entry("b", [*theme[3:9], rest[0]], 0.7), entry("a", [*theme[:6], rest[1]], 0.8), entry("c", COLORS[:5], 0.9)],
        unit, tokens,
    )  # fmt: skip
    assert [g["ids"] for g in found] == [["a", "b"], ["c"]]
    assert set(found[0]["tokens"][:3]) <= set(theme[3:6])  # the words that both lists have
    assert found[0]["name"] == ", ".join(found[0]["tokens"][:3])


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
        for p in hf.parameters():
            if p.ndim == 2:
                p.normal_()
    return Model(
        hf.eval(),
        tokenizer,
        "random",
        None,
        FAMILIES["gemma3_text"],
        torch.device("cpu"),
        torch.float32,
    )


def test_random_weights_find_nothing() -> None:
    """At most 1 % of the poles of a random model reach the threshold, in the vocabulary of the demo."""
    model, config = random_demo(), cv.Config(device="cpu", max_vectors=None)
    projector, texts, masked = make_projector(model, config.top_k)
    scorer = scoring.Scorer(
        texts, masked.numpy(), model.unembedding, CONCEPTS, config.score_threshold
    )
    reached = poles = 0
    for layer in range(model.n_layers):
        p = project_layer(model, projector, layer, config)
        for pole in "+-":
            reached += int((scorer(p.pole(pole)[0], p.kurtosis).label >= 0).sum())
            poles += len(p.neurons)
    print(f"random weights: {reached} of {poles} poles reach the threshold")
    assert poles == 400
    assert reached <= 0.01 * poles


@pytest.fixture(scope="module")
def demo() -> Any:
    config = cv.Config(device="cpu", layers="1-2", concepts=None)
    model = cv.load_model(config)
    return config, model, cv.extract(model, config)


def test_the_null_is_counted_per_layer_and_everything_is_in_the_results(demo: Any) -> None:
    config, model, candidates = demo
    scored = cv.score(candidates, model, config)
    null = scored.null
    assert [x["layer"] for x in null["layers"]] == [1, 2]
    assert null["lists"] == sum(x["lists"] for x in null["layers"]) == 4 * scoring.NULL_DIRECTIONS
    assert null["share"] == null["reached_threshold"] / null["lists"]
    document = Results.build(model, config, candidates, scored)
    check(document, "the results")
    assert sum(scored.labels.values()) == 2 * scored.filtered
    assert (
        len(document["untested_candidates"]) == document["pipeline_stats"]["concept_candidates"] > 0
    )
    for e in document["untested_candidates"]:
        assert e["score"] >= config.score_threshold
        assert e["score_components"].keys() == {
            "share", "lexicon_share", "words", "rival_share", "repeated", "distinct_words", "embedding_margin",
            "coherence", "coherence_percentile", "kurtosis", "null_percentile",
        }  # fmt: skip
    again = cv.score(candidates, model, config)
    assert (again.entries, again.others, again.null) == (scored.entries, scored.others, scored.null)


def test_words_in_place_are_scored_and_calibrated_like_the_rest(demo: Any) -> None:
    """A concept given by its words alone has candidates that are listed and not tested."""
    config, model, candidates = demo
    built_in = {e["concept"] for e in cv.score(candidates, model, config).entries}
    name = sorted(built_in)[0]
    words = next(c for c in CONCEPTS.concepts if c.name == name).words["en"]
    config = dataclasses.replace(config, concepts=f"mine={','.join(words)}")
    scored = cv.score(candidates, model, config)
    assert {e["concept"] for e in scored.entries} == {"mine"}
    assert "mine" not in scored.concepts.prompts()
    assert scored.null["lists"] == 4 * scoring.NULL_DIRECTIONS


def test_the_bench_runs() -> None:
    found = bench_scoring(layers=1, vocabulary=40_000, hidden=160)  # wider than the sketch
    assert found["lists"] == 2 * 6912
    assert found["reached"] <= 0.01
