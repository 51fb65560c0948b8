"""Every pole and concept: against brute force, under the null, with effects that were planted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, default_rng

from conceptvec.concepts import load_concepts
from conceptvec.config import Config
from conceptvec.effects import everywhere as every
from conceptvec.effects.contrast import with_contrast
from conceptvec.effects.everywhere import Everywhere, Nulls, Pool
from conceptvec.effects.moved import draw_grid, grid_side
from conceptvec.effects.named import named_poles
from conceptvec.effects.significance import Columns
from conceptvec.effects.stage import Scan, running_text, scan_text
from conceptvec.effects.statistics import FLOOR, PRIOR, Contrast, others
from conceptvec.effects.survey import FILE, read_survey, survey
from conceptvec.errors import RequestError
from conceptvec.model.network import Model, load_model
from conceptvec.model.vocabulary import masked_tokens, token_texts
from conceptvec.pipeline import open_run
from conceptvec.runfolder import Parts

SIZES = (9, 16, 3, 20)  # words of four concepts
NAMES = [(f"c{i}", i) for i in range(len(SIZES))]


def words() -> Contrast:
    return Contrast(np.repeat(np.arange(len(SIZES)), SIZES), others(len(SIZES)))


def columns(stream: Generator, poles: int, scale: float = 0.01) -> Columns:
    shape = (sum(SIZES), poles)
    values = [stream.standard_normal(shape).astype(np.float32) for _ in range(4)]
    zero, mean, firing, readout = values
    return Columns(zero * scale, mean * scale, np.abs(firing), readout)


def nulls(stream: Generator, poles: int = 30) -> Nulls:
    return Nulls(
        every.permuted_words(columns(stream, poles), words(), stream, 20),
        every.moved_vectors([columns(stream, poles), columns(stream, poles)], words()),
    )


def measured(stream: Generator, some: Nulls, poles: int = 5) -> tuple[Everywhere, dict]:
    """Two layers, and the columns of each layer and sign."""
    kept = {(layer, sign): columns(stream, poles) for layer in (3, 7) for sign in (1, -1)}
    whole = every.measure([3, 7], lambda *at: kept[at], words(), NAMES, some)
    return whole, kept


def judged_words(readout: np.ndarray, concept: int) -> np.ndarray:
    own = np.flatnonzero(words().concept == concept)
    return own[np.argsort(-readout[own])[: math.ceil(len(own) / 3)]]


def brute_force(column: Columns, pole: int, concept: int) -> tuple[float, float, float]:
    """The statistic, the mean effect and the largest other one, word by word."""
    mean, variance, n = [], [], []
    for other in range(len(SIZES)):
        effect = column.mean[judged_words(column.readout[:, pole], other), pole].astype(float)
        mean.append(effect.mean())
        variance.append(effect.var(ddof=1) if len(effect) > 1 else 0.0)
        n.append(len(effect))
    pooled = sum((k - 1) * v for k, v in zip(n, variance, strict=True)) / (sum(n) - len(n))
    error = []
    for k, v in zip(n, variance, strict=True):
        error.append((PRIOR * pooled + (k - 1) * v) / (PRIOR + k - 1) / k)
    strongest = max((c for c in range(len(SIZES)) if c != concept), key=lambda c: mean[c])
    contrast = mean[concept] - 2 * max(mean[strongest], 0)
    t = contrast / math.sqrt(error[concept] + 4 * error[strongest] + FLOOR**2)
    return t, mean[concept], mean[strongest]


# ---- the statistic ----


def test_effects_and_statistic_by_brute_force() -> None:
    column = columns(default_rng(0), 6)
    tested = every.tested_poles(column, words())
    largest = every.largest_others(tested.mean, words().sizes)
    expected = np.array(
        [[brute_force(column, pole, c) for pole in range(6)] for c in range(len(SIZES))]
    )
    assert np.allclose(tested.t, expected[..., 0], rtol=1e-4)
    assert np.allclose(tested.mean, expected[..., 1], rtol=1e-4, atol=1e-8)
    assert np.allclose(largest, expected[..., 2], rtol=1e-4, atol=1e-8)


def test_a_whole_layer_is_every_pole_by_itself() -> None:
    stream = default_rng(1)
    some = nulls(stream)
    whole, kept = measured(stream, some)
    assert whole.p.shape == (4, 2, 5, 2)
    for (layer, sign), column in kept.items():
        at = (slice(None), (3, 7).index(layer), slice(None), (1, -1).index(sign))
        alone = every.tested_poles(column, words())
        assert np.allclose(whole.mean[at], alone.mean, rtol=2e-3)
        means = [column.zero[words().concept == c].mean(0) for c in range(4)]
        assert np.allclose(whole.zero[at], means, rtol=2e-3, atol=1e-6)


def test_firing_is_relative_to_the_other_concepts() -> None:
    column = columns(default_rng(2), 4)
    ratio = every.firing_ratios(column.firing, words())
    means = np.array([column.firing[words().concept == c].mean(0) for c in range(4)])
    assert np.allclose(ratio[1], means[1] / means[[0, 2, 3]].mean(0), rtol=1e-4)


def test_a_neuron_that_never_fires_has_no_ratio_that_is_not_a_number() -> None:
    assert np.array_equal(every.firing_ratios(np.zeros((48, 3)), words()), np.zeros((4, 3)))


@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_more_effect_on_the_concept_alone_never_lowers_it(seed: int, more: float) -> None:
    column = columns(default_rng(seed), 3)
    shifted = column.mean.copy()
    shifted[words().concept == 1] += more
    before = every.tested_poles(column, words()).t[1]
    after = every.tested_poles(replace(column, mean=shifted), words()).t[1]
    assert (after > before).all()


# ---- p and q ----


def test_p_counts_null_values_of_the_concepts_that_have_enough_words() -> None:
    judged = np.array([5, 2, 9])
    values = np.array([[1.0, 4.0], [2.0, 8.0], [3.0, 6.0]])
    pool = Pool.of([values[:, :1], values[:, 1:]], judged)
    assert pool.shared.tolist() == [1, 3, 4, 6]
    assert pool.p(np.array([3.5, 7.0]), 0).tolist() == [3 / 5, 1 / 5]
    assert pool.p(np.array([3.5, 9.0]), 1).tolist() == [2 / 3, 1 / 3]  # its own values alone


def test_p_is_the_larger_of_two() -> None:
    stream = default_rng(3)
    whole, _ = measured(stream, nulls(stream))
    assert np.array_equal(whole.p, np.maximum(whole.p_words, whole.p_moved))
    assert (whole.p > 0).all()


def test_q_is_benjamini_hochberg_over_all_poles_and_concepts() -> None:
    stream = default_rng(4)
    whole, _ = measured(stream, nulls(stream))
    p = np.sort(whole.p.ravel())
    naive = [min(p[i:] * len(p) / np.arange(i + 1, len(p) + 1)) for i in range(len(p))]
    assert np.allclose(np.sort(whole.q.ravel()), np.minimum(naive, 1))
    assert whole.q.max() <= 1


def test_p_is_uniform_where_nothing_is_there() -> None:
    stream = default_rng(5)
    some = nulls(stream, 400)
    whole, _ = measured(stream, some, 400)
    enough = whole.p_moved[[0, 1, 3]]  # the third concept has one judged word
    assert 0.03 < (whole.p_moved[2] <= 0.05).mean() < 0.07
    assert 0.035 < (enough <= 0.05).mean() < 0.065
    assert not whole.is_used.any()


def test_a_concept_without_words_is_never_used() -> None:
    stream = default_rng(6)
    empty = Contrast(words().concept, np.pad(others(4), (0, 1)))
    some = Nulls(
        every.permuted_words(columns(stream, 30), empty, stream, 20),
        every.moved_vectors([columns(stream, 30)], empty),
    )
    column = columns(stream, 5)
    whole = every.measure([0], lambda *_: column, empty, [*NAMES, ("nothing", 4)], some)
    assert (whole.p[4] == 1).all()
    assert np.isfinite(whole.q).all()


def test_a_planted_effect_is_used_and_one_on_two_concepts_is_not() -> None:
    stream = default_rng(7)
    kept = {(0, sign): columns(stream, 40) for sign in (1, -1)}
    for pole, concepts in ((3, [1]), (9, [1, 3])):
        kept[0, 1].mean[np.isin(words().concept, concepts), pole] += 0.2
    whole = every.measure([0], lambda *at: kept[at], words(), NAMES, nulls(stream, 2000))
    assert np.argwhere(whole.is_used).tolist() == [[1, 0, 3, 0]]
    assert whole.pole(0, 3, 0).id == "L00_N0003+"


def test_arrays_and_back_is_the_same() -> None:
    stream = default_rng(8)
    whole, _ = measured(stream, nulls(stream))
    whole = replace(whole, about={"seed": 1})
    again = Everywhere.of_arrays(whole.arrays())
    assert again.concepts == ("c0", "c1", "c2", "c3")
    assert (again.layers, again.about) == ((3, 7), {"seed": 1})
    assert all(np.array_equal(getattr(again, n), getattr(whole, n)) for n in every.EFFECTS)
    assert again.mean.dtype == np.float16
    assert again.p.dtype == np.float32


# ---- moved vectors of random poles ----


def test_a_grid_moves_no_vector_to_its_own_neuron() -> None:
    grid = draw_grid([2, 5], 20, 0)
    assert set(grid.layer.tolist()) == {2, 5}
    assert (grid.source != grid.receiver).all()
    assert (np.diff(grid.pole) >= 0).all()
    pairs = np.stack([grid.layer, grid.source, grid.source_sign, grid.receiver, grid.receiver_sign])
    assert np.unique(pairs, axis=1).shape[1] == len(grid)
    assert len(grid) > 0.9 * 2 * grid_side(20) ** 2


def test_a_grid_depends_on_its_layer_alone() -> None:
    both, one = draw_grid([2, 5], 20, 0), draw_grid([5], 20, 0)
    assert np.array_equal(both.source[both.layer == 5], one.source)


# ---- a model: the demo ----


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(Config(device="cpu"))


def config(folder: Path) -> Config:
    return Config(device="cpu", corpus_tokens=8000, layers="2,3", out=str(folder))


def scanned(model: Model, settings: Config, parts: Parts) -> Scan:
    concepts = load_concepts(None, with_prompts=False)
    text = running_text(model, settings, concepts, parts)
    masked = masked_tokens(model, token_texts(model)).numpy()
    return scan_text(text, model, settings, [2, 3], [], masked, parts)


@pytest.fixture(scope="module")
def scan(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scan, Path]:
    folder = tmp_path_factory.mktemp("scan")
    parts = open_run(demo, config(folder))
    done = scanned(demo, config(folder), parts)
    survey(done, parts)
    return done, folder


def test_the_run_folder_keeps_it_and_a_reader_finds_it(scan: tuple[Scan, Path]) -> None:
    done, folder = scan
    kept = read_survey(folder, done.model.fingerprint)
    fresh = survey(done, Parts())
    assert kept.about == fresh.about
    assert np.array_equal(kept.p, fresh.p)
    assert kept.p.shape == (12, 2, done.model.intermediate_size, 2)
    assert (folder / FILE).stat().st_size < 25 * kept.p.size + 5000


def test_it_is_read_and_not_computed_again(
    scan: tuple[Scan, Path], demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, folder = scan
    monkeypatch.setattr("conceptvec.effects.survey.surveyed", lambda *_: pytest.fail("computed"))
    survey(done, open_run(demo, config(folder)))


def test_another_seed_is_computed_again(scan: tuple[Scan, Path], demo: Model) -> None:
    done, folder = scan
    other = survey(replace(done, seed=1), open_run(demo, config(folder)))
    assert other.about["identity"]["seed"] == 1
    assert survey(done, open_run(demo, config(folder))).about["identity"]["seed"] == 0


def test_candidates_change_nothing(scan: tuple[Scan, Path], demo: Model) -> None:
    from conceptvec.records import Pole

    done, folder = scan
    settings = config(folder)
    masked = masked_tokens(demo, token_texts(demo)).numpy()
    candidates = [(Pole(3, 4, "-"), 0), (Pole(2, 7, "+"), 3)]
    other = scan_text(done.text, demo, settings, [2, 3], candidates, masked, Parts())
    first, second = survey(done, Parts()), survey(other, Parts())
    assert first.about == second.about
    assert np.abs(first.p - second.p).max() < 0.01  # sums of other batches


def test_other_weights_and_damage_are_refused(scan: tuple[Scan, Path], tmp_path: Path) -> None:
    _, folder = scan
    with pytest.raises(RequestError, match="was made from weights"):
        read_survey(folder, "0" * 64)
    with pytest.raises(RequestError, match="expected a run folder"):
        read_survey(tmp_path)
    for file in folder.glob("manifest*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / FILE).write_bytes(b"x" + (folder / FILE).read_bytes()[1:])
    with pytest.raises(RequestError, match="is damaged"):
        read_survey(tmp_path)


def test_what_is_named_meets_all_conditions(scan: tuple[Scan, Path]) -> None:
    done, _ = scan
    whole = survey(done, Parts())
    loose = replace(whole, p=np.minimum(whole.p, 1e-9))  # everything reaches q
    named = named_poles(done, loose)
    assert named
    assert all(item.use.words >= 3 and item.use.other_share <= 0.5 for item in named)
    effects = [item.use.mean for item in named if item.concept == named[0].concept]
    assert effects == sorted(effects, reverse=True)


def test_the_own_words_of_a_built_in_concept_are_not_contrasted_with_it() -> None:
    built_in = load_concepts(None, with_prompts=False)
    own = load_concepts("mine=dog,cat,horse,robot", with_prompts=False)
    names = with_contrast(own, built_in).names
    assert "animals" not in names
    assert "technology" in names
