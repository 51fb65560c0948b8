"""The explorer: filters, search and cards from the document alone; with the model a vector is tried out."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

import conceptvec as cv
from conceptvec.errors import RequestError
from conceptvec.model.network import Model
from conceptvec.results import Results
from conceptvec.show import explorer, trial
from conceptvec.show.pole_browser import PoleBrowser
from conceptvec.validation.damage import Damager, continuation
from tests.documents import HOSTILE, candidate, document, entry
from tests.poles import scan_of, table_of


class Shown:
    """What a user sees of the explorer: its controls by name, its list and its card."""

    def __init__(self, box: Any) -> None:
        self.controls = self._named(box)
        self.choice = box.children[0].children[1].children[1]
        self.card = box.children[1]
        self.last = box.children[-1]

    def _named(self, box: Any) -> dict[str, Any]:
        controls: dict[str, Any] = {}
        for child in getattr(box, "children", ()):
            controls |= self._named(child)
            if getattr(child, "description", ""):
                controls[child.description] = child
        return controls

    def set(self, **values: Any) -> Shown:
        for name, value in values.items():
            self.controls[name].value = value
        return self

    @property
    def ids(self) -> list[str]:
        return [value for _, value in self.choice.options]


def test_all_tested_vectors_are_listed_and_the_best_is_shown() -> None:
    shown = Shown(cv.explore(document()))
    assert len(shown.ids) == 6
    assert shown.choice.value == "L00_N0000+"
    assert "L00_N0000+" in shown.card.value


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ({"verdict": "validated"}, ["L00_N0000+", "L01_N0001-"]),
        ({"verdict": "validated", "pole": "-"}, ["L01_N0001-"]),
        ({"concept": "animals", "pole": "-"}, []),
        ({"layer": 2}, ["L02_N0002+"]),
        ({"score": (0.9, 0.95)}, ["L03_N0003-", "L00_N0004+", "L01_N0005-"]),
        ({"search": "ONLY4 dog"}, ["L00_N0004+"]),
        ({"search": "nowhere"}, []),
    ],
)
def test_filters_and_search_leave_what_fits(asked: dict[str, Any], ids: list[str]) -> None:
    shown = Shown(cv.explore(document())).set(**asked)
    assert shown.ids == ids
    assert (ids[0] if ids else "nothing matches") in shown.card.value


def test_what_is_chosen_stays_chosen_while_it_fits() -> None:
    shown = Shown(cv.explore(document()))
    shown.choice.value = "L01_N0001-"
    assert shown.set(verdict="validated").choice.value == "L01_N0001-"


def test_a_card_is_escaped() -> None:
    card = explorer.card(entry(3))
    assert HOSTILE not in card
    assert "<img" not in card


def test_without_a_model_nothing_can_be_tried_out() -> None:
    assert "Continue the text" not in Shown(cv.explore(document())).controls


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    Results(document()).save(tmp_path / "concept_vector_results_cpu.json")
    assert len(Shown(cv.explore(tmp_path)).ids) == 6


def test_a_run_without_candidates_is_browsed_in_vain() -> None:
    assert Shown(cv.explore(document([]))).card.value == "nothing matches"


def test_candidates_that_were_not_tested_are_browsed_too() -> None:
    shown = Shown(cv.explore(document() | {"untested_candidates": [candidate(6)]}))
    assert len(shown.ids) == 7
    assert shown.set(verdict="not tested").ids == ["L02_N0006+"]
    assert "candidate, not tested" in shown.card.value


def test_a_card_says_what_the_test_gave() -> None:
    shown = explorer.card(entry(0))
    assert "words that lose most</b> dog 0.60" in shown
    assert "signs before its words: gate + and up + in 75%, gate − and up − in 25%" in shown
    assert "<mark>dog</mark> 37 % → 8.2 %" in shown
    assert "-0.004" in shown  # of the effects on other concepts


def test_signs_that_were_not_measured_are_left_out() -> None:
    assert "signs before" not in explorer.card(entry(0, gate_up=None))


def test_all_poles_are_searched_by_word() -> None:
    table, scan = table_of(words=(HOSTILE, "größe", "dog")), scan_of()
    browser = PoleBrowser(pytest.importorskip("ipywidgets"), table, scan)
    assert browser.count.value == "160 of 160 poles"
    browser.words.value = "GRÖSSE dog"
    wanted = {pole.pole.id for pole in table if {"größe", "dog"} <= set(pole.words)}
    assert {label.split()[0] for label, _ in browser.choice.options} == wanted
    assert "the other pole" in browser.card.value
    assert "effect on every concept" in browser.card.value
    assert HOSTILE not in browser.card.value
    browser.words.value = "nowhere"
    assert browser.card.value == "nothing matches"


def test_missing_widgets_are_a_bad_request(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_widgets(name: str, *rest: Any) -> Any:
        if name == "ipywidgets":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_widgets)
    with pytest.raises(RequestError, match="pip install ipywidgets"):
        cv.explore(document())


def test_another_model_is_refused(tiny: Model) -> None:
    with pytest.raises(RequestError, match="other weights"):
        cv.explore(document(), tiny)


@pytest.fixture
def with_model(tiny: Model) -> Shown:
    """The explorer on one vector, whose strongest context is known, with the model."""
    activation = entry(0)["activation"] | {"contexts": [["the zoo »dog« and", 1.0]]}
    results = document([entry(0, activation=activation)])
    results["model"]["fingerprint"] = tiny.fingerprint
    return Shown(cv.explore(results, tiny))


def test_the_text_that_excites_the_vector_is_proposed(with_model: Shown) -> None:
    assert with_model.controls["text"].value == "the zoo dog"  # up to the exciting token


@pytest.mark.parametrize("change", trial.CHANGES)
def test_a_text_goes_on_with_the_vector_changed(change: str, with_model: Shown) -> None:
    with_model.set(vector=change)
    with_model.controls["Continue the text"].click()
    assert "clean" in with_model.last.value
    assert change in with_model.last.value


def test_an_empty_text_is_said(with_model: Shown) -> None:
    with_model.set(text=" ")
    with_model.controls["Continue the text"].click()
    assert "is empty" in with_model.last.value


@pytest.mark.parametrize(
    ("change", "factor"), [("remove it", 0.0), ("amplify it", 7.0)], ids=["remove", "amplify"]
)
def test_a_continuation_is_that_of_an_edited_model(change: str, factor: float, tiny: Model) -> None:
    """What the explorer says is what the model says with that column of its weights multiplied."""
    vector, text = entry(2), "dog cat horse w3"
    layer, neuron = vector["layer"], vector["neuron"]

    def continued(damage: list[Any]) -> tuple[str, torch.Tensor]:
        return continuation(tiny, tiny.encode(text), {layer: damage}, 5)

    clean = continued([])
    ours = continued(trial.changes(tiny, vector, change, factor, 0))
    weight = tiny.layers[layer].mlp.down_proj.weight
    column = weight[:, neuron].clone()
    with torch.no_grad():
        weight[:, neuron] = factor * column
        real = continued([])
        weight[:, neuron] = column
    assert ours[0] == real[0]
    torch.testing.assert_close(ours[1], real[1], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(ours[1], clean[1], rtol=1e-3)
    again = continued([])  # nothing is left behind
    assert again[0] == clean[0]
    assert torch.equal(again[1], clean[1])


def test_the_mean_is_the_damage_of_stage_3(tiny: Model) -> None:
    vector = entry(1)
    mean = vector["activation"]["mean"]
    (ours,) = trial.changes(tiny, vector, "its mean activation", 1, 0)
    column = tiny.value_vectors(vector["layer"])[vector["neuron"]]
    (theirs,) = Damager(0)("mean", column, (vector["layer"], vector["neuron"]), mean)
    assert (ours.neuron, ours.scale, ours.shift) == (theirs.neuron, theirs.scale, theirs.shift)


def test_noise_is_twice_as_long_as_the_vector(tiny: Model) -> None:
    vector = entry(1)
    (noise,) = trial.changes(tiny, vector, "noise of twice its norm", 1, 0)
    norm = torch.linalg.vector_norm(tiny.value_vectors(vector["layer"])[vector["neuron"]])
    ratio = float(torch.linalg.vector_norm(noise.direction) / norm)
    assert ratio == pytest.approx(2.0, rel=1e-5)
