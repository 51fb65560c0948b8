"""The one configuration: every option of a run, its default, its check and its words.

The fields of `Config` are the options of ``conceptvec run`` (underscores become dashes) and the
names that the notebooks set. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptvec import options
from conceptvec.concepts import in_place, is_file
from conceptvec.errors import RequestError

FOLDS = ("both", "final", "none")
DTYPES = ("auto", "float32", "bfloat16")
HALF = ("float16", "fp16", "half")  # refused with the reason
DAMAGES = ("zero", "rotate", "mean", "noise")
DEVICES = r"auto|cpu|mps|cuda(:\d+)?"
WHERE = ("out", "overwrite", "stages")  # where and how far to run; they do not change a result
ALL_STAGES = (1, 2, 3)
STAGES = ((1,), (1, 2), ALL_STAGES)


def parse_layers(text: str, n_layers: int | None) -> list[int]:
    """Zero-based layer numbers of ``8-20``, ``3,5,7`` or ``all``.

    While `n_layers` is unknown, ``all`` gives none.
    """
    if text == "all":
        return list(range(n_layers or 0))
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise options.refusal("layers", text, "8-20, 3,5,7 or all")
        chosen.update(range(first, last + 1))
    if n_layers is not None and max(chosen) >= n_layers:
        expected = f"numbers from 0 to {n_layers - 1}: the model has {n_layers} layers"
        raise options.refusal("layers", text, expected)
    return sorted(chosen)


def corpus_file(corpus: str) -> str | None:
    """The file that ``--corpus`` names, without the column behind it; None where it names none."""
    return next((path for path in (corpus, corpus.rpartition(":")[0]) if is_file(path)), None)


def _check_model(name: str, value: str) -> str:
    if not value.strip():
        raise options.refusal(name, value, "demo, a Hugging Face id or a folder")
    return value


def _check_dtype(name: str, value: str) -> str:
    if value in HALF:
        raise RequestError(
            "dtype float16 is refused: Gemma 3's residual stream passes 65,504, the largest "
            "float16 number, and turns into infinities. Use --dtype float32, or bfloat16 where "
            "the device computes it."
        )
    if value not in DTYPES:
        raise options.refusal(name, value, ", ".join(DTYPES))
    return value


def _check_layers(_: str, value: str) -> str:
    parse_layers(value, None)
    return value


def _check_file(name: str, path: str) -> str:
    if not is_file(path):
        raise RequestError(f"{name}: no file at {path[:200]!r}; give the path of a readable file")
    return path


def _check_concepts(name: str, value: str) -> str:
    return value if in_place(value) else _check_file(name, value)


@dataclass(frozen=True)
class Config:
    """All options of a run; values are checked and normalised on construction.

    Raises:
        RequestError: a value is not usable; the message says which, and what is.
    """

    model: str = options.text(
        "demo",
        "demo, a Hugging Face id such as google/gemma-3-1b-it, a model folder, or a .gguf file",
        _check_model,
    )
    revision: str | None = options.text(
        None, "Hub revision; the resolved commit goes into the results"
    )
    device: str = options.pattern(
        "auto", "auto, cpu, cuda, cuda:N or mps", DEVICES, "auto, cpu, cuda, cuda:N or mps"
    )
    dtype: str = options.text("auto", "auto, float32 or bfloat16", _check_dtype)
    layers: str = options.text("all", "8-20, 3,5,7 or all (zero-based)", _check_layers)
    max_vectors: int | None = options.whole_or_all(
        1000, "neurons per layer, a seeded random sample; all for full scale", low=1
    )
    batch_size: int = options.whole(
        200,
        "value vectors per projection batch and damaged rows per pass (at most 32 on a CPU)",
        low=1,
    )
    top_k: int = options.whole(50, "tokens kept per pole", low=1)
    fold: str = options.choice(
        "both", "RMSNorm weights folded into the readout: both, final or none", FOLDS
    )
    min_kurtosis: float | None = options.real(
        None, "smallest excess kurtosis of a readout that passes the filter", low=-2.0, high=1e6
    )
    score_threshold: float = options.real(
        0.75, "smallest Stage 2 score of a concept candidate", low=0.0, high=1.0
    )
    concepts: str | None = options.text(
        None,
        "a .json or .txt file, or birds=robin,eagle (default: the built-in twelve)",
        _check_concepts,
    )
    corpus: str = options.text(
        "self",
        "running text: self (the model writes it), FILE.txt, FILE.jsonl:COLUMN or hf:OWNER/NAME",
    )
    corpus_tokens: int | None = options.whole_or_all(
        None, "tokens of running text that are used (default by model and device)", low=1
    )
    damage: tuple[str, ...] = options.several(
        ("zero", "rotate", "mean"),
        "damage kinds, the first is the primary one",
        str,
        options.subset(DAMAGES),
    )
    noise_sigma: float | None = options.real(
        None,
        "absolute noise per element for the damage noise (the literature uses 0.1)",
        low=1e-9,
        high=1e6,
    )
    chat_template: bool = options.switch(
        "put openings and prompts into the model's turn of its chat template"
    )
    seed: int = options.whole(0, "every random draw derives from it", low=0, high=None)
    out: str | None = options.folder("the run folder (default runs/<model>-<device>)")
    overwrite: bool = options.switch("start afresh instead of resuming")
    stages: tuple[int, ...] = options.several(
        ALL_STAGES,
        "stages to run: 1 or 1,2 (default all)",
        int,
        options.one_of(STAGES, "1, 1,2 or 1,2,3"),
    )

    def __post_init__(self) -> None:
        """Check every field; sequences given as text or list become tuples, paths text."""
        for declared in dataclasses.fields(self):
            check = declared.metadata["check"]
            value = check(declared.name, getattr(self, declared.name))
            object.__setattr__(self, declared.name, value)

    def resolved(self) -> dict[str, Any]:
        """Every option as plain JSON values."""
        sequences = {"damage": list(self.damage), "stages": list(self.stages)}
        return dataclasses.asdict(self) | sequences

    def identity(self) -> dict[str, Any]:
        """The options that decide the results; a run folder belongs to one identity."""
        return {name: value for name, value in self.resolved().items() if name not in WHERE}

    def folder(self, device: str) -> Path:
        """The run folder: `out`, or ``runs/<model>-<device>``."""
        if self.out:
            return Path(self.out)
        is_path = Path(self.model).exists()
        name = Path(self.model).name if is_path else self.model.replace("/", "--")
        return Path("runs") / f"{name or 'model'}-{device}"
