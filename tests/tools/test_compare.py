"""Runs side by side: likeness against dense products, pairs that were planted, verdicts that changed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from conceptvec import RequestError
from conceptvec.cli import main
from conceptvec.files import digest, pack, write_atomic
from conceptvec.results import Results
from conceptvec.show.figures import comparison
from conceptvec.tools.compare import compare, comparison_table
from conceptvec.tools.likeness import Lists, cosine, same_vectors
from tests.documents import candidate, document, entry

OTHER_SHAPE = {"hidden_size": 16, "layers": 6}


def saved(path: Path, entries: list[dict[str, Any]], **model: Any) -> Path:
    """A run folder that holds results and nothing else."""
    sample = document(entries)
    sample["model"] |= model
    path.mkdir()
    Results(sample).save(path / "concept_vector_results_cpu.json")
    return path


# --- likeness ---------------------------------------------------------------------------------


def random_entries(count: int, seed: int) -> list[dict[str, Any]]:
    """Lists of ten of forty tokens, one of them twice, some of the values negative."""
    stream = np.random.default_rng(seed)
    lists = []
    for _ in range(count):
        chosen = [f"t{token}" for token in stream.permutation(40)[:10]]
        values = stream.normal(size=11)
        lists.append(
            {
                "top_tokens": [
                    [t, float(v)] for t, v in zip([*chosen, chosen[0]], values, strict=True)
                ]
            }
        )
    return lists


def dense(entries: list[dict[str, Any]]) -> np.ndarray:
    """The lists as unit rows (n, 40)."""
    rows = np.zeros((len(entries), 40))
    for row, listed in enumerate(entries):
        for token, value in listed["top_tokens"]:
            rows[row, int(token[1:])] += abs(value)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_cosines_are_those_of_dense_vectors() -> None:
    first, other = random_entries(7, 1), random_entries(9, 2)
    lists = Lists(other)
    cosines = np.array([lists.cosines(listed) for listed in Lists(first).lists])
    assert np.allclose(cosines, dense(first) @ dense(other).T)
    assert cosine(first[3], other[4]) == pytest.approx(cosines[3, 4])


def test_the_nearest_other_is_never_the_list_itself() -> None:
    entries = random_entries(8, 3)
    products = dense(entries) @ dense(entries).T
    np.fill_diagonal(products, 0)
    assert Lists(entries).nearest_other() == pytest.approx(products.max(1))


def test_planted_vectors_are_found_again_and_others_are_not() -> None:
    stream = np.random.default_rng(4)
    first = random_entries(20, 5)
    again = [
        {"top_tokens": [[t, v * stream.uniform(0.8, 1.2)] for t, v in listed["top_tokens"]]}
        for listed in first[:12]
    ]
    order = stream.permutation(12)
    other = [again[row] for row in order] + random_entries(8, 6)
    pairs, smallest = same_vectors(Lists(first), Lists(other))
    assert sorted(pairs) == sorted((int(row), place) for place, row in enumerate(order))
    assert smallest < 0.97


def test_vectors_of_two_unrelated_runs_are_hardly_ever_the_same() -> None:
    counts = [
        len(same_vectors(Lists(random_entries(60, seed)), Lists(random_entries(60, seed + 1)))[0])
        for seed in range(100, 130, 2)
    ]
    assert 0 < sum(counts) / (60 * len(counts)) < 0.04  # as the module says


def test_nothing_is_the_same_as_nothing() -> None:
    assert same_vectors(Lists([]), Lists(random_entries(3, 9)))[0] == []


# --- by neuron --------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs of one shape: 0 stays validated, 1 is lost, 2 is gained, 3 and 4 are in one run alone."""
    first = [entry(0), entry(1), entry(2, "no_effect"), entry(3)]
    other = [entry(0), entry(1, "not_specific"), entry(2, concept="colors"), entry(4)]
    return [
        saved(tmp_path / "first", first),
        saved(tmp_path / "other", other, fingerprint="1" * 64),
    ]


def rows(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["id"] or row["other_id"]: row for row in answer["comparisons"][0]["vectors"]}


def test_verdicts_are_kept_lost_and_gained(runs: list[Path]) -> None:
    answer = compare(runs)
    assert {name: row["change"] for name, row in rows(answer).items()} == {
        "L00_N0000+": "kept",
        "L01_N0001-": "lost",
        "L02_N0002+": "gained",
        "L03_N0003-": "lost",
        "L00_N0004+": "gained",
    }
    compared = answer["comparisons"][0]
    assert compared["counts"] == {"lost": 2, "gained": 2, "kept": 1, "neither": 0}
    assert (compared["candidates_of_both"], compared["same_concept"]) == (3, 2)
    assert (compared["by"], compared["same_weights"]) == ("neuron", False)


def test_what_is_in_one_run_alone_says_why(runs: list[Path]) -> None:
    alone = rows(compare(runs))["L03_N0003-"]
    assert (alone["verdict"], alone["other_verdict"]) == ("validated", "no_candidate")
    assert alone["other_id"] is alone["other_effect"] is alone["cosine"] is None


def kept_sample(folder: Path, layer: int, neurons: list[int], listed: bool = True) -> Path:
    """A run folder with the neurons of a layer, as Stage 1 keeps them."""
    name = f"projections/layer_{layer:02d}.safetensors"
    content = pack({"neurons": np.array(neurons, np.int32)})
    write_atomic(folder / name, content)
    manifest = dict.fromkeys(("configuration", "files", "model"), {})
    manifest["parts"] = {name: digest(content)} if listed else {}
    write_atomic(folder / "manifest.json", json.dumps(manifest).encode())
    return folder / name


@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.parametrize(("neurons", "said"), [([3, 5], "no_candidate"), ([5], "not_examined")])
def test_a_sample_that_lacks_the_neuron_is_named(
    neurons: list[int], said: str, given: str, runs: list[Path]
) -> None:
    kept_sample(runs[1], 3, neurons)
    if given == "file":
        runs[1] = runs[1] / "concept_vector_results_cpu.json"
    assert rows(compare(runs))["L03_N0003-"]["other_verdict"] == said


@pytest.mark.parametrize("how", ["damaged", "not listed", "gone"])
def test_what_cannot_be_read_is_not_taken_for_a_sample(how: str, runs: list[Path]) -> None:
    """A part that is damaged does not say that a neuron was left out."""
    part = kept_sample(runs[1], 3, [5], listed=how != "not listed")
    if how == "damaged":
        part.write_bytes(part.read_bytes()[:-2])
    elif how == "gone":
        part.unlink()
    assert rows(compare(runs))["L03_N0003-"]["other_verdict"] == "no_candidate"


def test_a_layer_that_was_left_out_is_not_examined(tmp_path: Path) -> None:
    """The results say so, with or without their folder."""
    paths = []
    for name, layers in (("first", [0, 1]), ("other", [0, 3])):
        sample = document([entry(4) if name == "first" else entry(3)]) | {"layers": layers}
        paths.append(Results(sample).save(tmp_path / f"{name}.json"))
    alone = rows(compare(paths))
    assert alone["L00_N0004+"]["other_verdict"] == "no_candidate"
    assert alone["L03_N0003-"]["verdict"] == "not_examined"


def test_a_run_is_the_same_as_itself(runs: list[Path]) -> None:
    compared = compare([runs[0], runs[0]])["comparisons"][0]
    assert compared["counts"] == {"lost": 0, "gained": 0, "kept": 3, "neither": 1}
    assert compared["same_weights"]
    assert {row["cosine"] for row in compared["vectors"]} == {1.0}


def test_two_stages_can_be_compared(runs: list[Path], tmp_path: Path) -> None:
    sample = document([]) | {"untested_candidates": [candidate(0), candidate(1)]}
    stopped = Results(sample).save(tmp_path / "stopped.json")
    found = rows(compare([runs[0], stopped]))
    assert found["L00_N0000+"]["other_verdict"] == "untested"
    assert found["L00_N0000+"]["other_effect"] is None


# --- by readout -------------------------------------------------------------------------------


def with_tokens(number: int, words: str, **changes: Any) -> dict[str, Any]:
    tokens = [[word, 2.0 - 0.1 * i] for i, word in enumerate(words.split())]
    return entry(number, **changes) | {"top_tokens": tokens}


def test_other_shapes_are_compared_by_readout(tmp_path: Path) -> None:
    first = [
        with_tokens(0, "dog cat cow"),
        with_tokens(1, "red blue green"),
        with_tokens(2, "one two dog"),
    ]
    other = [with_tokens(5, "blue red green", verdict="no_effect"), with_tokens(4, "dog cow cat"), with_tokens(9, "sea lake dog")]  # fmt: skip
    paths = [saved(tmp_path / "first", first), saved(tmp_path / "other", other, **OTHER_SHAPE)]
    answer = compare(paths)
    compared = answer["comparisons"][0]
    assert compared["by"] == "readout"
    assert {(r["id"], r["other_id"], r["change"]) for r in compared["vectors"]} == {
        ("L00_N0000+", "L00_N0004+", "kept"),
        ("L01_N0001-", "L01_N0005-", "lost"),
        ("L02_N0002+", None, "lost"),
        (None, "L01_N0009-", "gained"),
    }
    assert rows(answer)["L02_N0002+"]["other_verdict"] == "no_match"


# --- what people see --------------------------------------------------------------------------


def texts(figure: matplotlib.figure.Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_the_table_counts_and_lists(runs: list[Path]) -> None:
    said = comparison_table(compare(runs))
    assert "3 candidates of both, 2 with the same concept" in said
    assert "1 validated in both, 2 in the first alone, 2 in the other alone" in said
    assert "animals → colors" in said
    assert all(ch.isprintable() or ch == "\n" for ch in said)


def test_the_figure_counts_the_pairs(runs: list[Path], tmp_path: Path) -> None:
    figure = comparison(compare([*runs, runs[0]]))
    assert len(figure.axes) == 2
    for shown in ("in both (n = 1)", "in the first alone (n = 1)", "so not drawn: 2"):
        assert shown in texts(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "figure.png")


def test_the_command(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, runs), "--json", "--out", str(tmp_path / "c.png")]) == 0
    assert json.loads(capsys.readouterr().out) == compare(runs)
    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert main(["compare", *map(str, runs)]) == 0
    assert "change" in capsys.readouterr().out


def test_one_run_alone_is_refused(runs: list[Path]) -> None:
    with pytest.raises(RequestError, match="two or more"):
        compare(runs[:1])
    assert main(["compare", str(runs[0])]) == 2


@pytest.mark.parametrize("name", ["concept_vector_results_cpu.json", "notes.txt", "folder"])
def test_the_figure_replaces_nothing_but_a_picture(name: str, runs: list[Path], capsys) -> None:
    out = runs[0] / name
    if name == "folder":
        out.mkdir()
    elif name == "notes.txt":
        out.write_text("the user's")
    before = out.read_bytes() if out.is_file() else None
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 2
    assert f"--out: {out} is " in capsys.readouterr().err
    assert before is None or out.read_bytes() == before
