"""A control on a whole model: half of a run's candidates stand in other neurons' columns.

    python scripts/exchange_columns.py make MODEL RUN FOLDER
    conceptvec run --model FOLDER --out RUN2
    python scripts/exchange_columns.py compare FOLDER RUN RUN2

`make` copies the folder of a model. In the copy the value vectors of a random half of RUN's candidates have
changed places with those of random neurons of their layers that are no candidates. Stage 2 names
the same vectors again, wherever they stand: those that were moved are fired by neurons that have
nothing to do with them, and should not be validated; the others should be as before.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from conceptvec.document import load_document
from conceptvec.validation.rule import RULE
from conceptvec.validation.statistics import wilson

SEED = 0
RECORD = "exchanged.json"
WEIGHT = re.compile(r"layers\.(\d+)\.mlp\.down_proj\.weight$")
Place = tuple[int, int]  # layer and neuron


def candidates(run: Path) -> dict[str, dict[str, Any]]:
    """A run's tested poles by id."""
    return {entry["id"]: entry for entry in load_document(run)["validation_results"]}


def exchanges(entries: dict[str, dict[str, Any]], neurons: int) -> dict[Place, int]:
    """Of a random half of the candidates' neurons, the neuron that each changes places with."""
    stream = np.random.default_rng(SEED)
    places = sorted({(entry["layer"], entry["neuron"]) for entry in entries.values()})
    half = [places[i] for i in np.sort(stream.permutation(len(places))[: len(places) // 2])]
    taken = set(places)
    partner: dict[Place, int] = {}
    for layer, neuron in half:
        free = [j for j in range(neurons) if (layer, j) not in taken]
        other = int(stream.choice(free))
        taken.add((layer, other))
        partner[layer, neuron] = other
    return partner


def make(model: Path, run: Path, folder: Path) -> None:
    """Write the folder, and what was exchanged in it."""
    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    matches = ((WEIGHT.search(name), tensor) for name, tensor in tensors.items())
    weights = {int(match[1]): tensor for match, tensor in matches if match}
    partner = exchanges(candidates(run), weights[0].shape[1])
    for (layer, neuron), other in partner.items():
        weight = weights[layer]
        weight[:, [neuron, other]] = weight[:, [other, neuron]]
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"}
    )
    moved = [[layer, neuron, other] for (layer, neuron), other in partner.items()]
    (folder / RECORD).write_text(json.dumps(moved))
    print(f"{len(moved)} columns exchanged with as many others of their layers: {folder}")


def compare(folder: Path, before: Path, after: Path) -> None:
    """Print how many of the moved and of the other candidates are validated."""
    exchanged = json.loads((folder / RECORD).read_text())
    moved = {(layer, other) for layer, _, other in exchanged}
    left = {(layer, neuron) for layer, neuron, _ in exchanged}
    was, now = candidates(before), candidates(after)
    groups: dict[str, list[dict[str, Any]]] = {"moved": [], "where they were": [], "new": []}
    for name, entry in now.items():
        place = entry["layer"], entry["neuron"]
        is_old = name in was and place not in left
        groups["moved" if place in moved else "where they were" if is_old else "new"].append(entry)
    for apart, is_counted in (("no numbers", False), ("numbers", True)):
        for group, entries in groups.items():
            of_kind = [e for e in entries if (e["concept"] == "numbers") == is_counted]
            found = [e for e in of_kind if e["validated"]]
            used = sum(e["q_value"] <= RULE.q for e in of_kind)
            low, high = wilson(len(found), len(of_kind))
            print(
                f"{apart}, {group}: {len(of_kind)} candidates, {used} used, {len(found)} validated "
                f"({len(found) / max(len(of_kind), 1):.1%}, 95 % {low:.1%} to {high:.1%})"
            )
            for entry in found if group == "moved" else ():
                words = " ".join(token.strip() for token, _ in entry["top_tokens"][:6])
                print(f"  {entry['id']} {entry['concept']} {entry['concept_drop']}: {words}")
    stayed = [
        name
        for name in was
        if was[name]["validated"]
        and name in now
        and (now[name]["layer"], now[name]["neuron"]) not in moved | left
    ]
    again = sum(now[name]["validated"] for name in stayed)
    print(
        f"of {len(stayed)} validated before that stand where they were, {again} are validated again"
    )


def main() -> None:
    """Make or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    for name, places in (
        ("make", ("model", "run", "folder")),
        ("compare", ("folder", "before", "after")),
    ):
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place, type=Path)
    arguments = vars(parser.parse_args())
    {"make": make, "compare": compare}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
