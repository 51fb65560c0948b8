"""Figures: every one from the document alone, with the document's own numbers, and text that a font can draw."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import pytest

from conceptvec.document import check
from conceptvec.results import Results
from conceptvec.show import figures, style
from tests.documents import HOSTILE, TOKENS, document, entry


def texts(figure: matplotlib.figure.Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_sample_is_a_results_document() -> None:
    check(document(), "sample")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_without_a_missing_glyph(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every glyph that no font has
        figure = figures.FIGURES[name](document())
        figure.savefig(tmp_path / "figure.png")
    assert "model" in texts(figure) or name == "vector_card"
    assert (tmp_path / "figure.png").stat().st_size > 5_000


def test_figures_show_the_documents_numbers() -> None:
    shown = texts(figures.funnel(document()))
    assert all(f"\n{n}\n" in f"\n{shown}\n" for n in ("64", "60", "6", "2")) and "0 of 2" in shown
    shown = texts(figures.concept_distribution(document()))
    assert "1 of 3" in shown and "n = 6" in shown and "n = 2" in shown
    shown = texts(figures.drops(document()))
    assert (
        "validated (n = 2)" in shown
        and "null neurons (n = 2)" in shown
        and "inconclusive" not in shown
    )
    shown = texts(figures.layer_by_concept(document()))
    assert "2 validated of 6 tested" in shown and "1/2" in shown
    assert "threshold 0.75" in texts(figures.score_distribution(document()))


def test_drops_are_where_the_document_says() -> None:
    axes = figures.drops(document()).axes[0]
    points = {
        tuple(p) for c in axes.collections for p in getattr(c, "get_offsets", list)().tolist()
    }
    for e in document()["validation_results"][:5]:
        assert (e["unrelated_drop"], e["concept_drop"]) in points
    assert (0.9, 0.6) in points  # a null neuron far out is inside the axes
    assert axes.get_xlim()[1] > 0.9


def test_a_card_shows_both_poles_of_the_vector_asked_for() -> None:
    shown = texts(figures.vector_card(document(), "L01_N0001-"))
    assert (
        "L01_N0001-" in shown and "only1" in shown and "dog" in shown and "n = 30 concept" in shown
    )
    with pytest.raises(ValueError, match="L09_N0000"):
        figures.vector_card(document(), "L09_N0000+")


def test_nothing_validated_or_tested_is_said_not_drawn(tmp_path: Path) -> None:
    nothing = document([entry(3, "no_effect")])
    assert "dose_response" not in figures.measured(nothing)
    assert "No vector was validated" in texts(figures.dose_response(nothing))
    empty = document([])
    empty["pipeline_stats"] |= {"tested_vectors": None, "validated_vectors": None}
    for name, draw in figures.FIGURES.items():
        assert draw(empty) is not None, name
    assert [p.stem for p in figures.save_figures(empty, tmp_path)] == figures.measured(empty)


def test_tokens_without_a_font_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "font_of", lambda ch: "DejaVu Sans" if ord(ch) < 0x250 else None)
    assert style.drawable(" dog") == "dog"
    assert style.drawable(" 狗") == "[CJK U+72D7]"
    assert style.drawable(" कुत्ता", 16) == "[DEVAN U+0915…]"
    assert style.drawable(" 🐶") == "[dog face]"
    assert style.drawable("\x1b[31m").isprintable()
    assert len(style.drawable(HOSTILE)) <= 26


def test_a_figure_shows_itself_in_a_cell() -> None:
    assert figures.funnel(Results(document()))._repr_png_().startswith(b"\x89PNG")
    assert TOKENS
