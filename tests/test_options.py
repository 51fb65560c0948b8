"""Values of options: refused before anything is computed, or kept as plain Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conceptvec import Config, RequestError
from conceptvec.cli import main
from conceptvec.cli.commands import COMMANDS
from conceptvec.cli.options import parser
from conceptvec.results import Results, load_results
from tests.documents import document


@pytest.mark.parametrize("option", ["out", "corpus", "concepts", "model", "revision"])
@pytest.mark.parametrize("value", ["a\0b", "caf\udce9", "\ud83d"])
def test_text_that_json_or_a_disk_cannot_hold(option: str, value: str) -> None:
    with pytest.raises(RequestError, match=f"--{option}: got .* expected text that UTF-8"):
        Config(**{option: value})


@pytest.mark.parametrize("value", ["", " ", "x" * 300, "/".join(["y" * 200] * 25)])
def test_folders_that_cannot_be_made(value: str) -> None:
    with pytest.raises(RequestError, match="--out: got .* expected a folder"):
        Config(out=value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("stages", 1.9),
        ("stages", (1, 2.0)),
        ("stages", True),
        ("stages", (True,)),
        ("batch_size", 10**21),
        ("corpus_tokens", 10**40),
        ("max_vectors", 10**30),
        ("top_k", 10**30),
        ("seed", 2.0),
        ("seed", np.bool_(True)),
        ("score_threshold", np.bool_(True)),
        ("score_threshold", float("nan")),
        ("noise_sigma", float("inf")),
    ],
)
def test_numbers_that_are_not_those_that_are_meant(option: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"--{option.replace('_', '-')}: got"):
        Config(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [
        ("seed", np.int64(3), 3),
        ("batch_size", np.uint8(7), 7),
        ("stages", np.array([1, 2]).tolist(), (1, 2)),
        ("stages", [np.int64(1)], (1,)),
        ("score_threshold", np.float32(0.5), 0.5),
        ("score_threshold", 1, 1.0),
        ("layers", np.str_("3"), "3"),
        ("seed", 2**70, 2**70),
    ],
)
def test_numbers_of_numpy_are_numbers(option: str, value: object, kept: object) -> None:
    config = Config(**{option: value})  # type: ignore[arg-type]
    assert getattr(config, option) == kept
    assert type(getattr(config, option)) is type(kept)
    json.dumps(config.resolved())


def test_the_home_folder_is_expanded_everywhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "birds.txt").write_text("robin\neagle")
    config = Config(
        out="~/r", corpus="~/birds.txt", concepts="~/birds.txt", model="~/m", device="cpu"
    )
    home = str(tmp_path)
    assert (config.out, config.model) == (f"{home}/r", f"{home}/m")
    assert (config.corpus, config.concepts) == (f"{home}/birds.txt", f"{home}/birds.txt")


def test_the_home_folder_of_a_report(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Results(document()).save("~/r.json")
    assert load_results("~/r.json")["schema_version"]
    assert main(["report", "~/r.json", "--out=~/r.html"]) == 0
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"r.json", "r.html"}


@pytest.mark.parametrize("folder", ["a\0b", "caf\udce9", "x" * 300])
def test_bad_folders_are_one_line_before_anything(folder: str, capsys) -> None:
    for command in ("run", "scan", "calibrate"):
        assert main([command, "--device", "cpu", "--out", folder]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_half_a_character_in_results_is_written_as_json_can(tmp_path: Path) -> None:
    results = Results(document())
    results["model"]["id"] = "caf\udce9"
    results.save(tmp_path / "r.json")
    assert load_results(tmp_path / "r.json")["model"]["id"] == "caf\udce9"


@pytest.mark.parametrize(
    "line",
    [
        ["show", "~/run"],
        ["report", "~/run", "--out", "~/page.html"],
        ["poles", "~/run"],
        ["export", "~/run", "--to", "csv", "--out", "~/t.csv", "--model", "~/model"],
        ["compare", "~/run", "~/other", "--out", "~/figure.png"],
        ["find", "dog", "--run", "~/run"],
    ],
    ids=lambda line: line[0],
)
def test_the_home_folder_is_expanded_in_every_path(line: list[str]) -> None:
    arguments = vars(parser(COMMANDS).parse_args(line))
    given = [
        x for value in arguments.values() for x in (value if isinstance(value, list) else [value])
    ]
    assert not [value for value in given if isinstance(value, str) and value.startswith("~")]
    assert str(Path.home() / "run") in given
