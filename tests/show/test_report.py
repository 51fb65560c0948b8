"""The HTML report: complete, self-contained, and no text of a vocabulary becomes markup or script."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from conceptvec import cli
from conceptvec.results import Results
from conceptvec.show import figures
from tests.documents import HOSTILE, document, entry

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


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
        (self.scripts if self.tags and self.tags[-1][0] == "script" else self.texts).append(data)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = Results(document()).to_html(tmp_path_factory.mktemp("report") / "report.html")
    return path.read_text("utf-8")


def test_report_loads_nothing(text: str) -> None:
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "base"), tag
        assert all(
            (attrs.get(k) or "data:").startswith("data:image/png;base64,"[: len("data:")])
            for k in ("src", "href")
        )
        assert not [k for k in attrs if k.startswith("on")]
    outside = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert (
        "http" not in outside.replace("http-equiv", "")
        and "url(" not in outside
        and "@import" not in outside
    )
    policy = next(
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy and policy.startswith("default-src 'none'")


def test_report_has_every_figure_row_and_card(text: str) -> None:
    page, found = Page(text), document()
    pictures = [a["src"] or "" for t, a in page.tags if t == "img"]
    assert len(pictures) == len([n for n in figures.measured(found) if n != "vector_card"])
    assert all(base64.b64decode(p.partition(",")[2]).startswith(b"\x89PNG") for p in pictures)
    ids = [e["id"] for e in found["validation_results"]]
    assert [a["id"] for t, a in page.tags if t == "tr" and "id" in a] == ids
    data = json.loads(next(s for s in page.scripts if s.startswith("[{")))
    assert [e["id"] for e in data] == ids
    assert data[1]["damage"] == found["validation_results"][1]["damage"]
    assert data[1]["opposite_tokens"][1] == [" only1", -0.5]


def test_vocabulary_text_stays_text(text: str) -> None:
    page = Page(text)
    assert {t for t, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "figure", "img", "input", "span",
        "noscript", "table", "thead", "tr", "th", "button", "tbody", "td", "script",
    }  # fmt: skip
    assert text.count("</script>") == 2
    assert "\x1b" not in text and "\u202e" not in text
    data = json.loads(next(s for s in page.scripts if s.startswith("[{")))
    assert HOSTILE in [t for t, _ in data[0]["top_tokens"]]
    assert "<i>model</i>" in "".join(page.texts)


def test_optional_fields_are_shown_and_nothing_is_needed(tmp_path: Path) -> None:
    full = document(
        [entry(0, continuations=[{"prompt": "The dog", "clean": " barks", "damaged": " is"}])]
    )
    full["concept_sets"] = [
        {
            "concept": "animals",
            "vectors": [[1, 2], [3, 4]],
            "selectivity": 1.25,
            "random_selectivity": [-0.5, 0.0, 0.25],
        }
    ]
    page = Page(Results(full).to_html(tmp_path / "a.html").read_text("utf-8"))
    assert "Sets damaged together" in page.texts and "1.25" in page.texts
    assert "2" in page.texts and "-0.5 … 0 … 0.25" in page.texts
    bare = document([])
    bare |= {
        "score_histogram": {},
        "candidate_distribution": {},
        "concept_distribution": {},
        "null_calibration": {},
    }
    bare["pipeline_stats"] |= {
        "tested_vectors": None,
        "validated_vectors": None,
        "concept_candidates": None,
    }
    page = Page(Results(bare).to_html(tmp_path / "b.html").read_text("utf-8"))
    assert any(t.startswith("Stage 1 only") for t in page.texts)


def test_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Results(document([])).save(tmp_path / "concept_vector_results_cpu.json")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").is_file() and str(
        tmp_path / "report.html"
    ) in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "new" / "x.html")]) == 0
    assert (tmp_path / "new" / "x.html").is_file()
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
    assert "not a readable results file" in capsys.readouterr().err


DRIVE = """
const done = [], body = document.querySelector("#vectors tbody"), input = document.getElementById("search");
const ids = () => [...body.rows].filter(r => r.id && !r.hidden).map(r => r.id);
const find = text => { input.value = text; input.dispatchEvent(new Event("input")); return ids(); };
done.push(ids().length, find("only4 dog"), find("not specific"), find("nowhere").length, find("").length);
document.querySelectorAll("#vectors thead button")[2].click(); done.push(ids()[0]);
document.querySelectorAll("#vectors thead button")[2].click(); done.push(ids()[0]);
body.rows[0].querySelector("button").click();
const card = document.querySelector("tr.card");
done.push(card.previousElementSibling.id, card.textContent.includes("onerror="), card.querySelectorAll("img").length);
card.previousElementSibling.querySelector("button").click(); done.push(document.querySelectorAll("tr.card").length);
done.push(document.title);
document.body.textContent = "RESULT" + JSON.stringify(done) + "END";
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_report_in_a_browser(text: str, tmp_path: Path) -> None:
    """Search, sorting and cards in headless Chromium, driven by a script added to the page."""
    (tmp_path / "page.html").write_text(
        text.replace("</body>", f"<script>{{{DRIVE}}}</script></body>"), "utf-8"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    out = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    found: list[Any] = json.loads(
        re.search(r"RESULT(.*)END", out)[1].replace("&lt;", "<").replace("&gt;", ">")
    )
    assert found == [
        6, ["L00_N0004+"], ["L02_N0002+"], 0, 6, "L00_N0000+", "L01_N0005-", "L01_N0005-", True, 0, 0,
        "Concept vectors in <i>model</i>",
    ]  # fmt: skip
