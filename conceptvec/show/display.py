"""Stage 1 in a notebook cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conceptvec.text import html_table as html
from conceptvec.text import printable

if TYPE_CHECKING:
    from conceptvec.extraction.stage import Candidates


def candidates_html(candidates: Candidates) -> str:
    """Stage 1 in a notebook cell: the neurons whose readouts have the heaviest tails."""
    best = sorted(
        ((p, i) for p in candidates.layers for i in range(len(p.neurons))),
        key=lambda x: -x[0].kurtosis[x[1]],
    )[:10]
    body = []
    for p, i in best:
        for pole in "+-":
            words = " ".join(
                printable(candidates.tokens[t]).strip() for t in p.pole(pole)[0][i][:8]
            )
            body.append(
                [f"L{p.layer:02d}_N{p.neurons[i]:04d}{pole}", f"{p.kurtosis[i]:.1f}", words]
            )
    return f"<p>{candidates!r}</p>{html(body, ('vector', 'excess kurtosis', 'tokens'))}"
