"""One process is one process, whatever single variables of a launcher are left over."""

from __future__ import annotations

import json

import pytest

from conceptvec import RequestError, launch
from conceptvec.cli import main
from conceptvec.pipeline import processes
from tests.children import world

TOKENS = ["score-tokens", "dog", "cat", "--json"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", *launch.LAUNCHED):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["", "1", "abc"])
def test_a_variable_alone_silences_nothing(name: str, value: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv(name, value)
    assert main(TOKENS) == 0
    assert json.loads(capsys.readouterr().out)["score"] >= 0


@pytest.mark.parametrize("size", ["", " ", "0", "1", "-1"])
def test_a_world_of_one_or_none_is_one_process(size: str, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", "1")
    assert launch.place() == (0, 1, 0)
    assert processes() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: got 'abc'"),
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}, "MASTER_PORT not set"),
        (world(2)[1] | {"RANK": ""}, "RANK not set"),
        (world(2)[1] | {"RANK": "2"}, "RANK: got 2, expected 0 to 1"),
        (world(2)[1] | {"RANK": "one"}, "RANK: got 'one'"),
        (world(2)[1] | {"LOCAL_RANK": "x"}, "LOCAL_RANK: got 'x'"),
    ],
)
@pytest.mark.parametrize("command", ["run", "scan", "calibrate"])
def test_half_a_launch_is_refused_in_one_line(
    command: str, changes: dict[str, str], said: str, monkeypatch, capsys, tmp_path
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert main([command, "--device", "cpu", "--out", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_launch_gives_every_process_its_place(monkeypatch) -> None:
    for rank, variables in enumerate(world(3)):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert launch.place() == (rank, 3, rank)
        assert launch.is_first() is (rank == 0)


def test_an_address_that_is_none_is_one_line(monkeypatch) -> None:
    import accelerate

    def nowhere(**_) -> None:
        raise ValueError("port must be an integer")

    monkeypatch.setattr(accelerate, "PartialState", nowhere)
    for name, value in world(2)[0].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Exception, match="2 processes could not meet.*port must be") as caught:
        processes()
    assert not isinstance(caught.value, RequestError)
