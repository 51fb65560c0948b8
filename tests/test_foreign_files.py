"""What the program did not write it leaves alone, and what it cannot vouch for it does not load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import conceptvec as cv
from conceptvec import Config, RequestError
from conceptvec.cli import main
from conceptvec.extraction import fast
from conceptvec.files import write_atomic
from conceptvec.holdings import FIGURES, FOLDERS
from conceptvec.runfolder import RunFolder
from conceptvec.show.figures import FIGURES as DRAWN
from tests.conftest import make_hf, save

FACTS = {"fingerprint": "f" * 64, "dtype": "float32", "device": "cpu"}
RESULTS = "concept_vector_results_cpu.json"
VECTORS = "concept_vectors.safetensors"
OLD = 2 * 3600


def aged(path: Path, content: str = "the user's") -> Path:
    """A file that was written two hours ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - OLD,) * 2)
    return path


FOREIGN = [
    ".draft.tmp",
    "project/.draft.tmp",
    "project/deep/.notes.123.tmp",
    "projections/.draft.tmp",
    "projections/.layer_00.safetensors.tmp",
    "text/notes.conceptvec.tmp",
    "figures/.mine.1.tmp",
    "project/.x.1.conceptvec.tmp",
    ".x.conceptvec.tmp",
    "manifest.copy.json",
    "manifest.rank.json",
    "manifest.rank1.json.bak",
    "concept_vector_results_backup.json",
    "concept_vector_results_cpu.json.bak",
    "concept_vectors.safetensors.bak",
    "my_report.html",
    "report.html.bak",
    "figures/mine.png",
    "figures/drops.pdf",
    "projections/notes.txt",
]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_stays(name: str, overwrite: bool, tmp_path: Path) -> None:
    RunFolder(tmp_path, Config(), FACTS)
    foreign = aged(tmp_path / name)
    RunFolder(tmp_path, Config(overwrite=overwrite), FACTS)
    assert foreign.read_text() == "the user's"


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_killed_process_left_goes(folder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("conceptvec.files.os.replace", lambda *_: os._exit(1))
    path = tmp_path / folder / "x.safetensors"
    if os.fork() == 0:
        write_atomic(path, b"half")
    os.wait()
    (left,) = path.parent.glob(".*")
    monkeypatch.undo()
    RunFolder(tmp_path, Config(), FACTS)
    assert left.exists()  # it may still be at work
    os.utime(left, (time.time() - OLD,) * 2)
    RunFolder(tmp_path, Config(), FACTS)
    assert not left.exists()


@pytest.mark.parametrize("kind", ["folder", "dangling", "link", "socket"])
@pytest.mark.parametrize("name", [".x.tmp", "projections/.x.1.conceptvec.tmp"])
def test_what_is_no_file_is_ignored(kind: str, name: str, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    target = aged(tmp_path / "target")
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mkfifo(path)
    else:
        path.symlink_to(target if kind == "link" else tmp_path / "nowhere")
    os.utime(path, (time.time() - OLD,) * 2, follow_symlinks=False)  # as old as what goes
    RunFolder(run, Config(), FACTS)
    RunFolder(run, Config(overwrite=True), FACTS)
    assert path.is_symlink() or path.exists()
    assert target.exists()


def results_of(folder: Path, **options: Any) -> str:
    """The results file of a run."""
    parts = RunFolder(folder / "made", Config(**options), FACTS)
    document = {
        key: parts.identity[key] for key in ("conceptvec_version", "configuration", "model")
    }
    return json.dumps(document)


class TestResultsWithoutAManifest:
    @pytest.mark.parametrize("manifest", [None, "", '{"parts": {', "[" * 10_000])
    def test_of_another_run_are_not_replaced(self, manifest, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        (run / RESULTS).write_text(results_of(tmp_path, seed=3))
        if manifest is not None:
            (run / "manifest.json").write_text(manifest)
        with pytest.raises(RequestError, match=r"seed was 3, is 0.*--overwrite"):
            RunFolder(run, Config(), FACTS)
        assert (run / RESULTS).read_text() == results_of(tmp_path, seed=3)

    def test_of_the_same_run_are_its_own(self, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        (run / RESULTS).write_text(results_of(tmp_path))
        RunFolder(run, Config(), FACTS)

    @pytest.mark.parametrize("content", ["", "{}", "[]", "no json", '{"configuration": 1}'])
    def test_that_say_nothing_are_not_replaced(self, content, tmp_path):
        (tmp_path / RESULTS).write_text(content)
        with pytest.raises(RequestError, match=f"nothing says what {RESULTS} was made with"):
            RunFolder(tmp_path, Config(), FACTS)
        assert (tmp_path / RESULTS).read_text() == content
        assert not (tmp_path / "manifest.json").exists()

    def test_vectors_alone_are_not_replaced(self, tmp_path):
        (tmp_path / VECTORS).write_bytes(b"the user's")
        with pytest.raises(RequestError, match=f"nothing says what {VECTORS}"):
            RunFolder(tmp_path, Config(), FACTS)

    def test_of_another_device_are_not_replaced(self, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        (run / "concept_vector_results_cuda.json").write_text(results_of(tmp_path, seed=3))
        with pytest.raises(RequestError, match="seed was 3"):
            RunFolder(run, Config(), FACTS)

    def test_overwrite_is_a_yes(self, tmp_path):
        (tmp_path / RESULTS).write_text("{}")
        RunFolder(tmp_path, Config(overwrite=True), FACTS)

    def test_a_dry_run_says_so(self, tmp_path, capsys):
        (tmp_path / RESULTS).write_text("{}")
        assert main(["run", "--dry-run", "--device", "cpu", "--out", str(tmp_path)]) == 2
        assert "nothing says what" in capsys.readouterr().out


def test_overwrite_takes_the_old_report_and_figures_away(tmp_path: Path) -> None:
    RunFolder(tmp_path, Config(), FACTS)
    names = [f"figures/{name}.png" for name in DRAWN]
    names += [
        "concept_vector_results_cpu.invalid.json",
        "report.html",
        "calibration.json",
        "calibration.png",
        RESULTS,
        VECTORS,
    ]
    for name in names:
        aged(tmp_path / name)
    RunFolder(tmp_path, Config(overwrite=True), FACTS)
    assert [name for name in names if (tmp_path / name).exists()] == []


def test_a_folder_that_is_no_run_keeps_its_report(tmp_path: Path) -> None:
    """`--overwrite` by mistake in a folder that holds no run."""
    report = aged(tmp_path / "report.html")
    RunFolder(tmp_path, Config(overwrite=True), FACTS)
    assert report.exists()


def test_the_figures_that_go_are_those_that_are_drawn() -> None:
    import re

    assert all(re.fullmatch(FIGURES, f"{name}.png") for name in DRAWN)
    assert not re.fullmatch(FIGURES, "mine.png")


def test_a_foreign_manifest_of_another_name_is_nobodys(tmp_path: Path) -> None:
    """A web app's manifest beside the run is not one of a process."""
    (tmp_path / "manifest.webmanifest.json").write_text('{"name": "app"}')
    RunFolder(tmp_path, Config(), FACTS)


class TestKernels:
    """Compiled code is loaded from where the user alone can write, and by what it holds."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch) -> Path:
        if sys.platform != "linux" or shutil.which("g++") is None:
            pytest.skip("the kernels are built by g++ on Linux alone")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(fast, "_built", lambda compiler: self.library(tmp_path, compiler))
        fast.library.cache_clear()
        yield tmp_path / "conceptvec"
        fast.library.cache_clear()

    builds = 0

    def library(self, folder: Path, compiler: str, more: str = "") -> bytes:
        """A library with the symbols that are looked for, quick to build."""
        self.builds += 1
        source = folder / "quick.cpp"
        symbols = "void conceptvec_scan() {} void conceptvec_dots() {}"
        source.write_text(f'extern "C" {{ {symbols} }} {more}')
        command = [compiler, "-shared", "-fPIC", str(source), "-o", str(folder / "quick.so")]
        subprocess.run(command, check=True)
        return (folder / "quick.so").read_bytes()

    def test_are_built_once(self, cache):
        for _ in range(2):
            fast.library.cache_clear()
            assert fast.library() is not None
        assert self.builds == 1
        assert cache.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
    def test_are_not_taken_from_a_folder_that_others_write(self, mode, cache, caplog):
        cache.mkdir()
        cache.chmod(mode)
        assert fast.library() is None
        assert f"others can write {cache}" in caplog.text
        assert self.builds == 0

    def test_are_not_taken_from_a_folder_of_another_user(self, cache, monkeypatch, caplog):
        cache.mkdir(mode=0o700)
        monkeypatch.setattr(fast.os, "getuid", lambda: 12345)
        assert fast.library() is None
        assert f"others can write {cache}" in caplog.text

    def test_a_library_of_the_expected_name_with_another_content_is_not_loaded(
        self, cache, tmp_path
    ):
        assert fast.library() is not None
        (path,) = cache.iterdir()
        shutil.copy(path, tmp_path / "sound")
        flag = tmp_path / "loaded"
        evil = f'struct E {{ E() {{ __builtin_abort(); }} }} e; const char* f = "{flag}";'
        path.unlink()
        path.write_bytes(self.library(tmp_path, "g++", evil))
        self.builds = 0
        fast.library.cache_clear()
        assert fast.library() is not None
        assert self.builds == 1
        assert path.read_bytes() == (tmp_path / "sound").read_bytes()

    @pytest.mark.parametrize("share", [0, 0.5, 0.99])
    def test_a_library_that_is_cut_is_built_anew(self, share, cache):
        assert fast.library() is not None
        (path,) = cache.iterdir()
        content = path.read_bytes()
        path.unlink()  # the process has it mapped
        path.write_bytes(content[: int(share * len(content))])
        fast.library.cache_clear()
        assert fast.library() is not None
        assert path.read_bytes() == content

    def test_a_library_without_the_symbols_is_not_used(self, cache, monkeypatch, caplog, tmp_path):
        source = tmp_path / "empty.cpp"
        source.write_text("int x;")
        command = ["g++", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "empty.so")]
        subprocess.run(command, check=True)
        content = (tmp_path / "empty.so").read_bytes()
        monkeypatch.setattr(fast, "_built", lambda _: content)
        assert fast.library() is None
        assert "can't be built" in caplog.text


def test_a_run_with_out_in_a_home_folder(tmp_path: Path) -> None:
    """Whatever else lies there is the same afterwards."""
    save(make_hf(layers=1), tmp_path / "model")
    home = tmp_path / "home"
    before = {aged(home / name): name for name in FOREIGN if "/" in name or name.startswith(".")}
    config = Config(
        model=str(tmp_path / "model"), device="cpu", top_k=5, stages=(1,), out=str(home)
    )
    cv.run(config)
    cv.run(config)
    assert all(path.read_text() == "the user's" for path in before)
