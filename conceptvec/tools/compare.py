"""Two runs or more side by side, without a model: which vectors are the same, and their verdicts.

The first run is compared with each of the others. Where family and shapes agree (two seeds, base
and instruction-tuned, before and after a fine-tune) a vector is the same if its layer, neuron and
pole are; elsewhere if its readout is (`likeness`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conceptvec.document import candidates
from conceptvec.errors import RequestError
from conceptvec.holdings import listed_part
from conceptvec.results import Results, load_results
from conceptvec.text import DASH, number, plain, printable, table, words_of
from conceptvec.tools.likeness import Lists, cosine, same_vectors

SHAPE = ("family", "layers", "hidden_size", "intermediate_size")
# How a vector's verdict changed from the first run to the other; the order of the table.
CHANGES = ("lost", "gained", "kept", "neither")
ROWS, TOKENS = 25, 6
HEADERS = ("change", "vector", "other", "concept", "verdict", "other verdict", "cosine", "tokens")
Entry = Mapping[str, Any]


def compare(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Compare the first run with each of the others.

    Args:
        paths: results files or run folders.

    Returns:
        a JSON document: the runs, and for each but the first how it compares.

    Raises:
        RequestError: fewer than two runs, or one that cannot be read.
    """
    if len(paths) < 2:
        raise RequestError(f"compare: got {len(paths)} run, expected two or more")
    runs = [load_results(path) for path in paths]
    return {
        "runs": [_facts(path, results) for path, results in zip(paths, runs, strict=True)],
        "model": runs[0]["model"],
        "comparisons": [
            _comparison((paths[0], path), (runs[0], results))
            for path, results in zip(paths[1:], runs[1:], strict=True)
        ],
    }


def _facts(path: str | Path, results: Results) -> dict[str, Any]:
    model = results["model"]
    return {
        "path": str(path),
        "model": model["id"],
        "revision": model["revision"],
        "fingerprint": model["fingerprint"],
        "seed": results["configuration"]["seed"],
        "candidates": len(candidates(results)),
        "validated": len(results.validated),
    }


def _comparison(
    paths: tuple[str | Path, str | Path], runs: tuple[Results, Results]
) -> dict[str, Any]:
    """The first run and another one."""
    first, other = (candidates(results) for results in runs)
    models = [results["model"] for results in runs]
    by_neuron = all(models[0][fact] == models[1][fact] for fact in SHAPE)
    same_from: float | None = None
    if by_neuron:
        place = {entry["id"]: row for row, entry in enumerate(other)}
        pairs = [(row, place[e["id"]]) for row, e in enumerate(first) if e["id"] in place]
    else:
        pairs, same_from = same_vectors(Lists(first), Lists(other))

    # Pairs, then what only one of the two runs has.
    absent = [
        Absence(path, results["layers"]) if by_neuron else Absence()
        for path, results in zip(paths, runs, strict=True)
    ]
    rows = [_pair(first[row], other[column]) for row, column in pairs]
    paired = {row for row, _ in pairs}, {column for _, column in pairs}
    rows += [_alone(e, absent[1], False) for i, e in enumerate(first) if i not in paired[0]]
    rows += [_alone(e, absent[0], True) for i, e in enumerate(other) if i not in paired[1]]
    rows.sort(key=lambda row: CHANGES.index(row["change"]))  # else best first, as they were
    count = Counter(row["change"] for row in rows)
    return {
        "run": str(paths[1]),
        "model": models[1]["id"],
        "same_weights": models[0]["fingerprint"] == models[1]["fingerprint"],
        "by": "neuron" if by_neuron else "readout",
        "same_from": plain(same_from) if same_from is not None else None,
        "candidates_of_both": len(pairs),
        "same_concept": sum(first[i]["concept"] == other[j]["concept"] for i, j in pairs),
        "counts": {change: count[change] for change in CHANGES},
        "vectors": rows,
    }


class Absence:
    """Says of a pole that is no candidate of a run whether it was looked at.

    Args:
        path: the run's results or its folder; None where its vectors have other numbers.
        layers: the layers that the run examined.
    """

    def __init__(self, path: str | Path | None = None, layers: Sequence[int] = ()) -> None:
        self._file = Path(path) if path is not None else None
        self._layers = set(layers)
        self._examined: dict[int, set[int] | None] = {}

    def verdict(self, entry: Entry) -> str:
        """no_match, no_candidate or, where the run says so, not_examined."""
        if self._file is None:
            return "no_match"
        layer = entry["layer"]
        if layer not in self._layers:
            return "not_examined"
        if layer not in self._examined:
            self._examined[layer] = _neurons(self._file, layer)
        examined = self._examined[layer]
        is_out = examined is not None and entry["neuron"] not in examined
        return "not_examined" if is_out else "no_candidate"


def _neurons(path: Path, layer: int) -> set[int] | None:
    """The neurons of a layer that a run projected; None where its folder does not say so."""
    folder = path if path.is_dir() else path.parent
    _, arrays = listed_part(folder, f"projections/layer_{layer:02d}.safetensors")
    return None if arrays is None else set(arrays["neurons"].tolist())


def _pair(entry: Entry, other: Entry) -> dict[str, Any]:
    """A vector that both runs have as a candidate."""
    verdicts = _verdict(entry), _verdict(other)
    return {
        "change": _change(*verdicts),
        "id": entry["id"],
        "other_id": other["id"],
        "concept": entry["concept"],
        "other_concept": other["concept"],
        "verdict": verdicts[0],
        "other_verdict": verdicts[1],
        "cosine": plain(cosine(entry, other)),
        "effect": _effect(entry),
        "other_effect": _effect(other),
        "top_tokens": [token for token, _ in entry["top_tokens"]],
    }


def _alone(entry: Entry, absence: Absence, is_other: bool) -> dict[str, Any]:
    """A candidate of one run alone; `is_other` says that it is not the first's."""
    verdicts = _verdict(entry), absence.verdict(entry)
    known = {"id": entry["id"], "concept": entry["concept"], "effect": _effect(entry)}
    gone = dict.fromkeys(known)
    first, other = (gone, known) if is_other else (known, gone)
    verdict, other_verdict = verdicts[::-1] if is_other else verdicts
    return {
        "change": _change(verdict, other_verdict),
        **first,
        **{f"other_{name}": value for name, value in other.items()},
        "verdict": verdict,
        "other_verdict": other_verdict,
        "cosine": None,
        "top_tokens": [token for token, _ in entry["top_tokens"]],
    }


def _verdict(entry: Entry) -> str:
    return entry.get("verdict", "untested")


def _effect(entry: Entry) -> float | None:
    """The first-order effect on the concept's words, which every tested candidate has."""
    return entry["scan"]["mean"] if "scan" in entry else None


def _change(verdict: str, other_verdict: str) -> str:
    was, now = verdict == "validated", other_verdict == "validated"
    return {(True, True): "kept", (True, False): "lost", (False, True): "gained"}.get(
        (was, now), "neither"
    )


def comparison_table(document: Mapping[str, Any]) -> str:
    """The comparisons as text: what was validated in one run or both."""
    first = document["runs"][0]
    parts = [f"{printable(first['path'])}: {_described(first)}"]
    for other, comparison in zip(document["runs"][1:], document["comparisons"], strict=True):
        parts += [f"{printable(other['path'])}: {_described(other)}", _said(comparison)]
        shown = [row for row in comparison["vectors"] if row["change"] != "neither"]
        if shown:
            rest = len(shown) - ROWS
            parts.append(table([_row(row) for row in shown[:ROWS]], HEADERS))
            parts += [f"… and {rest} more (--json has all)"] if rest > 0 else []
    return "\n\n".join(parts)


def _described(run: Mapping[str, Any]) -> str:
    return (
        f"{printable(run['model'])}, seed {run['seed']}, {run['candidates']} candidates, "
        f"{run['validated']} validated"
    )


def _said(comparison: Mapping[str, Any]) -> str:
    counts = comparison["counts"]
    how = "layer, neuron and pole"
    if comparison["by"] == "readout":
        how = f"readout (cosine over {number(comparison['same_from'], 2)}, nearest both ways)"
    weights = "the same weights" if comparison["same_weights"] else "other weights"
    return (
        f"{weights}, compared by {how}: {comparison['candidates_of_both']} candidates of both, "
        f"{comparison['same_concept']} with the same concept; {counts['kept']} validated in both, "
        f"{counts['lost']} in the first alone, {counts['gained']} in the other alone"
    )


def _row(row: Mapping[str, Any]) -> list[str]:
    concepts = dict.fromkeys(filter(None, (row["concept"], row["other_concept"])))
    return [
        row["change"],
        row["id"] or DASH,
        row["other_id"] or DASH,
        printable(" → ".join(concepts)),
        row["verdict"],
        row["other_verdict"],
        number(row["cosine"], 2),
        words_of(row["top_tokens"][:TOKENS]),
    ]
