"""The one configuration: every option of a run, its default, its check and its words for the command line.

The fields of `Config` are the options of ``conceptvec run`` (underscores become dashes) and the names that the
notebooks set. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conceptvec.concepts import in_place
from conceptvec.errors import RequestError

FOLDS = ("both", "final", "none")
DTYPES = ("auto", "float32", "bfloat16")
DAMAGES = ("zero", "rotate", "mean", "noise")
WHERE = ("out", "overwrite", "stages")  # where and how far to run; they do not change a result
ALL_STAGES = (1, 2, 3)
OPTIONAL = ("revision", "concepts", "out")  # may be None


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """All options of a run; values are checked and normalised on construction.

    Raises:
        RequestError: a value is not usable; the message says which, and what is.
    """

    model: str = _option(
        "demo", "demo, a Hugging Face id such as google/gemma-3-1b-it, or a model folder"
    )
    revision: str | None = _option(None, "Hub revision; the resolved commit goes into the results")
    device: str = _option("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = _option("auto", "auto, float32 or bfloat16")
    layers: str = _option("all", "8-20, 3,5,7 or all (zero-based)")
    max_vectors: int | None = _option(
        1000, "neurons per layer, a seeded random sample; all for full scale"
    )
    batch_size: int = _option(
        200, "value vectors per projection batch and damaged rows per forward pass"
    )
    top_k: int = _option(50, "tokens kept per pole")
    fold: str = _option("both", "RMSNorm weights folded into the readout: both, final or none")
    min_kurtosis: float | None = _option(
        None, "smallest excess kurtosis of a readout that passes the filter"
    )
    score_threshold: float = _option(0.75, "smallest Stage 2 score of a concept candidate")
    concepts: str | None = _option(
        None, "a .json or .txt file, or birds=robin,eagle (default: the built-in twelve)"
    )
    corpus: str = _option(
        "self",
        "running text: self (the model writes it), FILE.txt, FILE.jsonl:COLUMN or hf:OWNER/NAME",
    )
    corpus_tokens: int | None = _option(None, "tokens of it that are used (default by model)")
    damage: tuple[str, ...] = _option(
        ("zero", "rotate", "mean"), "damage kinds, the first is the primary one"
    )
    noise_sigma: float | None = _option(
        None, "absolute noise per element for --damage noise (the literature uses 0.1)"
    )
    chat_template: bool = _option(
        False, "put the prompts into the model's turn of its chat template"
    )
    seed: int = _option(0, "every random draw derives from it")
    out: str | None = _option(None, "the run folder (default runs/<model>-<device>)")
    overwrite: bool = _option(False, "start afresh instead of resuming")
    stages: tuple[int, ...] = _option(ALL_STAGES, "stages to run: 1 or 1,2 (default all)")

    def __post_init__(self) -> None:
        """Check every field; sequences given as text or list become tuples."""
        for name in ("damage", "stages"):
            object.__setattr__(
                self, name, _as_tuple(getattr(self, name), int if name == "stages" else str)
            )
        for name in ("model", "concepts", "corpus", "out"):
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        for name in (
            "model",
            "device",
            "dtype",
            "layers",
            "fold",
            "revision",
            "concepts",
            "corpus",
            "out",
        ):
            if not isinstance(value := getattr(self, name), str) and not (
                value is None and name in OPTIONAL
            ):
                raise _bad(name, value, "text")
        for name in ("chat_template", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise _bad(name, getattr(self, name), "True or False")
        if not self.model.strip():
            raise _bad("model", self.model, "demo, a Hugging Face id or a folder")
        if self.dtype in ("float16", "fp16", "half"):
            raise RequestError(
                "dtype float16 is refused: Gemma 3's residual stream passes 65,504, the largest float16 number, and "
                "turns into infinities. Use --dtype float32, or bfloat16 where the device computes it."
            )
        _choice("dtype", self.dtype, DTYPES)
        _choice("fold", self.fold, FOLDS)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise _bad("device", self.device, "auto, cpu, cuda, cuda:N or mps")
        if self.max_vectors is not None:
            _whole("max_vectors", self.max_vectors, 1, "a whole number of at least 1, or all")
        if self.corpus_tokens is not None:
            _whole("corpus_tokens", self.corpus_tokens, 1, "a whole number of at least 1")
        for name, low in (("batch_size", 1), ("top_k", 1), ("seed", 0)):
            _whole(name, getattr(self, name), low, f"a whole number of at least {low}")
        _real("score_threshold", self.score_threshold, 0.0, 1.0)
        for name, low in (("noise_sigma", 1e-9), ("min_kurtosis", -2.0)):
            if getattr(self, name) is not None:
                _real(name, getattr(self, name), low, 1e6)
        if (
            not self.damage
            or len(set(self.damage)) != len(self.damage)
            or set(self.damage) - set(DAMAGES)
        ):
            raise _bad(
                "damage",
                ",".join(self.damage),
                "one or more of zero, rotate, mean, noise, each once",
            )
        if self.stages not in ((1,), (1, 2), ALL_STAGES):
            raise _bad("stages", ",".join(map(str, self.stages)), "1, 1,2 or 1,2,3")
        parse_layers(self.layers, None)
        path = self.concepts
        if path is not None and not in_place(path) and not is_file(path):
            raise RequestError(
                f"concepts: no file at {path[:200]!r}; give the path of a readable file"
            )

    def resolved(self) -> dict[str, Any]:
        """Every option as plain JSON values."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }

    def identity(self) -> dict[str, Any]:
        """The options that decide the results; a run folder belongs to one identity."""
        return {k: v for k, v in self.resolved().items() if k not in WHERE}

    def folder(self, device: str) -> Path:
        """The run folder: `out`, or ``runs/<model>-<device>``."""
        name = Path(self.model).name if Path(self.model).exists() else self.model.replace("/", "--")
        return Path(self.out) if self.out else Path("runs") / f"{name or 'model'}-{device}"


def parse_layers(text: str, n_layers: int | None) -> list[int]:
    """Zero-based layer numbers of ``8-20``, ``3,5,7`` or ``all`` (empty for ``all`` while `n_layers` is unknown)."""
    if text == "all":
        return list(range(n_layers or 0))
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise _bad("layers", text, "8-20, 3,5,7 or all")
        chosen.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if n_layers is not None and max(chosen) >= n_layers:
        raise _bad(
            "layers", text, f"numbers from 0 to {n_layers - 1}: the model has {n_layers} layers"
        )
    return sorted(chosen)


def is_file(path: str) -> bool:
    """Whether there is a file; text that can be no file's name is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # longer than any file's name, or no name at all
        return False


def corpus_file(corpus: str) -> str | None:
    """The file that ``--corpus`` names, without the column behind it; None where it names none."""
    return next((path for path in (corpus, corpus.rpartition(":")[0]) if is_file(path)), None)


def _as_tuple(value: Any, kind: type) -> tuple:
    parts = (
        value.split(",")
        if isinstance(value, str)
        else value
        if isinstance(value, list | tuple)
        else (value,)
    )
    try:
        return tuple(kind(p.strip() if isinstance(p, str) else p) for p in parts)
    except (TypeError, ValueError):
        return tuple(parts)


def _bad(name: str, got: Any, expected: str) -> RequestError:
    return RequestError(f"--{name.replace('_', '-')}: got {got!r}, expected {expected}")


def _choice(name: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise _bad(name, got, ", ".join(choices))


def _whole(name: str, got: Any, low: int, expected: str) -> None:
    if not isinstance(got, int) or isinstance(got, bool) or got < low:
        raise _bad(name, got, expected)


def _real(name: str, got: Any, low: float, high: float) -> None:
    if isinstance(got, bool) or not isinstance(got, int | float) or not low <= got <= high:
        raise _bad(name, got, f"a number from {low:g} to {high:g}")
