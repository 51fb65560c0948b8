"""Write ``conceptvec/data/results.schema.json`` from the classes of `conceptvec.document`.

    python scripts/make_schema.py

A class becomes an object with its fields, ``X | None`` allows null, a tuple is an array of that length, and the
`Limits` of an ``Annotated`` are taken over as they are. Descriptions come from the docstrings.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from dataclasses import asdict
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from conceptvec.document import Document, run, scan, scoring, validation

FILE = Path(__file__).parents[1] / "conceptvec" / "data" / "results.schema.json"
CLASSES = [c for m in (run, scan, scoring, validation) for c in vars(m).values() if is_typeddict(c)]
SIMPLE = {str: "string", bool: "boolean", int: "integer", float: "number"}


def document_schema(strict: bool = False) -> dict[str, Any]:
    """The JSON Schema of `Document`.

    Args:
        strict: refuse fields that no class names; only a run's own options may be more.
    """
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "conceptvec results",
    }
    return head | schema_of(Document, strict)


def schema_of(kind: Any, strict: bool = False) -> dict[str, Any]:
    """The JSON Schema of one annotation."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in SIMPLE:
        return {"type": SIMPLE[kind]}
    if is_typeddict(kind):
        return _object(kind, strict)
    if origin is Annotated:
        limits = {k: v for k, v in asdict(arguments[1]).items() if v is not None}
        return schema_of(arguments[0], strict) | limits
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return _or_null(arguments, strict)
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], strict)}
    if origin is tuple:
        items = [schema_of(item, strict) for item in arguments]
        size = len(items)
        return {"type": "array", "prefixItems": items, "minItems": size, "maxItems": size}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], strict)}
    raise TypeError(f"no JSON Schema for {kind}")


def _or_null(arguments: tuple[Any, ...], strict: bool) -> dict[str, Any]:
    (kind,) = [a for a in arguments if a is not type(None)]
    inner = schema_of(kind, strict)
    return inner | {"type": [inner["type"], "null"]}


def _object(kind: Any, strict: bool) -> dict[str, Any]:
    described = _descriptions(kind)
    properties = {}
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        properties[name] = schema_of(annotation, strict)
        if name in described:
            properties[name] |= {"description": described[name]}
    return {
        "description": (inspect.getdoc(kind) or "").splitlines()[0],
        "type": "object",
        "properties": properties,
        "required": sorted(kind.__required_keys__),
        "additionalProperties": not strict or kind.__name__ == "Configuration",
    }


def _descriptions(kind: Any) -> dict[str, str]:
    """What the docstrings of a class and of the classes that it extends say of its fields, by name.

    A TypedDict does not know its bases (before Python 3.12), so a class counts as one if it has no other fields.
    """
    described: dict[str, str] = {}
    for base in CLASSES:
        if base.__annotations__.items() <= kind.__annotations__.items():
            described |= _attributes(base)
    return described | _attributes(kind)


def _attributes(kind: Any) -> dict[str, str]:
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.M)
    return {name: " ".join(words.split()) for name, words in entries}


if __name__ == "__main__":
    text = json.dumps(document_schema(), ensure_ascii=False, indent=1)
    FILE.write_text(text + "\n", encoding="utf-8")
