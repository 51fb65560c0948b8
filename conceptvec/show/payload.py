"""What the report's script reads: entries in JSON and all poles as numbers, as one text.

A length, a header in JSON, and arrays, each from a multiple of eight bytes on; compressed by gzip
and written in base64, which every browser of 2023 or later undoes without a request.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from conceptvec.effects.everywhere import Everywhere
from conceptvec.scoring.answers import ANSWERS
from conceptvec.scoring.poles import PoleTable
from conceptvec.text import printable

ALIGNED = 8  # bytes: where an array may begin
STEPS = 127  # of a pole's effects, between zero and its largest
SCORES = 10_000  # steps between a score of 0 and of 1
KINDS = {
    "uint8": "Uint8Array",
    "int8": "Int8Array",
    "uint16": "Uint16Array",
    "int32": "Int32Array",
    "float32": "Float32Array",
}

Arrays = dict[str, np.ndarray]


def packed(header: Mapping[str, Any], arrays: Arrays) -> str:
    """Header and arrays as one text."""
    listed = [[name, KINDS[array.dtype.name], array.size] for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": listed}, ensure_ascii=False, separators=(",", ":"))
    head = _aligned(text.encode("utf-8"), b" ")
    whole = [np.array([len(head), 0], "<u4").tobytes(), head]
    for array in arrays.values():
        little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        whole.append(_aligned(little_endian.tobytes(), b"\0"))
    return base64.b64encode(gzip.compress(b"".join(whole), mtime=0)).decode("ascii")


def _aligned(data: bytes, fill: bytes) -> bytes:
    return data + fill * (-len(data) % ALIGNED)


def pole_data(table: PoleTable, scan: Everywhere | None) -> tuple[dict[str, Any], Arrays]:
    """The scored poles of a run, with their effects on every concept, as the page holds them.

    Args:
        table: the poles.
        scan: the scan of all poles, where there is one.

    Returns:
        what stands in the header, and the arrays.
    """
    texts, word = _words(table)
    facts = {
        "concepts": [printable(name) for name in table.concepts],
        "answers": list(ANSWERS),
        "texts": texts,
        "width": table.words.shape[1],
        "measured": None,
    }
    arrays = {
        "layer": table.layer.astype(np.uint16),
        "neuron": table.neuron.astype(np.int32),
        "minus": (table.sign < 0).astype(np.uint8),
        "label": table.label.astype(np.uint8),
        "concept": table.concept.astype(np.int32),
        "score": np.round(table.score * SCORES).astype(np.uint16),
        "word": word,
    }
    if scan is not None and set(table.layer.tolist()) <= set(scan.layers):
        known = scan.about["known_words"]
        facts["measured"] = [printable(name) for name in scan.concepts]
        facts["known"] = [known[name] for name in scan.concepts]
        arrays |= _effects(table, scan)
    return facts, arrays


def _words(table: PoleTable) -> tuple[list[str], np.ndarray]:
    """Distinct texts, the most frequent first, and each pole's words by number from one on.

    Tokens that differ in a space alone are one text; zero stands for no more words.
    """
    written = [printable(text) for text in table.texts]
    counts = np.bincount(table.words[table.words >= 0], minlength=len(written))
    total: Counter[str] = Counter()
    for text, count in zip(written, counts.tolist(), strict=True):
        total[text] += count
    texts = sorted(total, key=lambda text: (-total[text], text))
    number_of = {text: number for number, text in enumerate(texts, start=1)}
    numbers = np.array([number_of[text] for text in written] + [0])  # the last one is for −1
    kind = np.uint16 if len(texts) <= np.iinfo(np.uint16).max else np.int32
    return texts, numbers[table.words].astype(kind)


def _effects(table: PoleTable, scan: Everywhere) -> Arrays:
    """Every pole's effects on every concept in steps of its largest, and the largest in nats."""
    layer = np.searchsorted(scan.layers, table.layer)
    sign = (table.sign < 0).astype(int)
    effects = scan.mean[:, layer, table.neuron, sign].T.astype(np.float32)  # (n, C)
    largest = np.abs(effects).max(1)
    share = effects / np.maximum(largest, 1e-30)[:, None]
    return {"effects": np.round(share * STEPS).astype(np.int8), "largest": largest}
