"""A report read back: its tags, its texts, and the data that its script would read."""

from __future__ import annotations

import base64
import gzip
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np

DTYPES = {
    "Uint8Array": "<u1",
    "Int8Array": "<i1",
    "Uint16Array": "<u2",
    "Int32Array": "<i4",
    "Float32Array": "<f4",
}


class Page(HTMLParser):
    """Tags with their attributes, the texts of table cells, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        is_script = bool(self.tags) and self.tags[-1][0] == "script"
        (self.scripts if is_script else self.texts).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def header(self) -> dict[str, Any]:
        return unpacked(self.scripts[0])[0]

    @property
    def data(self) -> list[dict[str, Any]]:
        return self.header["entries"]


def unpacked(text: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a page's data."""
    whole = gzip.decompress(base64.b64decode(text))
    (length,) = np.frombuffer(whole, "<u4", 1)
    header = json.loads(whole[8 : 8 + length])
    at, arrays = 8 + int(length), {}
    for name, kind, size in header["arrays"]:
        arrays[name] = np.frombuffer(whole, DTYPES[kind], size, at)
        at += -(-arrays[name].nbytes // 8) * 8
    assert at == len(whole)
    return header, arrays
