"""Text that was read: files and data sets of the Hub, cut into passages.

``FILE.txt`` holds one document a line, ``FILE.jsonl:COLUMN`` one a record, and
``hf:OWNER/NAME[:CONFIG[:SPLIT[:COLUMN]]]`` is streamed through the library ``datasets``, which
never runs code from the repository. Reading stops where there are enough tokens, and says what is
left.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from conceptvec.effects.coverage import Coverage
from conceptvec.effects.passages import LEAD_IN, Passages, cut, joined
from conceptvec.effects.target_words import TargetWords, occurrences
from conceptvec.errors import RequestError, first_line
from conceptvec.files import digest_of

if TYPE_CHECKING:
    from conceptvec.model.network import Model

logger = logging.getLogger(__name__)

SELF = "self"
LINES_AT_ONCE = 64  # texts that are tokenised together
SPLIT = "train"  # of a data set, where none is named
COLUMN = "text"
TOP_UP = 0.5  # share of the wanted tokens that concepts with few words may get on top
READ_ON = 20  # times the wanted tokens that are looked through for them
INSTALL = "pip install 'conceptvec[datasets]'"
HF_FORM = "hf:OWNER/NAME[:CONFIG[:SPLIT[:COLUMN]]]"


@dataclass(frozen=True)
class TextFile:
    """A file of lines, or of JSON records of which one column is text."""

    path: Path
    column: str | None = None  # of a .jsonl file
    digest: str | None = None  # of the content, where it is known and no other will do

    def documents(self) -> Iterator[str]:
        """The text of every line or record; empty ones are left out.

        Raises:
            RequestError: the file is not readable, no UTF-8, or a record lacks the column.
        """
        number = 0
        try:
            with self.path.open("rb") as content:
                self._check(content)
                file = io.TextIOWrapper(content, encoding="utf-8-sig")
                for number, line in enumerate(file, 1):
                    text = line if self.column is None else self._record(line, number)
                    if text.strip():
                        yield text.strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(
                f"--corpus: {self.path} is not readable UTF-8 text after line {number} "
                f"({first_line(error)}); save it as UTF-8"
            ) from None

    def _check(self, file: BinaryIO) -> None:
        """Refuse another content than that which the run began with."""
        if self.digest is not None and digest_of(file) != self.digest:
            raise RequestError(
                f"--corpus: {self.path} was changed since the run began; put it back as it was, or "
                "give another --out"
            )
        file.seek(0)

    def _record(self, line: str, number: int) -> str:
        if not line.strip():
            return ""
        place = f"--corpus: {self.path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{place}: not JSON ({first_line(error, 100)})") from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise RequestError(f"{place}: got {kind}, expected an object with {self.column!r}")
        return column_text(record, str(self.column), place)


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hub, streamed."""

    name: str
    config: str | None = None
    split: str = SPLIT
    column: str | None = None

    def documents(self) -> Iterator[str]:
        """The text of every record; empty ones are left out.

        Raises:
            RequestError: ``datasets`` is not installed, there is no such data set, or it cannot be
                read without running its code.
        """
        place = f"--corpus: hf:{self.name}"
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise RequestError(
                f"{place}: needs the library datasets, which is not installed; run {INSTALL}, "
                "or give a .txt or .jsonl file"
            ) from None
        # Before 4.0 a repository's code could be run, and old versions must be told not to.
        old = int(datasets.__version__.split(".")[0]) < 4
        options: dict[str, Any] = {"trust_remote_code": False} if old else {}
        try:
            records: Any = datasets.load_dataset(
                self.name, self.config, split=self.split, streaming=True, **options
            )
            for number, record in enumerate(records, 1):
                column = self.column or text_column(record, place)
                text = column_text(record, column, f"{place}, record {number}")
                if text.strip():
                    yield text.strip()
        except RequestError:
            raise
        except Exception as error:  # the library and the network fail in many ways
            raise RequestError(
                f"{place}: could not be read ({type(error).__name__}: {first_line(error)}); "
                f"expected {HF_FORM}, a public data set of text"
            ) from error


def column_text(record: Mapping[str, Any], column: str, place: str) -> str:
    """The text of a record's column.

    Raises:
        RequestError: there is no such column, or it holds no text.
    """
    if column not in record:
        raise RequestError(
            f"{place}: no column {column!r}; there are {', '.join(record) or 'none'}"
        )
    value = record[column]
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        raise RequestError(f"{place}: the column {column!r} holds {kind}, expected text")
    # JSON can hold half a character, which no tokenizer takes.
    return (value or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def text_column(record: Mapping[str, Any], place: str) -> str:
    """The column that is read where none is named: ``text``, or the only one that holds text.

    Raises:
        RequestError: the columns leave a choice.
    """
    texts = [name for name, value in record.items() if isinstance(value, str)]
    if COLUMN in texts:
        return COLUMN
    if len(texts) != 1:
        listed = ", ".join(texts) or "none"
        raise RequestError(f"{place}: which column? Those of text are {listed}; give {HF_FORM}")
    return texts[0]


def parse_corpus(corpus: str) -> TextFile | HubDataset | None:
    """What ``--corpus`` names; None stands for ``self``, the model's own text.

    Raises:
        RequestError: there is no such file, or the form is another.
    """
    if corpus == SELF:
        return None
    if corpus.startswith("hf:"):
        return _hub_dataset(corpus)
    path, column = _file_and_column(corpus)
    is_jsonl = path.suffix.lower() in (".jsonl", ".ndjson")
    if is_jsonl != (column is not None):
        raise RequestError(
            f"--corpus: got {corpus!r}; a .jsonl file takes the column of its text, as in "
            "FILE.jsonl:text, and a .txt file takes none"
        )
    return TextFile(path, column)


def _file_and_column(corpus: str) -> tuple[Path, str | None]:
    """The file and the column behind its name; a colon may also be part of the file's name."""
    before, colon, column = corpus.rpartition(":")
    for name, behind in ((corpus, None), (before, column if colon else None)):
        with suppress(OSError, ValueError):  # longer than any file's name, or no name at all
            if name and Path(name).is_file():
                return Path(name), behind
    raise RequestError(
        f"--corpus: no file at {corpus[:200]!r}; expected self, a .txt file, FILE.jsonl:COLUMN or "
        f"{HF_FORM}"
    )


def _hub_dataset(corpus: str) -> HubDataset:
    name, *rest = corpus.removeprefix("hf:").split(":")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or len(rest) > 3:
        raise RequestError(f"--corpus: got {corpus[:200]!r}, expected {HF_FORM}")
    config, split, column = (*rest, *[""] * (3 - len(rest)))
    return HubDataset(name, config or None, split or SPLIT, column or None)


def encoded(model: Model, documents: Iterable[str]) -> Iterator[list[int]]:
    """The token ids of each document, without the tokenizer's start.

    Raises:
        RequestError: the tokenizer is another model's.
    """
    stream = iter(documents)
    while texts := list(islice(stream, LINES_AT_ONCE)):
        for ids in model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            if max(ids, default=0) >= model.vocab_size:
                raise RequestError(
                    f"--model: the tokenizer of {model.name} gives the token {max(ids)}, and the "
                    f"model has only {model.vocab_size}: they do not belong together; fetch the "
                    "files again"
                )
            yield ids


def read_passages(
    model: Model, source: TextFile | HubDataset, targets: TargetWords, wanted: int
) -> Passages:
    """The beginning of a text, as much as `wanted`, and of the rest what concepts still lack.

    Args:
        model: the model whose tokenizer cuts the text.
        source: the text.
        targets: the concepts' words.
        wanted: tokens that may be scored. Up to half as many more are taken for concepts that are
            short of words or documents, from passages with one of their words.

    Raises:
        RequestError: the text can't be read, or holds nothing that could be scored.
    """
    documents = _Counted(source.documents())
    stream = _batches(model, documents, targets.continues)
    parts: list[Passages] = []
    rest: Passages | None = None
    missing = wanted
    for batch in stream:
        part, rest = _split(batch, missing)
        parts.append(part)
        missing -= part.tokens
        if missing <= 0:
            break
    passages = joined(parts, renumber=False)
    if not passages.tokens:
        raise RequestError(
            "--corpus: holds no text of more than a few words; expected one passage a line"
        )
    if missing > 0:
        logger.warning("--corpus holds %d tokens, %d were asked for", passages.tokens, wanted)
        return passages
    used = int(passages.documents.max()) + 1
    further = stream if rest is None else chain([rest], stream)
    top_up = _topped_up(further, passages, targets, wanted)
    logger.info(
        "--corpus: %d tokens of the first %d documents, and %d passages of the next %d for "
        "concepts with few words; the rest was left out",
        passages.tokens,
        used,
        len(top_up),
        documents.count - used,
    )
    return joined([passages, top_up], renumber=False)


def _topped_up(
    stream: Iterator[Passages], passages: Passages, targets: TargetWords, wanted: int
) -> Passages:
    """Further passages with words of concepts that are short of them."""
    coverage = Coverage.of(passages, targets)
    parts: list[Passages] = []
    taken = tokens_read = 0
    while coverage.is_short.any() and taken < wanted * TOP_UP and tokens_read < wanted * READ_ON:
        batch = next(stream, None)
        if batch is None:
            break
        tokens_read += batch.tokens
        # Only passages that hold a word of a concept that is still short.
        present = occurrences(batch, targets)
        helps = coverage.is_short[targets.word_concept[present.word]]
        room = int(wanted * TOP_UP) - taken
        part, _ = _split(batch.take(np.unique(present.passage[helps])), room)
        coverage = coverage.with_more(Coverage.of(part, targets))
        taken += part.tokens
        parts.append(part)
    return joined(parts, renumber=False)


def _batches(model: Model, documents: Iterable[str], continues: np.ndarray) -> Iterator[Passages]:
    """The passages of some documents at a time; a document's number is its place in the text."""
    start = model.start
    scored_from = max(len(start), 1) + LEAD_IN
    stream = enumerate(encoded(model, documents))
    while chunk := list(islice(stream, LINES_AT_ONCE)):
        pieces = [(i, ids) for i, text in chunk for ids in cut(text, start, continues)]
        pieces = [(i, ids) for i, ids in pieces if len(ids) > scored_from]
        yield Passages.of_lists(
            passages=[ids for _, ids in pieces],
            scored_from=[scored_from] * len(pieces),
            documents=[i for i, _ in pieces],
        )


def _split(passages: Passages, tokens: int) -> tuple[Passages, Passages]:
    """The first passages that hold so many tokens to be scored, and the others."""
    counts = np.cumsum(passages.lengths - passages.scored_from)
    kept = min(int(np.searchsorted(counts, tokens)) + 1, len(passages))
    indices = np.arange(len(passages))
    return passages.take(indices[:kept]), passages.take(indices[kept:])


class _Counted:
    """An iterator that knows how many documents were taken from it."""

    def __init__(self, documents: Iterator[str]) -> None:
        self.documents = documents
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        for text in self.documents:
            self.count += 1
            yield text
