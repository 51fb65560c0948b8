"""The explorer's static twin: one HTML file of summary, figures, tables and cards, loading nothing.

Everything that comes from a vocabulary, a corpus or a concepts file is escaped text in the markup.
The rest of it lies in the page as compressed data (`payload`); the page's script builds rows and
cards of it with text nodes alone, and its content security policy forbids every request.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from conceptvec.files import check_place
from conceptvec.runfolder import write_atomic
from conceptvec.show import report_tables as tables
from conceptvec.show.figures import FIGURES, measured
from conceptvec.show.payload import packed, pole_data
from conceptvec.show.pictures import attempted
from conceptvec.show.report_tables import safe
from conceptvec.show.run_lists import RunLists, run_lists
from conceptvec.show.tables import GROUPS_TITLE, summary
from conceptvec.text import printable

SCRIPTS = ("tools.js", "unpack.js", "poles.js", "listing.js", "cards.js", "main.js")
SHOWN_TEXT = 320  # characters of an example, before its word
CODE = (
    "import conceptvec as cv; vector = {{sign}}cv.load_model(cv.Config(model={model!r}{revision}))"
    ".value_vectors({{layer}})[{{neuron}}]"
)


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        name: of its place in the page.
        title: the heading.
        markup: what stands below it.
    """

    name: str
    title: str
    markup: str


def to_html(document: Mapping[str, Any], path: str | Path, run: str | Path | None = None) -> Path:
    """Write the report.

    Args:
        document: the results.
        path: the HTML file.
        run: the run folder; with it every scored pole is listed too.

    Returns:
        the path.

    Raises:
        RequestError: something else is there.
    """
    path = Path(path).expanduser()
    check_place(path, is_page, "report of conceptvec")
    lists = run_lists(run, document) if run is not None else RunLists()
    write_atomic(path, page(document, lists).encode("utf-8"))
    return path


def is_page(begin: bytes) -> bool:
    """Whether a file that begins so is a report."""
    return b'<meta name="generator" content="conceptvec">' in begin


def page(document: Mapping[str, Any], lists: RunLists | None = None) -> str:
    """The report as HTML text.

    Args:
        document: the results.
        lists: what the run folder holds beside them.
    """
    lists = lists or RunLists()
    data = _data(document, lists)
    sections = list(_sections(document, lists, len(data)))
    paragraphs = (f"<p>{safe(line)}</p>" for line in summary(document).splitlines())
    links = (f'<a href="#{part.name}-part">{safe(part.title)}</a>' for part in sections)
    blocks = (
        f'<h2 id="{part.name}-part">{safe(part.title)}</h2>\n{part.markup}' for part in sections
    )
    return Template(_file("page.html")).substitute(
        title=safe(f"Concept vectors in {document['model']['id']}"),
        summary="".join(paragraphs),
        source=safe(_source(document)),
        contents="".join(links),
        sections="\n".join(blocks),
        style=_file("style.css"),
        script="\n".join(map(_file, SCRIPTS)),
        data=data,
    )


def _file(name: str) -> str:
    file = resources.files("conceptvec") / "data" / "report" / name
    return file.read_text(encoding="utf-8")


# ---- what stands on the page ----


def _sections(document: Mapping[str, Any], lists: RunLists, size: int) -> Iterator[Section]:
    """The sections that this run has something for; `size` is that of the data, in bytes."""
    pictures = (_figure(document, name) for name in measured(document) if name != "vector_card")
    if figures := "".join(pictures):
        yield Section("figures", "Figures", f'<div class="figures">{figures}</div>')
    yield from _vectors(document)
    if markup := tables.sets(document):
        yield Section("sets", "Sets damaged together", markup)
    if markup := tables.groups(document):
        yield Section("groups", GROUPS_TITLE, markup)
    if lists.poles is not None:
        yield Section("poles", "All poles", _about_poles(lists, size) + tables.poles())


def _vectors(document: Mapping[str, Any]) -> Iterator[Section]:
    """What was tested, what was not, and what the scan alone found."""
    n_tested, n_untested = (
        len(document[name]) for name in ("validation_results", "untested_candidates")
    )
    if n_tested:
        damage = next(iter(document["configuration"]["damage"]), "none")
        note = _note(
            "Drops are log-probability that words of the concept lose where the vector acts, "
            f"under the primary damage ({damage}), in nats. A row opens its card; a column's "
            "name sorts."
        )
        yield Section("tested", "Tested vectors", note + tables.tested(document, 0))
    if n_untested:
        title = "Candidates that were not tested" if n_tested else "Candidates"
        note = _note("A row opens its card. " + _how_to_test(document))
        yield Section("untested", title, note + tables.untested(document, n_tested))
    if document["scan_overview"] is not None:
        markup = _about_effect_only(document)
        if document["effect_only"]:
            markup += tables.effect_only(document, n_tested + n_untested)
        yield Section("effect-only", "Found by their effect alone", markup)


def _note(text: str) -> str:
    return f'<p class="muted">{safe(text)}</p>'


def _how_to_test(document: Mapping[str, Any]) -> str:
    if document["pipeline_stats"]["tested_vectors"] is not None:
        return "Stage 3 did not damage them."
    return (
        "They were named from the weights alone: the same `conceptvec run`, with the same --out "
        "and without --stages, damages them and gives the verdicts."
    )


def _about_effect_only(document: Mapping[str, Any]) -> str:
    """What this section lists; a sentence where there is nothing."""
    count = len(document["effect_only"])
    if not count:
        return _note(
            "The scan of all poles and concepts named none that Stage 2 had not named already."
        )
    are = "pole is" if count == 1 else "poles are"
    return _note(
        f"{count:,} {are} used for a concept, by the scan of all poles, that Stage 2 did not name: "
        "what it promotes does not say so. Effects are first-order, in nats; nothing was damaged."
    )


def _about_poles(lists: RunLists, size: int) -> str:
    assert lists.poles is not None
    effects = ", and the effects on every concept in steps of 1/127 of the pole's largest"
    return _note(
        f"All {len(lists.poles):,} poles that Stage 2 scored. The page holds the first "
        f"{lists.poles.words.shape[1]} distinct words of each"
        f"{effects if lists.scan is not None else ''}: {size / 1e6:.1f} MB of data, cards "
        "included. The complete lists of tokens are in the run folder."
    )


def _source(document: Mapping[str, Any]) -> str:
    """Which program, model and seed the numbers come from."""
    model = document["model"]
    revision = f" at {model['revision']}" if model["revision"] else ""
    return (
        f"conceptvec {document['conceptvec_version']}, {document['created']}. "
        f"{model['id']}{revision}, {model['layers']} layers, hidden size {model['hidden_size']}, "
        f"{model['intermediate_size']} neurons a layer, {model['vocab_size']:,} tokens; weights "
        f"{model['fingerprint'][:16]}. Seed {document['configuration']['seed']}."
    )


def _figure(document: Mapping[str, Any], name: str) -> str:
    out = io.BytesIO()

    def draw() -> bool:
        FIGURES[name](document).savefig(out, format="png", dpi=130)
        return True

    if not attempted(draw, name):
        return ""
    picture = base64.b64encode(out.getvalue()).decode("ascii")
    text = (FIGURES[name].__doc__ or name).splitlines()[0]
    return f'<figure><img alt="{safe(text)}" src="data:image/png;base64,{picture}"></figure>'


# ---- what its script reads ----


def _data(document: Mapping[str, Any], lists: RunLists) -> str:
    """The entries of all cards and the poles, compressed."""
    entries = [
        *document["validation_results"],
        *document["untested_candidates"],
        *document["effect_only"],
    ]
    header: dict[str, Any] = {
        "entries": [_shown(entry) for entry in entries],
        "code": _code(document["model"]),
        "poles": None,
    }
    if lists.poles is None:
        return packed(header, {})
    header["poles"], arrays = pole_data(lists.poles, lists.scan)
    return packed(header, arrays)


def _code(model: Mapping[str, Any]) -> str:
    """A line of Python that gives a vector, with places for the vector's own."""
    revision = f", revision={model['revision']!r}" if model["revision"] else ""
    return CODE.format(model=printable(model["id"]), revision=revision)


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without what no card shows, every text printable."""
    shown = {key: _printable(value) for key, value in entry.items() if key != "score_components"}
    if "examples" in shown:
        shown["examples"] = [_example(example) for example in shown["examples"]]
    return shown


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example without its token ids, a long text from its end."""
    text = example["text"]
    cut = text if len(text) <= SHOWN_TEXT else "…" + text[-SHOWN_TEXT:]
    return {key: value for key, value in example.items() if key != "ids"} | {"text": cut}


def _printable(value: Any) -> Any:
    """The same value with every text printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value
