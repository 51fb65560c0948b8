"""Which poles the scan names for a concept, with what it says of each and the tokens they promote.

A pole is **named** for a concept where q ≤ 0.05 over all poles and concepts, every other concept
loses at most half as much, and at least three distinct words carry the effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.effects.everywhere import OTHERS, Everywhere
from conceptvec.effects.significance import MAX_Q, Nulls, uses_of
from conceptvec.effects.use import Use
from conceptvec.extraction.projection import Projector
from conceptvec.records import Pole
from conceptvec.text import plain

if TYPE_CHECKING:
    from conceptvec.effects.scan_record import Scan
    from conceptvec.model.network import Model

CARRYING = 3  # distinct words that must carry the effect
AT_ONCE = 2048  # poles whose effects per word are held together
NOT_ASKED = Nulls(np.zeros(0), np.zeros(0), np.zeros(0))

Lists = list[list[list[Any]]]  # of every pole: [text, readout], most promoted first


@dataclass(frozen=True)
class Named:
    """A pole and a concept, with what the scan says of them.

    Attributes:
        use: effects in nats; firing's own p-value is not measured here.
        q: over all poles and concepts.
    """

    pole: Pole
    concept: str
    use: Use
    q: float


def named_poles(scan: Scan, everywhere: Everywhere) -> list[Named]:
    """All poles that the scan names, concept by concept, strongest first."""
    facts = facts_at(scan, everywhere, np.argwhere(everywhere.is_used))
    return [item for item in facts if is_named(item)]


def is_named(item: Named) -> bool:
    """Whether q, the other concepts and the number of carrying words allow the name."""
    use = item.use
    return item.q <= MAX_Q and use.other_share <= OTHERS and use.words >= CARRYING


def strongest(scan: Scan, everywhere: Everywhere, concept: int, limit: int) -> list[Named]:
    """The poles that a concept's words need most: the used ones by effect, then the others by p."""
    is_used = everywhere.is_used[concept].ravel()
    effect = everywhere.mean[concept].ravel()
    rank = np.where(is_used, -1.0, everywhere.p[concept].ravel())
    best = np.lexsort((-effect, rank))[:limit]
    best = best[effect[best] > 0]
    at = np.stack(np.unravel_index(best, everywhere.mean.shape[1:]), 1)
    items = facts_at(scan, everywhere, np.insert(at, 0, concept, axis=1))
    return sorted(items, key=lambda item: not is_named(item))


def facts_at(scan: Scan, everywhere: Everywhere, places: np.ndarray) -> list[Named]:
    """What the scan says at some places of the arrays, by concept and then strongest first.

    Args:
        scan: the effects per word.
        everywhere: p- and q-values.
        places: (k, 4) concept, layer, neuron, sign.
    """
    facts: list[tuple[int, Named]] = []
    for start in range(0, len(places), AT_ONCE):
        batch = places[start : start + AT_ONCE]
        poles = [everywhere.pole(*place) for place in batch[:, 1:].tolist()]
        columns = scan.columns_of([(p.layer, p.neuron, p.direction) for p in poles])
        numbers = np.array(scan.text.run_concepts)[batch[:, 0]]
        uses = uses_of(columns, numbers, scan.contrast, NOT_ASKED, scan.concepts)
        for place, pole, use in zip(map(tuple, batch.tolist()), poles, uses, strict=True):
            complete = replace(
                use,
                p_words=float(everywhere.p_words[place]),
                p_moved=float(everywhere.p_moved[place]),
                firing_p=math.nan,
            )
            concept = everywhere.concepts[place[0]]
            facts.append((place[0], Named(pole, concept, complete, float(everywhere.q[place]))))
    facts.sort(key=lambda item: (item[0], -item[1].use.mean, item[1].pole))
    return [item for _, item in facts]


def promoted(
    poles: Sequence[Pole], model: Model, fold: str, projector: Projector, texts: Sequence[str]
) -> Lists:
    """The tokens that each pole's vector promotes most, with the readout.

    Args:
        poles: which.
        model: the model.
        fold: norms folded into the readout.
        projector: onto the model's shown tokens.
        texts: of all tokens.
    """
    lists: Lists = [[] for _ in poles]
    for layer in sorted({pole.layer for pole in poles}):
        at = [i for i, pole in enumerate(poles) if pole.layer == layer]
        neurons = torch.tensor([poles[i].neuron for i in at], device=model.device)
        signs = torch.tensor([float(poles[i].direction) for i in at], device=model.device)
        directions = model.readout_directions(layer, fold, neurons) * signs[:, None]
        readouts = projector(directions)
        for row, i in enumerate(at):
            ids, values = readouts.top_ids[row].tolist(), readouts.top_values[row].tolist()
            lists[i] = [[texts[t], plain(v)] for t, v in zip(ids, values, strict=True)]
    return lists


@dataclass(frozen=True)
class ByScan:
    """What the scan over all poles and concepts adds to the results.

    Attributes:
        scan: what it follows from.
        named: (id, concept) of all poles that it names.
        effect_only: those of them that Stage 2 did not name, as the results hold them.
        overview: effects against scores and layers, for the figures.
    """

    scan: Scan
    named: frozenset[tuple[str, str]]
    effect_only: list[dict[str, Any]]
    overview: dict[str, Any]

    def marked(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A tested candidate's entry with what named it: the projection, or the scan as well."""
        is_named = (entry["id"], entry["concept"]) in self.named
        return entry | {"found_by": "both" if is_named else "projection"}


def effect_only_entries(
    named: Sequence[Named],
    by_projection: Collection[tuple[str, str]],
    lists: Callable[[Sequence[Pole]], Lists],
) -> list[dict[str, Any]]:
    """The poles that Stage 2 did not name for the concept, as the results hold them.

    Args:
        named: by the scan.
        by_projection: (id, concept) of Stage 2's candidates.
        lists: poles → their top tokens.
    """
    unnamed = [item for item in named if (item.pole.id, item.concept) not in by_projection]
    return [
        {
            "id": item.pole.id,
            "concept": item.concept,
            "scan": item.use.entry() | {"exact_zero": None, "exact_mean": None},
            "q": plain(item.q),
            "top_tokens": tokens,
        }
        for item, tokens in zip(unnamed, lists([item.pole for item in unnamed]), strict=True)
    ]
