"""What something was made with, and how what is asked for now differs from it.

A **record** holds options as they were given, digests of the user's files, and facts of the model.
The run folder keeps one, every stage's result carries one, and the results document is one. Two
records are compared by what options come to: layers by their numbers, files by content, model,
device and precision by the model itself. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from conceptvec.concepts import is_file
from conceptvec.config import Config, corpus_file, parse_layers
from conceptvec.errors import RequestError
from conceptvec.files import digest_of
from conceptvec.version import __version__

Record = Mapping[str, Any]

# The options that decide the first two stages.
EXTRACTION = ("layers", "max_vectors", "batch_size", "top_k", "fold", "seed")
SCORING = (*EXTRACTION, "min_kurtosis", "score_threshold", "concepts")
SPELLINGS = ("model", "revision", "device", "dtype")  # what they come to is a fact of the model
FACTS = ("fingerprint", "dtype", "device", "layers", "intermediate_size")
CHAT = "chat_template"  # the option, and the fact that matters only where it is on


def record(
    config: Config,
    model: Mapping[str, Any],
    names: Collection[str] | None = None,
    known: Iterable[Record] = (),
) -> dict[str, Any]:
    """What a call is made with.

    Args:
        config: the options.
        model: `Weights.facts`, or as many of them as are known.
        names: the options that matter; all that decide the results by default.
        known: earlier records. A file that one of them names is not read again: the run goes on
            with what was read.
    """
    options = {
        name: value for name, value in config.identity().items() if names is None or name in names
    }
    if "model" in options:
        options["model"] = model.get("id", options["model"])
    facts = {name: model[name] for name in FACTS if name in model}
    if options.get(CHAT) and model.get(CHAT):
        facts[CHAT] = model[CHAT]
    if "device" in facts:
        facts["device"] = str(facts["device"]).partition(":")[0]
    return {
        "conceptvec_version": __version__,
        "configuration": options,
        "files": _contents(options, list(known)),
        "model": facts,
    }


def _contents(options: Mapping[str, Any], known: Iterable[Record]) -> dict[str, str]:
    """The digests of the user's files by option, of a corpus with the column that is read."""
    contents = {}
    for name in ("concepts", "corpus"):
        spelled = options.get(name)
        earlier = [
            was.get("files", {}) for was in known if was["configuration"].get(name, was) == spelled
        ]
        content = next((files[name] for files in earlier if name in files), None)
        if content is None and not earlier and isinstance(spelled, str):
            content = _content(spelled)
        if content is not None:
            contents[name] = content
    return contents


def _content(spelled: str) -> str | None:
    path = spelled if is_file(spelled) else corpus_file(spelled)
    if path is None:
        return None  # words in place, or a data set: they are what they are called
    try:
        with Path(path).open("rb") as file:
            return digest_of(file) + spelled.removeprefix(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror or error})") from None


def as_read(concepts: str | None, digest: str | None) -> dict[str, Any]:
    """The record of a ``--concepts`` that was read."""
    files = {} if digest is None else {"concepts": digest}
    return {
        "conceptvec_version": __version__,
        "configuration": {"concepts": concepts},
        "files": files,
        "model": {},
    }


def narrowed(whole: Record, names: Collection[str]) -> dict[str, Any]:
    """A record of fewer options."""
    options = {name: value for name, value in whole["configuration"].items() if name in names}
    files = {name: content for name, content in whole["files"].items() if name in names}
    facts = {name: fact for name, fact in whole["model"].items() if name in {*names, *FACTS}}
    return {**whole, "configuration": options, "files": files, "model": facts}


def differences(was: Record, now: Record) -> list[str]:
    """How two records differ in what both of them hold, as phrases."""
    written, asked = was.get("conceptvec_version"), now["conceptvec_version"]
    if written != asked:
        return [f"it was written by conceptvec {written}, this is {asked}"]
    dimensions = {**was["model"], **now["model"]}
    before, after = was["configuration"], now["configuration"]
    phrases: list[str] = []
    for name in after:
        if name not in before or name in SPELLINGS:
            continue
        contents = [each.get("files", {}).get(name) for each in (was, now)]
        if all(contents):
            is_same = contents[0] == contents[1]
        else:
            is_same = _meaning(name, before, dimensions) == _meaning(name, after, dimensions)
        if not is_same and before[name] == after[name]:
            phrases.append(f"the content of the {name} file differs")
        elif not is_same:
            phrases.append(f"{name} was {before[name]!r}, is {after[name]!r}")
    return phrases + _model_differences(was, now)


def _meaning(name: str, options: Mapping[str, Any], dimensions: Mapping[str, Any]) -> Any:
    """What an option comes to on a model of these dimensions."""
    value = options[name]
    if name == "layers":
        return parse_layers(str(value), None) or list(range(dimensions.get("layers", 0)))
    if name == "max_vectors" and (size := dimensions.get("intermediate_size")):
        return min(value or size, size)
    return value


def _model_differences(was: Record, now: Record) -> list[str]:
    before, after = was["model"], now["model"]
    phrases: list[str] = []
    for name in ("device", "dtype"):
        a, b = (str(facts.get(name, "")).partition(":")[0] for facts in (before, after))
        if a and b and a != b:  # of several GPUs any will do
            phrases.append(f"the {name} was {a}, is {b}")
    templates = [facts.get(CHAT) for facts in (before, after)]
    if all(templates) and templates[0] != templates[1]:
        phrases.append(f"the content of the model's {CHAT} differs")
    fingerprints = [facts.get("fingerprint") for facts in (before, after)]
    if all(fingerprints) and fingerprints[0] != fingerprints[1]:
        names = [each["configuration"].get("model", "another model") for each in (was, now)]
        named = f" (model was {names[0]!r}, is {names[1]!r})" if names[0] != names[1] else ""
        phrases.append(f"the model's weights differ{named}")
    return phrases
