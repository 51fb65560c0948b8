"""Figures: each from the document alone, with the document's own numbers, in text that a font can draw."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from seaborn.utils import relative_luminance

from conceptvec.document import check
from conceptvec.results import Results
from conceptvec.show import figures, style
from conceptvec.show.figures.drawing import heat_map
from tests.documents import HOSTILE, document


def texts(figure: matplotlib.figure.Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_the_sample_is_a_results_document() -> None:
    check(document(), "sample")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_without_a_missing_glyph(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every glyph that no font has
        figures.FIGURES[name](document()).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000


@pytest.mark.parametrize("name", [n for n in figures.FIGURES if n != "vector_card"])
def test_every_figure_of_a_run_names_its_model(name: str) -> None:
    assert "<i>model</i>, float32 on cpu" in texts(figures.FIGURES[name](document()))


def test_numbers_in_a_heat_map_can_be_read_on_their_shade() -> None:
    """At least the contrast of 3 that WCAG asks of large letters; seaborn's own choice has 2.1."""
    figure = Figure()
    axes = figure.subplots()
    values = np.linspace(0, 64, 65)[None]
    heat_map(axes, values, values.astype(int).astype(str), "scale")
    faces = np.asarray(axes.collections[0].get_facecolor())
    assert len(axes.texts) == 65
    for text, face in zip(axes.texts, faces, strict=True):
        shades = sorted(relative_luminance(color) for color in (face, text.get_color()))
        assert (shades[1] + 0.05) / (shades[0] + 0.05) > 3


def test_a_local_folder_is_named_without_its_path() -> None:
    results = document()
    results["model"]["id"] = "/home/somebody/models/my-gemma"
    shown = texts(figures.FIGURES["funnel"](results))
    assert "my-gemma, float32" in shown
    assert "somebody" not in shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("funnel", "\n64\n"),
        ("funnel", "\n60\n"),
        ("funnel", "\n6\n"),
        ("funnel", "\n2\n"),
        ("funnel", "0 of 2"),
        ("score_distribution", "threshold 0.75"),
        ("score_distribution", "n = 254"),
        ("score_distribution", "n = 150, 2.0 % reach the threshold"),
        ("concept_distribution", "1 of 3"),
        ("concept_distribution", "candidates, n = 6"),
        ("concept_distribution", "causally validated, n = 2"),
        ("layer_by_concept", "2 validated of 6 tested"),
        ("layer_by_concept", "1/2"),
        ("drops", "validated (n = 2)"),
        ("drops", "controls that were damaged (n = 2)"),
        ("vector_card", "score 1.00"),
    ],
)
def test_a_figure_shows_the_documents_numbers(name: str, shown: str) -> None:
    assert shown in f"\n{texts(figures.FIGURES[name](document()))}\n"


def test_what_was_not_measured_has_no_place_among_the_drops() -> None:
    assert "inconclusive" not in texts(figures.drops(document()))


def test_drops_are_where_the_document_says() -> None:
    axes = figures.drops(document()).axes[0]
    points = {
        tuple(point)
        for collection in axes.collections
        for point in getattr(collection, "get_offsets", list)().tolist()
    }
    for tested in document()["validation_results"][:5]:
        assert (tested["unrelated_drop"], tested["concept_drop"]) in points


def test_a_control_far_out_is_inside_the_axes() -> None:
    axes = figures.drops(document()).axes[0]
    assert axes.get_xlim()[1] > 0.9
    assert axes.get_ylim()[1] > 0.6


@pytest.mark.parametrize("shown", ["L01_N0001-", "only1", "dog", "n = 30 own"])
def test_a_card_shows_both_poles_of_the_vector_asked_for(shown: str) -> None:
    assert shown in texts(figures.vector_card(document(), "L01_N0001-"))


def test_a_card_of_an_unknown_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="L09_N0000"):
        figures.vector_card(document(), "L09_N0000+")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_of_an_empty_run_says_so(name: str) -> None:
    empty = document([])
    drawn = texts(figures.FIGURES[name](empty))
    assert figures.FIGURES[name].nothing in drawn or name in figures.measured(empty)


def test_what_an_earlier_run_measured_is_removed(tmp_path: Path) -> None:
    (tmp_path / "drops.png").touch()
    empty = document([])
    assert [p.stem for p in figures.save_figures(empty, tmp_path)] == figures.measured(empty)
    assert sorted(p.stem for p in tmp_path.iterdir()) == sorted(figures.measured(empty))


def test_a_folder_in_the_place_of_a_picture_costs_that_picture(tmp_path: Path) -> None:
    (tmp_path / "drops.png").mkdir()
    expected = sorted({*figures.measured(document())} - {"drops"})
    assert sorted(p.stem for p in figures.save_figures(document(), tmp_path)) == expected
    assert (tmp_path / "drops.png").is_dir()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" dog", "dog"),
        (" 狗", "[CJK U+72D7]"),
        (" कुत्ता", "[DEVAN U+0915…]"),
        (" 🐶", "[dog face]"),
    ],
)
def test_tokens_without_a_font_are_named(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "font_of", lambda ch: "DejaVu Sans" if ord(ch) < 0x250 else None)
    assert style.drawable(text) == shown


def test_hostile_text_is_cut_and_printable() -> None:
    assert len(style.drawable(HOSTILE)) <= 26
    assert style.drawable("\x1b[31m").isprintable()


def test_a_figure_shows_itself_in_a_cell() -> None:
    assert figures.funnel(Results(document()))._repr_png_().startswith(b"\x89PNG")
