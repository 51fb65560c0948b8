"""Files on disk: arrays as safetensors, and files that are there completely or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from conceptvec.errors import RequestError, RunError

if TYPE_CHECKING:
    import numpy as np

Arrays = dict[str, Any]  # numpy arrays, and plain values under names that end in `JSON`
JSON = "_json"
HALF_WRITTEN = r"\..+\.\d+\.conceptvec\.tmp"  # a name that no other program gives
Kind = tuple[Callable[[bytes], bool], str]  # whether a file that begins so is of it, and its name
BLOCK = 2**20  # bytes of a file that are read at a time
BEGINNING = 2**10  # bytes of a file that tell what it is


def pack(arrays: Arrays) -> bytes:
    """Arrays as the content of a safetensors file."""
    from safetensors.numpy import save

    return save({name: _as_array(name, value) for name, value in arrays.items()})


def _as_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    import numpy as np  # the command line reads digests alone

    if name.endswith(JSON):
        return np.frombuffer(json.dumps(value).encode(), np.uint8)
    return np.ascontiguousarray(value)


def unpack(content: bytes) -> Arrays:
    """The inverse of `pack`.

    Raises:
        ValueError: the content was not made by it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: Arrays = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    for name, values in arrays.items():
        if name.endswith(JSON):
            arrays[name] = json.loads(values.tobytes().decode())
    return arrays


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_of(file: BinaryIO) -> str:
    """SHA-256 in hexadecimal of what is left of an open file."""
    whole = hashlib.sha256()
    while block := file.read(BLOCK):
        whole.update(block)
    return whole.hexdigest()


def with_sorted_metadata(content: bytes) -> bytes:
    """A safetensors file whose metadata stand in order; the library writes them in any."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def read_part(path: Path, expected: str) -> Arrays | None:
    """The arrays of a file, if it is there and its `digest` is the one that is expected."""
    try:
        content = path.read_bytes()
        return unpack(content) if digest(content) == expected else None
    except (OSError, ValueError):
        return None


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there completely or not at all.

    Raises:
        RunError: the disk is full or the folder cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.conceptvec.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink()
        raise cannot_write(path, error) from None


def check_place(path: Path, is_own: Callable[[bytes], bool], what: str) -> None:
    """Look at where a file will be written: what lies there is replaced if it is of the same kind.

    Args:
        path: the file.
        is_own: whether a file that begins so is of that kind.
        what: the kind, for the message.

    Raises:
        RequestError: a folder is there, a file of another kind, or no file can be.
    """
    try:
        os.lstat(path)  # also says whether a path can be called so
        if path.is_dir():
            raise RequestError(f"--out: {path} is a folder; give the path of the file")
        if not path.is_file():
            return
        with path.open("rb") as file:
            begin = file.read(BEGINNING)
    except RequestError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise RequestError(
            f"--out: {str(path)[:200]!r} cannot be written ({_reason(error)}); give another --out"
        ) from None
    if begin.strip() and not is_own(begin):
        raise RequestError(
            f"--out: {path} is there and is no {what}; give another --out, or move it away"
        )


def cannot_write(path: Path, error: OSError | ValueError) -> RunError:
    """What to say of a file or folder that cannot be written."""
    return RunError(
        f"{path} could not be written ({_reason(error)}); what was finished is kept. "
        "Make room or give another --out, then run the same command again."
    )


def _reason(error: OSError | ValueError) -> object:
    """Why a path could not be used, without the path."""
    return getattr(error, "strerror", None) or error
