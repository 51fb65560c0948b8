"""Files come back as they were, and are there completely or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from conceptvec import Config, RequestError, RunError
from conceptvec.cli import main
from conceptvec.files import check_place, digest, pack, read_part, unpack, write_atomic
from conceptvec.runfolder import RunFolder
from tests.test_runfolder import FACTS

ARRAYS = {
    "whole": np.arange(6, dtype=np.int32).reshape(2, 3),
    "real": np.array([1.5, np.nan]),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "about_json": {"text": ["ü", "\u2028"], "none": None},
}
IS_ROOT = os.name == "posix" and bool(shutil.which("mount")) and os.geteuid() == 0


@pytest.fixture
def again() -> dict:
    return unpack(pack(ARRAYS))


@pytest.mark.parametrize("name", ["whole", "real", "turned"])
def test_arrays_come_back_as_they_were(name: str, again) -> None:
    assert np.array_equal(again[name], ARRAYS[name], equal_nan=True)
    assert again[name].dtype == ARRAYS[name].dtype


def test_plain_values_come_back_as_they_were(again) -> None:
    assert again["about_json"] == ARRAYS["about_json"]


def test_equal_arrays_are_equal_bytes() -> None:
    assert pack(ARRAYS) == pack(dict(reversed(ARRAYS.items())))


@pytest.mark.parametrize("content", [b"", b"junk", pack(ARRAYS)[:-5]])
def test_other_bytes_are_refused(content: bytes, tmp_path) -> None:
    with pytest.raises(ValueError):
        unpack(content)
    (tmp_path / "part").write_bytes(content)
    assert read_part(tmp_path / "part", digest(content)) is None


def test_a_part_that_was_changed_is_not_read(tmp_path) -> None:
    content = pack(ARRAYS)
    (tmp_path / "part").write_bytes(content)
    assert read_part(tmp_path / "part", digest(content)) is not None
    assert read_part(tmp_path / "part", digest(content + b" ")) is None
    assert read_part(tmp_path / "nowhere", digest(content)) is None


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    write_atomic(tmp_path / "file", b"kept")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("conceptvec.files.os.fsync", full)
    with pytest.raises(RunError, match="No space left on device.*Make room"):
        write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_path_that_cannot_be_is_said_in_one_line(tmp_path) -> None:
    for name in ("a\0b", "x" * 300):
        with pytest.raises(RunError, match="could not be written"):
            write_atomic(tmp_path / name, b"x")


def test_only_a_file_of_the_same_kind_is_replaced(tmp_path) -> None:
    own = lambda begin: begin.startswith(b"own")
    (tmp_path / "other").write_bytes(b"the user's")
    (tmp_path / "own").write_bytes(b"own of an earlier call")
    (tmp_path / "empty").touch()
    for name in ("own", "empty", "new", "no/such/folder"):
        check_place(tmp_path / name, own, "thing of ours")
    with pytest.raises(RequestError, match="other is there and is no thing of ours"):
        check_place(tmp_path / "other", own, "thing of ours")
    for name in ("a\0b", "x" * 300, "."):
        with pytest.raises(RequestError, match="--out: "):
            check_place(tmp_path / name, own, "thing of ours")


@pytest.fixture
def disk(tmp_path: Path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.whole
@pytest.mark.skipif(not IS_ROOT, reason="needs root")
class TestRealDisk:
    def test_full(self, disk: Path) -> None:
        write_atomic(disk / "old", b"kept")
        with pytest.raises(RunError, match="No space left"):
            write_atomic(disk / "old", b"x" * 200_000)
        assert (disk / "old").read_bytes() == b"kept"
        assert [path.name for path in disk.iterdir()] == ["old"]

    def test_read_only(self, disk: Path, capsys) -> None:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(RunError, match="Read-only"):
            RunFolder(disk / "run", Config(), FACTS)
        argv = ["run", "--stages", "1", "--device", "cpu", "--out", str(disk / "run")]
        assert main(argv) in (1, 2)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert str(disk) in said
