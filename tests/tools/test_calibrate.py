"""Stage 3 tests itself: planted vectors are found, others are not, and what is missing is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_corpus import passages

from conceptvec import Config, load_model
from conceptvec.cli import main
from conceptvec.concepts import BUILT_IN
from conceptvec.errors import RequestError
from conceptvec.runfolder import Parts, RunFolder
from conceptvec.show.figures import calibration
from conceptvec.tools import calibrate as module
from conceptvec.tools import ground as ground_module
from conceptvec.tools.calibrate import calibrate, calibration_table, check_folder
from conceptvec.tools.ground import planting_layers, quietest, survey
from conceptvec.tools.rounds import Options, random_candidates
from tests.conftest import ANIMALS, make_hf, wrap

WORTH, BELOW = 0.08, 0.02  # nats: what must be found, and what lies under the rule's floor

TIME = "time=day,night,week,month,year,hour,minute,morning,evening,summer,winter"


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model(Config(device="cpu"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> Config:
    """The demo on text of its own kind: writing it would take longer than all the rest."""
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n".join(text.replace("\n", " ") for text in passages(5, 1000)))
    return Config(device="cpu", corpus=str(file), corpus_tokens=15_000)


@pytest.fixture(scope="module")
def found(demo: Any, config: Config) -> dict[str, Any]:
    return calibrate(demo, config, Options(1, 30, (BELOW, WORTH)))


def test_every_concepts_planted_vector_is_validated(found: dict[str, Any]) -> None:
    strong = found["planted"][1]
    assert strong["effect"] == WORTH
    assert {point["concept"] for point in strong["points"]} == set(BUILT_IN)
    # A vector can be out of reach: where the model is sure already, no norm is worth that much.
    assert strong["planted"] + strong["out_of_reach"] == 12
    assert strong["out_of_reach"] <= 1
    assert strong["planted"] == strong["used"] == strong["validated"]
    assert strong["rate"] == 1.0
    assert strong["concept_drop"] == pytest.approx(WORTH, rel=0.1)


def test_what_is_worth_less_than_the_floor_is_not(found: dict[str, Any]) -> None:
    weak = found["planted"][0]
    assert weak["planted"] >= 10
    assert weak["validated"] == 0
    assert any("own drop under 0.05" in phrase for phrase in weak["failed"])


def test_nothing_is_validated_where_nothing_was_planted(found: dict[str, Any]) -> None:
    nulls = found["null_calibration"]
    groups = (found["random"], nulls, nulls["wrong_concept"], nulls["moved"])
    assert all(group["n"] >= 15 for group in groups)
    assert [group["false_validations"] for group in groups] == [0, 0, 0, 0]
    assert found["random"]["points"] == []


def test_the_answer_is_a_document_a_table_and_a_figure(found: dict[str, Any]) -> None:
    json.dumps(found, allow_nan=False)
    table = calibration_table(found)
    assert "planted, worth 0.08 nats" in table
    assert "moved vectors" in table
    assert f"12 × own drop under {0.05:g} nats" in table
    assert calibration(found)._repr_png_().startswith(b"\x89PNG")


def test_the_model_is_left_as_it_was(demo: Any, found: dict[str, Any]) -> None:
    assert demo.fingerprint == load_model(Config(device="cpu")).fingerprint
    assert not demo.decoder._forward_pre_hooks
    assert not demo.decoder._forward_hooks


def test_a_round_is_kept_and_taken_up_again(
    demo: Any, config: Config, found: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """The second time nothing is planted; other options are played anew."""
    played = []
    play = module.play

    def counting(*arguments: Any) -> Any:
        played.append(arguments[3])
        return play(*arguments)

    monkeypatch.setattr(module, "play", counting)
    asked = replace(config, concepts=TIME, corpus_tokens=7000)
    options = Options(1, 8, (WORTH,))
    first = calibrate(demo, asked, options, RunFolder(tmp_path, asked, demo.facts()))
    second = calibrate(demo, asked, options, RunFolder(tmp_path, asked, demo.facts()))
    assert played == [0]
    for document in (first, second):
        del document["timings"]
    assert first == second
    third = calibrate(
        demo, asked, Options(1, 9, (WORTH,)), RunFolder(tmp_path, asked, demo.facts())
    )
    assert played == [0, 0]
    assert third["options"] != first["options"]


def test_one_concept_of_ones_own_is_compared_with_the_built_in(demo: Any, config: Config) -> None:
    own = replace(config, concepts=TIME, corpus_tokens=7000)
    document = calibrate(demo, own, Options(1, 8, (WORTH,)))
    (row,) = document["planted"]
    assert [point["concept"] for point in row["points"]] == ["time"]
    assert row["planted"] + row["out_of_reach"] == 1
    assert row["used"] == row["planted"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("birds=robin,eagle", r"birds: \d known words in the text, \d too few"),
        ("numbers=one,two,three,four,five,six,seven", "own positions in the text|known words"),
    ],
)
def test_too_little_text_is_said_and_no_zero(
    demo: Any, config: Config, words: str, reason: str
) -> None:
    few = replace(config, concepts=words, corpus_tokens=300)
    with pytest.raises(RequestError, match=reason):
        calibrate(demo, few, Options(1, 8, (WORTH,)))


def test_a_concept_without_words_is_named_beside_the_others(demo: Any, config: Config) -> None:
    words = "time=day,night,week,month,year,hour,minute;birds=robin,eagle"
    ground = survey(demo, replace(config, concepts=words), Parts())
    assert [ground.names[c] for c in ground.concepts] == ["time"]
    assert "too few" in ground.not_planted["birds"]


def test_a_vocabulary_of_its_own_has_nothing_to_compare_with(tmp_path: Path) -> None:
    """One concept in words that no other has: permuting labels could never say anything."""
    stream = np.random.default_rng(0)
    lines = [" ".join([*stream.choice(ANIMALS, 2), f"w{i}", *stream.choice(ANIMALS, 5)])
             for i in range(60)]  # fmt: skip
    (tmp_path / "t.txt").write_text("\n".join(lines))
    alone = Config(
        device="cpu",
        corpus=str(tmp_path / "t.txt"),
        concepts="animals=" + ",".join(ANIMALS),
        corpus_tokens=500,
    )
    model = wrap(make_hf())
    with pytest.raises(RequestError, match="no other concept has known words"):
        calibrate(model, alone, Options(1, 8, (WORTH,)))


def test_more_concepts_than_a_layer_holds_are_refused(
    demo: Any, config: Config, monkeypatch: Any
) -> None:
    """Without neurons that are left to the controls nothing could come out as used."""
    monkeypatch.setattr(ground_module, "MOST_PLANTED", 0.2)
    with pytest.raises(
        RequestError, match="12 concepts to plant for, expected at most 8 of the 40"
    ):
        calibrate(demo, config, Options(1, 8, (WORTH,)))


def test_plants_stand_in_the_upper_half_and_below_the_last_layer() -> None:
    assert planting_layers(Config(), 18) == list(range(9, 17))
    assert planting_layers(Config(), 4) == [2]
    assert planting_layers(Config(layers="3-8"), 18) == [6, 7, 8]
    assert planting_layers(Config(layers="0,17"), 18) == [0]
    with pytest.raises(RequestError, match="below the last"):
        planting_layers(Config(layers="17"), 18)


def test_every_concept_meets_every_effect() -> None:
    options = Options(2, 10, (0.1, 0.2, 0.4))
    for concept in range(5):
        effects = [options.effect_of(turn, concept) for turn in range(options.rounds)]
        assert sorted(effects) == [0.1, 0.1, 0.2, 0.2, 0.4, 0.4]
    for bad in ({"planted": 0}, {"vectors": 0}, {"effects": ()}, {"effects": (0.1, 0.0)}):
        with pytest.raises(RequestError):
            Options(**bad)


def test_random_neurons_are_not_tested_for_their_own_concept(demo: Any, config: Config) -> None:
    ground = survey(demo, config, Parts())
    quiet = quietest(demo, 2, ground.text)
    assert sorted(quiet) == list(range(40))
    drawn = random_candidates(ground, "both", 2, quiet[12:], 100, np.random.default_rng(0))
    assert len(drawn) == 28 // 3  # the rest is left to the controls
    tokens = ground.known_tokens
    for candidate in drawn:
        assert candidate.pole.neuron in quiet[12:]
        vector = demo.readout_directions(2, "both", [candidate.pole.neuron])[0]
        readout = (demo.unembedding[tokens] @ vector).numpy() * candidate.pole.direction
        means = [readout[ground.is_word_of(c)].mean() for c in range(12)]
        assert ground.names[int(np.argmax(means))] != candidate.concept


def test_another_calibration_is_not_replaced_silently(
    config: Config, found: dict[str, Any], tmp_path: Path
) -> None:
    options = Options(1, 30, (BELOW, WORTH))
    check_folder(tmp_path / "nothing", config, options)
    (tmp_path / module.FILE).write_text(json.dumps(found))
    check_folder(tmp_path, config, options)
    with pytest.raises(RequestError, match="another calibration .vectors was 30, is 31"):
        check_folder(tmp_path, config, Options(1, 31, (BELOW, WORTH)))
    with pytest.raises(RequestError, match="another calibration .seed was 0, is 1"):
        check_folder(tmp_path, replace(config, seed=1), options)
    check_folder(tmp_path, replace(config, seed=1, overwrite=True), options)
    (tmp_path / module.FILE).write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        check_folder(tmp_path, config, options)


def test_the_command_writes_its_answer_and_keeps_it(
    config: Config, tmp_path: Path, capsys: Any
) -> None:
    command = [
        "calibrate", "--device", "cpu", "--corpus", config.corpus, "--corpus-tokens", "7000",
        "--concepts", TIME, "--vectors", "8",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "run" / module.FILE).read_text())
    assert kept == document
    assert len(document["planted"]) == 5
    assert (tmp_path / "run" / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "run" / "calibration").iterdir())) == 5
    assert main([*command[:-3], "9", *command[-2:]]) == 2
    assert "holds another calibration (vectors was 8, is 9)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["calibrate", "scan"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(
    command: str, tmp_path: Path, capsys: Any, monkeypatch
) -> None:
    (tmp_path / "file").touch()
    loads: list[Any] = []
    monkeypatch.setattr("conceptvec.model.network.load_model", loads.append)
    assert main([command, "--device", "cpu", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be written; give another folder" in capsys.readouterr().err
    assert not loads


@pytest.mark.parametrize("flag", ["planted", "vectors"])
@pytest.mark.parametrize("number", ["0", "1000000000000"])
def test_bad_numbers_are_refused_before_anything_is_loaded(
    flag: str, number: str, capsys: Any
) -> None:
    assert main(["calibrate", "--model", "nowhere/at-all", f"--{flag}", number]) == 2
    expected = f"--{flag}: got {number}, expected a whole number from 1 to 100,000"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read"),
        ("[" * 99_999, "cannot be read"),
        ("5", "none of conceptvec's"),
        ("[]", "none of conceptvec's"),
        ("{}", "none of conceptvec's"),
        ('{"options": [], "configuration": {}, "model": {}}', "none of conceptvec's"),
        ('{"options": {}, "configuration": {}, "model": {}}', "written by conceptvec None"),
    ],
)
def test_a_file_of_the_same_name_stays(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / module.FILE
    file.write_text(content)
    with pytest.raises(RequestError, match=said):
        check_folder(tmp_path, Config(device="cpu"), Options())
    assert file.read_text() == content


def test_what_json_cannot_hold_costs_no_calibration(found: dict[str, Any], tmp_path: Path) -> None:
    broken = found | {"timings": {"calibrate": float("nan")}}
    module.save_calibration(broken, tmp_path)
    assert json.loads((tmp_path / module.FILE).read_text())["timings"] == {"calibrate": None}
