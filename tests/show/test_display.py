"""Tables in a terminal and in a cell, the explorer, and errors without a traceback."""

from __future__ import annotations

import builtins
import re
from typing import Any

import pytest
import torch

import conceptvec as cv
from conceptvec import Config
from conceptvec.errors import RequestError, RunError
from conceptvec.model.network import Model
from conceptvec.results import Results
from conceptvec.show import trial
from conceptvec.show.tables import results_table
from conceptvec.text import number
from conceptvec.validation.damage import continuation, damages
from tests.documents import HOSTILE, document, entry


def test_terminal_text_has_no_control_characters() -> None:
    shown = results_table(document())
    assert all(ch.isprintable() or ch == "\n" for ch in shown)
    assert "2 validated vectors in 2 of 3 concepts" in shown and "not specific" in shown
    assert repr(Results(document())).startswith(
        "<i>model</i> on cpu in float32: 64 neurons examined"
    )


def test_cell_html_is_escaped() -> None:
    shown = Results(document())._repr_html_()
    assert "<img" not in shown and "<i>" not in shown and "<b>" not in shown
    assert "&lt;i&gt;model" in shown and shown.count("<tr>") == 7


def test_numbers_for_people() -> None:
    assert [number(x, 2) for x in (None, 0.0, -0.001, -0.2, 1.239)] == [
        "–",
        "0.00",
        "0.00",
        "-0.20",
        "1.24",
    ]


def test_stages_show_themselves(tiny: Model, config: Config) -> None:
    candidates = cv.extract(tiny, config)
    assert "96 neurons" in repr(candidates) and candidates._repr_html_().count("<tr>") > 10
    scored = cv.score(candidates, tiny, config)
    assert "concept candidates" in scored._repr_html_()


@pytest.mark.parametrize("kind", [RequestError, RunError])
def test_errors_show_their_message_alone_in_a_cell(kind: type[Exception]) -> None:
    assert kind("do that")._render_traceback_() == [f"{kind.__name__}: do that"]  # type: ignore[attr-defined]


def parts(box: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for child in getattr(box, "children", ()):
        found |= parts(child)
        if getattr(child, "description", ""):
            found[child.description] = child
    return found


def listing(box: Any) -> Any:
    return box.children[0].children[1].children[1]


def test_explorer_filters_searches_and_shows_a_card() -> None:
    box = cv.explore(document())
    control, listed, card = parts(box), listing(box), box.children[1]
    ids = lambda: [value for _, value in listed.options]
    assert len(ids()) == 6 and listed.value == "L00_N0000+" and "L00_N0000+" in card.value
    control["verdict"].value = "validated"
    assert ids() == ["L00_N0000+", "L01_N0001-"]
    control["pole"].value = "-"
    assert ids() == ["L01_N0001-"] and "L01_N0001-" in card.value
    control["verdict"].value = control["pole"].value = "all"
    control["layer"].value = 2
    assert ids() == ["L02_N0002+"]
    control["layer"].value = "all"
    control["score"].value = (0.9, 0.95)
    assert ids() == ["L03_N0003-", "L00_N0004+", "L01_N0005-"]
    control["search"].value = "ONLY4 dog"
    assert ids() == ["L00_N0004+"]
    control["search"].value = "nowhere"
    assert ids() == [] and card.value == "nothing matches"
    control["search"].value = ""
    listed.value = "L03_N0003-"
    assert "L03_N0003-" in card.value
    assert HOSTILE not in card.value and "<img" not in card.value
    assert "Continue the text" not in control


def test_explorer_reads_a_run_folder_and_needs_widgets(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Results(document()).save(tmp_path / "concept_vector_results_cpu.json")
    assert len(listing(cv.explore(tmp_path)).options) == 6
    assert cv.explore(document([])).children[1].value == "nothing matches"
    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *a: exec("raise ImportError") if name == "ipywidgets" else real(name, *a),
    )
    with pytest.raises(RequestError, match="pip install ipywidgets"):
        cv.explore(document())


def test_explorer_continues_a_text_with_the_vector_changed(tiny: Model) -> None:
    found = document(
        [entry(0, activation=entry(0)["activation"] | {"contexts": [["the zoo »dog« and", 1.0]]})]
    )
    with pytest.raises(RequestError, match="other weights"):
        cv.explore(found, tiny)
    found["model"]["fingerprint"] = tiny.fingerprint
    box = cv.explore(found, tiny)
    control = parts(box)
    assert control["text"].value == "the zoo dog"  # up to the token that excites the vector
    for change in trial.CHANGES:
        control["vector"].value = change
        control["Continue the text"].click()
        assert "clean" in box.children[-1].value and change in box.children[-1].value
    control["text"].value = " "
    control["Continue the text"].click()
    assert "is empty" in box.children[-1].value


def test_a_continuation_is_that_of_an_edited_model(tiny: Model) -> None:
    """Removing a vector in the explorer gives what the model says with that column of its weights set to zero."""
    e, text = entry(2), "dog cat horse w3"
    layer, neuron = e["layer"], e["neuron"]
    said = lambda *change: continuation(
        tiny, text, {layer: trial.changes(tiny, e, *change) if change else []}, 5
    )
    clean, removed, amplified = said(), said("remove it", 0, 0), said("amplify it", 7.0, 0)
    weight = tiny.layers[layer].mlp.down_proj.weight
    column = weight[:, neuron].clone()
    edited = {}
    with torch.no_grad():
        for factor in (0.0, 7.0):
            weight[:, neuron] = factor * column
            edited[factor] = said()
        weight[:, neuron] = column
    for ours, real in ((removed, edited[0.0]), (amplified, edited[7.0])):
        assert ours[0] == real[0]
        torch.testing.assert_close(ours[1], real[1], rtol=1e-4, atol=1e-7)
        assert not torch.allclose(ours[1], clean[1], rtol=1e-3)
    again = said()  # nothing is left behind
    assert again[0] == clean[0] and torch.equal(again[1], clean[1])


def test_changes_are_the_damages_of_stage_3(tiny: Model) -> None:
    e = entry(1)
    (mine,), (theirs,) = (
        trial.changes(tiny, e, "its mean activation", 1, 0),
        damages(tiny, e["layer"], e["neuron"], "mean", e["activation"]["mean"], 1, 2.0, None, 0),
    )
    assert (mine.neuron, mine.scale, mine.shift) == (theirs.neuron, theirs.scale, theirs.shift)
    (noise,) = trial.changes(tiny, e, "noise of twice its norm", 1, 0)
    norm = torch.linalg.vector_norm(tiny.value_vectors(e["layer"])[e["neuron"]])
    assert float(torch.linalg.vector_norm(noise.direction) / norm) == pytest.approx(2.0, rel=1e-5)
    assert re.fullmatch(r"L\d\d_N\d{4}[+-]", e["id"])
