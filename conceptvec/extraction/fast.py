"""`sweep` in compiled form, for processors: `kernels.cpp`, built once and kept in the cache.

On two cores with bfloat16 units the projection takes a third of the time that PyTorch's passes need
(`bench`). Where there is no g++, or the build fails, these are used: the results are the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

from conceptvec.errors import first_line
from conceptvec.extraction.sweep import Workspace
from conceptvec.files import digest, write_atomic

logger = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("kernels.cpp")
# No -ffast-math: it drops NaN.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
SECONDS = 120  # that a build may take
PROCESSOR = (b"flags", b"Features", b"model name")  # lines of /proc/cpuinfo that a build depends on

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
# As in kernels.cpp: is it bfloat16, z, tokens, n, start, mean, keep, capacity, level, count,
# entries, sums, threads.
_SCAN = [_INT, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _INT, _INT, *[_POINTER] * 4, _INT]
# Is it bfloat16, matrix, ids, directions, n, m, width, out, threads.
_DOTS = [_INT, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _INT]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, built where the cache has none for this source and processor.

    None where that fails.
    """
    # Elsewhere g++ is another compiler, whose threads would fight PyTorch's GNU OpenMP.
    if sys.platform != "linux":
        return None
    try:
        kernels = _load()
        kernels.conceptvec_scan.argtypes, kernels.conceptvec_scan.restype = _SCAN, None
        kernels.conceptvec_dots.argtypes, kernels.conceptvec_dots.restype = _DOTS, None
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        # RuntimeError: no home folder, a full disk.
        said = (
            "the projection takes PyTorch's loops, which are slower, since its own can't be built"
        )
        logger.info("%s: %s", said, first_line(getattr(error, "stderr", None) or error))
        return None
    return kernels


def _load() -> ctypes.CDLL:
    """The library from the cache, built first where it is not there or damaged."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("there is no g++")
    path = _folder() / f"kernels-{_fingerprint(compiler)}.so"
    if not _is_sound(path):
        _build(compiler, path)
    return ctypes.CDLL(str(path))


def _is_sound(path: Path) -> bool:
    """Whether the library is what was built: loading half of one would kill the process."""
    try:
        return _sum_file(path).read_text(encoding="ascii") == digest(path.read_bytes())
    except (OSError, ValueError):
        return False


def _sum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "conceptvec"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _fingerprint(compiler: str) -> str:
    """Of everything a build depends on.

    A home folder may be shared by machines with other processors.
    """
    command = [compiler, "--version"]
    version = subprocess.run(command, capture_output=True, check=True, timeout=SECONDS).stdout
    processor = Path("/proc/cpuinfo").read_bytes().partition(b"\n\n")[0]
    lines = [line for line in processor.splitlines() if line.startswith(PROCESSOR)]
    content = [SOURCE.read_bytes(), " ".join(FLAGS).encode(), version, *lines]
    return hashlib.sha256(b"\n".join(content)).hexdigest()[:16]


def _build(compiler: str, path: Path) -> None:
    """Compile elsewhere and put the file in place as a whole.

    Several processes may do so at once.
    """
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / path.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=SECONDS,
        )
        content = built.read_bytes()
        write_atomic(path, content)
        write_atomic(_sum_file(path), digest(content).encode())


def usable(matrix: torch.Tensor) -> bool:
    """Whether the kernels can read a matrix, and are there."""
    is_readable = matrix.dtype in (torch.float32, torch.bfloat16) and matrix.is_contiguous()
    return matrix.device.type == "cpu" and is_readable and library() is not None


class CompiledScan:
    """`sweep.Scan` in one pass over every chunk."""

    def __init__(self, mean: torch.Tensor, keep: int, _: Workspace) -> None:
        n = len(mean)
        self.mean, self.keep, self.capacity = mean.contiguous(), keep, 2 * keep
        self.sums = torch.zeros(3, n, dtype=torch.float64)
        self.level = torch.full((2, n), -math.inf)
        self.count = torch.zeros(2, n, dtype=torch.int32)
        self.entries = torch.empty(2, n, self.capacity, 2)  # (value, token as the bits of an int32)

    def add(self, z: torch.Tensor, start: int) -> None:
        """As `sweep.Scan.add`; z stays."""
        kernels = library()
        assert kernels is not None and z.is_contiguous()
        kernels.conceptvec_scan(
            z.dtype is torch.bfloat16,
            z.data_ptr(),
            *z.shape,
            start,
            self.mean.data_ptr(),
            self.keep,
            self.capacity,
            self.level.data_ptr(),
            self.count.data_ptr(),
            self.entries.data_ptr(),
            self.sums.data_ptr(),
            torch.get_num_threads(),
        )

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sweep.Scan.best`."""
        values, ids = self.entries[..., 0], self.entries.view(torch.int32)[..., 1]
        is_entry = torch.arange(self.capacity) < self.count[:, :, None]
        best = values.masked_fill(~is_entry, -math.inf).topk(self.keep, dim=2)
        return ids.masked_fill(~is_entry, 0).gather(2, best.indices).long(), best.values


def compiled_dots(
    matrix: torch.Tensor, ids: torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """`sweep.dots` without a copy of the rows."""
    kernels = library()
    assert kernels is not None
    ids, directions = ids.contiguous(), directions.contiguous()
    out = torch.empty(ids.shape, dtype=torch.float64)
    kernels.conceptvec_dots(
        matrix.dtype is torch.bfloat16,
        matrix.data_ptr(),
        ids.data_ptr(),
        directions.data_ptr(),
        *ids.shape,
        matrix.shape[1],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
