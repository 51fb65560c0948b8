"""Random pairs of configurations through the stages: a mixed call is refused by name, or right."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conceptvec as cv
from conceptvec import Config, RequestError
from tests.conftest import ANIMALS, concepts_document, corpus_text, make_hf, save, wrap

DRAWS, POOL, FOLDERS = 200, 24, 40

# Of every option the first value is the usual one; values in one tuple mean the same.
Values = list[tuple[Any, ...]]
EXTRACTION: dict[str, Values] = {
    "layers": [("0,1", "0-1", "all"), ("1",), ("0",)],
    "max_vectors": [(None, 24, 1000), (7,)],
    "batch_size": [(200,), (5,)],
    "top_k": [(10,), (9,)],
    "fold": [("both",), ("none",)],
    "seed": [(0,), (1,)],
}
SCORING: dict[str, Values] = {
    "min_kurtosis": [(None,), (-0.5,)],
    "score_threshold": [(0.05,), (0.3,)],
    "concepts": [("c.json", "./c.json", "copy.json"), ("other.json",), ("birds=w1,w2,w3",)],
}
LATER: dict[str, Values] = {
    "damage": [(("zero", "rotate", "mean"),), (("rotate",),), (("zero", "noise"),)],
    "corpus": [("t.txt", "./t.txt", "copy.txt"), ("self",)],
    "corpus_tokens": [(None,), (300,)],
    "noise_sigma": [(None,), (0.1,)],
}
ALL = EXTRACTION | SCORING | LATER


class Reached(Exception):
    """Stage 3 has begun."""


def meaning(config: Config, name: str) -> int:
    """Which of an option's values it is, in whatever words."""
    value = getattr(config, name)
    return next(i for i, same in enumerate(ALL[name]) if value in same)


def changed(one: Config, other: Config, names: Any) -> list[str]:
    return [name for name in names if meaning(one, name) != meaning(other, name)]


def drawn(stream: random.Random, model: str) -> list[Config]:
    """Configurations each of which differs from an earlier one in an option or two."""
    pool = [Config(model=model, device="cpu", **{name: v[0][0] for name, v in ALL.items()})]
    while len(pool) < POOL:
        names = stream.sample(sorted(ALL), stream.choice([1, 1, 2]))
        changes = {name: stream.choice(stream.choice(ALL[name])) for name in names}
        pool.append(replace(stream.choice(pool), **changes))
    return pool


def content(scored: Any) -> list[Any]:
    """All that Stage 3 takes over."""
    arrays = [layer.arrays() for layer in scored.candidates.layers]
    flat = [(name, np.asarray(a).tobytes()) for part in arrays for name, a in sorted(part.items())]
    concepts = scored.concepts.concepts, scored.concepts.neutral
    return [flat, scored.entries, scored.labels, scored.histogram, scored.null, concepts]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fuzz")
    save(make_hf(layers=2), folder / "model")
    document = concepts_document()
    for name in ("c.json", "copy.json"):
        (folder / name).write_text(json.dumps(document))
    document["concepts"]["animals"]["keywords"] = ANIMALS[:6]
    (folder / "other.json").write_text(json.dumps(document))
    for name in ("t.txt", "copy.txt"):
        (folder / name).write_text(corpus_text(20))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("conceptvec.effects.stage.running_text", reached)
        yield drawn(random.Random(18), str(folder / "model"))


def reached(*_: Any) -> None:
    raise Reached


@pytest.fixture(scope="module")
def stages(pool: list[Config]) -> Any:
    """Stages 1 and 2 of a configuration, each computed once."""
    model = cv.load_model(pool[0])
    candidates = cache(lambda config: cv.extract(model, config))
    return model, candidates, cache(lambda config: cv.score(candidates(config), model, config))


def outcome(call: Any, *arguments: Any) -> str | None:
    """What the refusal says; None where the call is taken."""
    try:
        call(*arguments)
    except Reached:
        return None
    except RequestError as error:
        return str(error)
    return None


def test_pairs_without_a_folder(pool, stages) -> None:
    model, candidates, scored = stages
    stream, refused, taken = random.Random(1), 0, 0
    for _ in range(DRAWS):
        one, other = stream.choice(pool), stream.choice(pool)
        second = outcome(cv.score, candidates(one), model, other)
        third = outcome(cv.validate, scored(one), model, other)
        for said, names in ((second, EXTRACTION), (third, EXTRACTION | SCORING)):
            differing = changed(one, other, names)
            if said is None:
                assert not differing
            else:
                assert differing and all(f"{name} was" in said for name in differing)
        if third is None:
            assert content(scored(one)) == content(scored(other))
            taken += 1
        else:
            refused += 1
    assert min(refused, taken) > 10


def test_another_model_is_refused_each_time(pool, stages) -> None:
    _, candidates, scored = stages
    other = wrap(make_hf(layers=2, seed=9))
    for config in pool:
        second = outcome(cv.score, candidates(config), other, config)
        third = outcome(cv.validate, scored(config), other, config)
        assert "weights differ" in str(second)
        assert "weights differ" in str(third)


def test_pairs_in_a_folder(pool, stages, tmp_path: Path) -> None:
    """Whatever stage is called: the folder stays as it is, or goes on."""
    model, candidates, scored = stages
    stream = random.Random(2)
    for i in range(FOLDERS):
        one, other = stream.choice(pool), stream.choice(pool)
        parts = cv.open_run(model, replace(one, out=str(tmp_path / f"run{i}")))
        before = {path: path.read_bytes() for path in parts.path.rglob("*") if path.is_file()}
        calls = (
            (cv.extract, model, other, parts),
            (cv.score, candidates(other), model, other, parts),
            (cv.validate, scored(other), model, other, parts),
            (cv.open_run, model, replace(other, out=str(parts.path))),
        )
        said = outcome(*stream.choice(calls))
        if differing := changed(one, other, ALL):
            assert said is not None
            assert all(f"{name} was" in said for name in differing)
            after = {path: path.read_bytes() for path in parts.path.rglob("*") if path.is_file()}
            assert after == before
        else:
            assert said is None
