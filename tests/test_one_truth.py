"""Options and content are bound to what was measured.

Another configuration, model, folder or file is refused by name, or is the same in other words.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import conceptvec as cv
from conceptvec import Config, RequestError
from conceptvec.cli import main
from conceptvec.concepts import load_concepts
from conceptvec.runfolder import manifests
from conceptvec.tools.find import find
from tests.children import lasting, start, world
from tests.conftest import ANIMALS, concepts_document, corpus_text, make_hf, save, wrap

STAGES_1_AND_2 = {
    "layers": "1",
    "max_vectors": 5,
    "batch_size": 3,
    "top_k": 9,
    "fold": "none",
    "seed": 1,
}
SCORING_ONLY = {"min_kurtosis": -1.0, "score_threshold": 0.5, "concepts": "birds=w1,w2,w3"}
STAGE_3 = {"damage": "zero", "corpus_tokens": 100, "noise_sigma": 0.1, "chat_template": True}


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, concepts and a text."""
    folder = tmp_path_factory.mktemp("place")
    save(make_hf(layers=2), folder / "model")
    (folder / "concepts.json").write_text(json.dumps(concepts_document()))
    (folder / "corpus.txt").write_text(corpus_text(60))
    return folder


@pytest.fixture(scope="module")
def base(place: Path) -> Config:
    return Config(
        model=str(place / "model"),
        device="cpu",
        layers="0",
        top_k=10,
        concepts=str(place / "concepts.json"),
        corpus=str(place / "corpus.txt"),
        score_threshold=0.05,
    )


@pytest.fixture(scope="module")
def loaded(base: Config) -> Any:
    return cv.load_model(base)


@pytest.fixture(scope="module")
def candidates(base: Config, loaded: Any) -> Any:
    return cv.extract(loaded, base)


@pytest.fixture(scope="module")
def scored(base: Config, loaded: Any, candidates: Any) -> Any:
    return cv.score(candidates, loaded, base)


class TestStagesByHand:
    """Each stage is called with a configuration of its own."""

    @pytest.mark.parametrize("option", STAGES_1_AND_2)
    def test_score_refuses_what_extract_had_otherwise(self, option, base, loaded, candidates):
        other = replace(base, **{option: STAGES_1_AND_2[option]})
        with pytest.raises(RequestError, match=f"{option} was .* is "):
            cv.score(candidates, loaded, other)

    @pytest.mark.parametrize("option", [*STAGES_1_AND_2, *SCORING_ONLY])
    def test_validate_refuses_what_score_had_otherwise(self, option, base, loaded, scored):
        other = replace(base, **{option: (STAGES_1_AND_2 | SCORING_ONLY)[option]})
        with pytest.raises(RequestError, match=f"{option} was .* is "):
            cv.validate(scored, loaded, other)

    def test_what_a_stage_does_not_read_may_change(self, base, loaded, candidates):
        stricter = replace(base, score_threshold=0.9)
        assert cv.score(candidates, loaded, stricter).concepts.names == ["animals", "colors"]

    def test_another_model(self, base, scored):
        other = wrap(make_hf(layers=2, seed=7))
        with pytest.raises(RequestError, match="weights differ"):
            cv.validate(scored, other, base)

    def test_another_model_of_stage_1(self, base, candidates):
        other = wrap(make_hf(layers=2, seed=7))
        with pytest.raises(RequestError, match="weights differ"):
            cv.score(candidates, other, base)

    def test_another_precision(self, base, place, scored):
        other = cv.load_model(replace(base, dtype="bfloat16"))
        with pytest.raises(RequestError, match="dtype was float32, is bfloat16"):
            cv.validate(scored, other, base)

    def test_the_results_say_which_model_it_was(self, base, loaded, scored):
        """A configuration that names another model than the one at hand names nothing."""
        elsewhere = replace(base, model="demo", dtype="bfloat16", device="mps")
        options = cv.validate(scored, loaded, elsewhere)["configuration"]
        assert options["model"] == base.model
        assert (options["dtype"], options["device"]) == ("float32", "cpu")

    def test_the_same_layers_in_other_words(self, base, loaded, candidates):
        cv.score(candidates, loaded, replace(base, layers="0-0"))

    def test_the_same_sample_in_other_words(self, base, loaded, candidates):
        """24 neurons a layer: 1000 of them are all."""
        cv.score(candidates, loaded, replace(base, max_vectors=None))

    def test_concepts_are_read_once(self, base, loaded, candidates, tmp_path):
        path = tmp_path / "c.json"
        shutil.copy(base.concepts, path)
        config = replace(base, concepts=str(path))
        before = cv.score(candidates, loaded, config)
        path.write_text(json.dumps({"concepts": {"w": {"keywords": ["w1"], "prompts": None}}}))
        results = cv.validate(before, loaded, config)
        assert list(results["concept_distribution"]) == ["animals", "colors"]
        assert results["files"] == {"concepts": load_concepts(base.concepts).digest}

    def test_the_same_concepts_elsewhere(self, base, loaded, scored, tmp_path):
        path = tmp_path / "moved.json"
        shutil.copy(base.concepts, path)
        cv.validate(scored, loaded, replace(base, concepts=str(path)))


class TestRunFolder:
    """The folder belongs to one configuration, whoever writes into it."""

    @pytest.fixture
    def folder(self, base, loaded, tmp_path) -> Path:
        config = replace(base, out=str(tmp_path / "run"))
        parts = cv.open_run(loaded, config)
        scored = cv.score(cv.extract(loaded, config, parts), loaded, config, parts)
        cv.save_run(cv.validate(scored, loaded, config, parts), loaded, config, parts)
        return parts.path

    @pytest.mark.parametrize("option", [*STAGES_1_AND_2, *SCORING_ONLY, *STAGE_3, "corpus"])
    def test_no_stage_takes_it_for_another(
        self, option, base, loaded, candidates, scored, tmp_path
    ):
        config = replace(base, out=str(tmp_path / "run"))
        parts = cv.open_run(loaded, config)
        before = files_in(tmp_path)
        value = (STAGES_1_AND_2 | SCORING_ONLY | STAGE_3 | {"corpus": "self"})[option]
        other = replace(config, **{option: value})
        calls = [
            lambda: cv.extract(loaded, other, parts),
            lambda: cv.score(candidates, loaded, other, parts),
            lambda: cv.validate(scored, loaded, other, parts),
            lambda: cv.scan(loaded, other, parts),
        ]
        for call in calls:
            with pytest.raises(RequestError, match=f"{option} was .* is "):
                call()
        assert files_in(tmp_path) == before

    @pytest.mark.parametrize("damage", ["zero", "zero,mean", "zero,noise,mean", "rotate"])
    def test_other_damages_are_refused_and_poison_nothing(
        self, damage, base, loaded, scored, tmp_path
    ):
        config = replace(base, out=str(tmp_path / "run"), damage="zero,rotate,mean")
        parts = cv.open_run(loaded, config)
        with pytest.raises(RequestError, match="damage was"):
            cv.validate(scored, loaded, replace(config, damage=damage), parts)
        assert not (tmp_path / "run" / "text").exists()
        by_hand = cv.validate(scored, loaded, config, parts)
        assert list(by_hand["configuration"]["damage"]) == ["zero", "rotate", "mean"]

    def test_another_model(self, base, scored, loaded, tmp_path):
        config = replace(base, out=str(tmp_path / "run"))
        parts = cv.open_run(loaded, config)
        other = wrap(make_hf(layers=2, seed=7))
        with pytest.raises(RequestError, match="weights differ"):
            cv.extract(other, config, parts)

    def test_vectors_are_folded_as_the_results_say(self, base, loaded, folder):
        config = replace(base, out=str(folder))
        results, parts = cv.load_results(folder), cv.open_run(loaded, config)
        before = files_in(folder)
        with pytest.raises(RequestError, match="fold was 'both', is 'none'"):
            cv.save_run(results, loaded, replace(config, fold="none"), parts)
        assert files_in(folder) == before

    def test_results_of_another_run_are_not_saved(self, base, loaded, folder, tmp_path):
        results = cv.load_results(folder)
        other = replace(base, out=str(tmp_path / "other"), score_threshold=0.5)
        with pytest.raises(RequestError, match="score_threshold was 0.05, is 0.5"):
            cv.save_run(results, loaded, other, cv.open_run(loaded, other))

    def test_results_of_other_concepts_are_not_saved(self, base, loaded, folder, tmp_path):
        results, path = cv.load_results(folder), tmp_path / "c.json"
        path.write_text(json.dumps(concepts_document() | {"neutral_prompts": None}).replace(
            '"neutral_prompts": null', '"neutral_prompts": [{"prompt": "w1", "answer": " w2"}]'
        ))  # fmt: skip
        other = replace(base, out=str(tmp_path / "other"), concepts=str(path))
        with pytest.raises(RequestError, match="concepts was"):
            cv.save_run(results, loaded, other, cv.open_run(loaded, other))

    def test_the_folder_keeps_the_concepts(self, base, folder):
        (part,) = folder.glob("concepts_*.safetensors")
        with safe_open(part, "np") as file:
            assert file.get_tensor("file").tobytes() == Path(base.concepts).read_bytes()


def command(**changes: str) -> list[str]:
    """The arguments of a run in the working directory."""
    options = {
        "--model": "model",
        "--device": "cpu",
        "--layers": "0,1",
        "--top-k": "10",
        "--concepts": "concepts.json",
        "--corpus": "corpus.txt",
        "--score-threshold": "0.05",
        "--out": "run",
    } | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["run", *(text for pair in options.items() for text in pair)]


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory) -> Path:
    """A finished run among copies of its files."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(place, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(command()) == 0
    return folder


@pytest.fixture
def there(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the finished run and its files, and the shell stands in it."""
    shutil.copytree(finished, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "there"


@pytest.fixture
def computed_nothing(monkeypatch) -> None:
    """Whatever is computed fails."""
    for name in (
        "conceptvec.extraction.stage.project_layer",
        "conceptvec.effects.stage.read_passages",
        "conceptvec.effects.gradients.Gradients.part",
        "conceptvec.validation.stage.measure_unit",
    ):
        monkeypatch.setattr(name, lambda *_: pytest.fail("computed again"))


SPELLINGS = [
    {"model": "model/"},
    {"model": "./model"},
    {"model": "../there/model"},
    {"corpus": "./corpus.txt"},
    {"concepts": "./concepts.json"},
    {"device": "auto"},
    {"dtype": "float32"},
    {"layers": "all"},
    {"layers": "0-1"},
    {"max_vectors": "24"},
    {"max_vectors": "all"},
    {"out": "../there/run"},
]


class TestAnotherSpelling:
    """The same model, text, device or layers in other words are the same run."""

    @pytest.mark.usefixtures("computed_nothing")
    @pytest.mark.parametrize("change", SPELLINGS, ids=lambda c: "-".join(*c.items()))
    def test_is_the_same_run(self, change, there, finished):
        assert main(command(**change)) == 0
        assert measured(there) == measured(finished)

    @pytest.mark.usefixtures("computed_nothing")
    @pytest.mark.parametrize("name", ["model", "corpus", "concepts", "out"])
    def test_an_absolute_path_is_the_same_run(self, name, there, finished):
        usual = dict(zip(command()[1::2], command()[2::2], strict=True))
        assert main(command(**{name: str(there / usual[f"--{name}"])})) == 0
        assert measured(there) == measured(finished)

    @pytest.mark.usefixtures("computed_nothing")
    @pytest.mark.parametrize("name", ["model", "corpus.txt", "concepts.json", "run"])
    def test_what_is_moved_is_the_same(self, name, there, finished):
        (there / name).rename(there / f"moved-{name}")
        option = {"run": "out"}.get(name, name.partition(".")[0])
        assert main(command(**{option: f"moved-{name}"})) == 0

    def test_another_model_of_the_same_name_is_another(self, there, capsys):
        shutil.rmtree(there / "model")
        save(make_hf(layers=2, seed=3), there / "model")
        assert main(command()) == 2
        assert "weights differ" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["concepts.json", "corpus.txt"])
    def test_another_content_of_the_same_name_is_another(self, name, there, capsys):
        path = there / name
        path.write_text(path.read_text().replace("w1 ", "w2 "))
        assert main(command()) == 2
        assert f"content of the {name.partition('.')[0]} file differs" in capsys.readouterr().err

    def test_another_column_of_the_same_file_is_another(self, there, capsys):
        lines = [json.dumps({"a": line, "b": line}) for line in corpus_text(60).splitlines()]
        (there / "c.jsonl").write_text("\n".join(lines))
        assert main(command(corpus="c.jsonl:a", out="new")) == 0
        assert main(command(corpus="./c.jsonl:a", out="new")) == 0
        assert main(command(corpus="c.jsonl:b", out="new")) == 2
        assert "corpus was './c.jsonl:a', is 'c.jsonl:b'" in capsys.readouterr().err


TURN = "{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}"


def write_template(folder: Path, template: str, place: str) -> None:
    """The chat template of a model folder, where old and new versions keep it."""
    if place == "chat_template.jinja":
        (folder / place).write_text(template)
        return
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = template
    path.write_text(json.dumps(settings))


class TestChatTemplate:
    """A template that was edited in place makes another run where the run uses it."""

    PLACES = ("tokenizer_config.json", "chat_template.jinja")

    @pytest.fixture(params=PLACES)
    def edited(self, request, base, tmp_path) -> Any:
        """A configuration, and an edit of its model's template."""
        folder = tmp_path / "model"
        shutil.copytree(base.model, folder)
        write_template(folder, TURN, request.param)

        def edit() -> None:
            write_template(folder, TURN.replace("w2", "w3"), request.param)

        return replace(base, model=str(folder), out=str(tmp_path / "run")), edit

    @pytest.mark.parametrize("with_manifest", [True, False])
    def test_a_resume_with_another_is_refused(self, with_manifest, edited):
        config, edit = replace(edited[0], chat_template=True), edited[1]
        first = cv.load_model(config)
        parts = cv.open_run(first, config)
        parts.finish()
        if not with_manifest:  # the results speak for themselves
            (parts.path / "manifest.json").unlink()
            document = {"conceptvec_version": cv.__version__, "configuration": config.resolved()}
            document |= {"model": first.facts()}
            (parts.path / "concept_vector_results_cpu.json").write_text(json.dumps(document))
        cv.open_run(cv.load_model(config), config)
        edit()
        with pytest.raises(RequestError, match="content of the model's chat_template differs"):
            cv.open_run(cv.load_model(config), config)

    def test_without_the_option_nothing_depends_on_it(self, edited):
        config, edit = edited
        cv.open_run(cv.load_model(config), config).finish()
        edit()
        cv.open_run(cv.load_model(config), config)

    def test_stage_3_is_refused_with_another(self, edited):
        config, edit = replace(edited[0], chat_template=True), edited[1]
        parts = cv.open_run(cv.load_model(config), config)
        edit()
        model = cv.load_model(config)
        scored = cv.score(cv.extract(model, config), model, config)
        with pytest.raises(RequestError, match="chat_template differs"):
            cv.validate(scored, model, config, parts)

    def test_the_first_stages_do_not_depend_on_it(self, edited):
        config, edit = replace(edited[0], chat_template=True), edited[1]
        model = cv.load_model(config)
        parts = cv.open_run(model, config)
        candidates = cv.extract(model, config, parts)
        edit()
        other = cv.load_model(config)
        assert other.fingerprint == model.fingerprint
        cv.score(candidates, other, config)

    def test_it_is_filled_in_once(self, edited):
        """A template may write the time."""
        model = cv.load_model(edited[0])
        before = model.encode("w5", chat=True)
        model.tokenizer.chat_template = TURN.replace("w2", "w4")
        assert model.encode("w5", chat=True) == before


def measured(folder: Path) -> Any:
    """The results without what a spelling shows in, and the parts."""
    document = json.loads(lasting(folder / "run"))
    shown = {name: document.pop(name) for name in ("configuration", "model", "text")}
    assert shown["text"]["digest"]
    (manifest,) = manifests(folder / "run")
    return document, manifest["parts"]


class TestEditsDuringARun:
    """What a run reads it reads once."""

    def edited_while(self, monkeypatch, name: str, edit) -> None:
        import conceptvec.extraction.stage as stage

        real, calls = stage.project_layer, []

        def project(*arguments):
            if not calls:
                edit(Path(name))
            calls.append(1)
            return real(*arguments)

        monkeypatch.setattr(stage, "project_layer", project)

    def test_edited_concepts_change_nothing(self, there, finished, monkeypatch):
        def edit(path: Path) -> None:
            path.write_text(path.read_text().replace(ANIMALS[0], "zebra").replace('"w3 ', '"w4 '))

        original = (there / "concepts.json").read_bytes()
        self.edited_while(monkeypatch, "concepts.json", edit)
        assert main(command(out="new")) == 0
        assert (there / "concepts.json").read_bytes() != original
        (there / "run").rename(there / "old"), (there / "new").rename(there / "run")
        assert measured(there) == measured(finished)
        # The old file again: nothing of the other one is in the folder.
        (there / "concepts.json").write_bytes(original)
        assert main(command()) == 0
        assert measured(there) == measured(finished)

    def test_deleted_concepts_change_nothing(self, there, finished, monkeypatch):
        self.edited_while(monkeypatch, "concepts.json", lambda path: path.unlink())
        assert main(command(out="new")) == 0

    @pytest.mark.parametrize("by", ["write", "rename"])
    def test_an_edited_corpus_is_not_taken_for_the_first(self, by, there, monkeypatch, capsys):
        def edit(path: Path) -> None:
            new = Path("new.txt")
            new.write_text(path.read_text().replace("w1 ", "w2 "))
            new.rename(path) if by == "rename" else path.write_bytes(new.read_bytes())

        original = (there / "corpus.txt").read_bytes()
        self.edited_while(monkeypatch, "corpus.txt", edit)
        assert main(command(out="new")) == 2
        assert "corpus.txt was changed since the run began" in capsys.readouterr().err
        (there / "corpus.txt").write_bytes(original)
        assert main(command(out="new")) == 0

    def test_a_corpus_that_is_edited_after_it_was_read_changes_nothing(self, there, monkeypatch):
        import conceptvec.pipeline as pipeline

        real = pipeline.save_run
        Path("kept.txt").write_bytes(Path("corpus.txt").read_bytes())

        def save_run(*arguments):
            Path("corpus.txt").write_text("w1")
            return real(*arguments)

        monkeypatch.setattr(pipeline, "save_run", save_run)
        assert main(command(out="new")) == 0
        assert main(command(out="new", corpus="kept.txt")) == 0

    def test_weights_that_change_are_noticed(self, there, monkeypatch, capsys):
        other = there / "other"
        save(make_hf(layers=2, seed=3), other)
        path = "model/model.safetensors"
        self.edited_while(monkeypatch, path, lambda path: os.replace(other / path.name, path))
        assert main([*command(out="new"), "--stages", "1"]) == 1
        assert "changed while it was read" in capsys.readouterr().err


class TestProcesses:
    """Several processes of one launch are asked for one thing."""

    CHANGES = (
        {"damage": "zero"},
        {"layers": "0"},
        {"dtype": "bfloat16"},
        {"out": "elsewhere"},
        {"stages": "1,2"},
        {"seed": "1"},
    )

    @pytest.mark.parametrize("change", CHANGES, ids=lambda c: "-".join(*c.items()))
    def test_that_differ_are_refused(self, change, there):
        lines = [command(out="new"), command(**{"out": "new"} | change)]
        processes = [
            start(line, there / f"log{i}", env)
            for i, (line, env) in enumerate(zip(lines, world(2), strict=True))
        ]
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [2, 2]
        (option,) = change
        assert f"{option} was" in (there / "log0").read_text()
        assert f"{option} was" in (there / "log1").read_text()
        assert not (there / "new").exists()


class TestFindInARun:
    def test_another_model_is_refused(self, there, capsys):
        assert main(["find", "dog", "--device", "cpu", "--run", "run", "--model", "demo"]) == 2
        assert "--model: run was made from other weights than those of demo" in (
            capsys.readouterr().err
        )

    def test_the_same_model_elsewhere_is_taken(self, there):
        (there / "model").rename(there / "renamed")
        assert main(["find", "dog", "--device", "cpu", "--run", "run", "--model", "renamed"]) == 0

    def test_another_fold_is_refused(self, there, capsys):
        assert main(["find", "dog", "--device", "cpu", "--run", "run", "--fold", "none"]) == 2
        assert "--fold: run was made with both, asked for is none" in capsys.readouterr().err

    def test_in_python(self, there):
        with pytest.raises(RequestError, match="--fold"):
            find(["dog"], Config(device="cpu", fold="final"), run="run")


class TestConcepts:
    def test_the_rule_for_numerals_is_the_built_in_concepts(self):
        answer = cv.score_tokens(["1", "2", "3", "4"], "numbers=alpha,beta")
        assert (answer["concept"], answer["score"]) == ("none", 0)
        assert cv.score_tokens(["1", "2", "3", "4"])["concept"] == "numbers"

    def test_a_prompt_of_two_concepts_is_refused(self, tmp_path):
        document = concepts_document()
        groups = document["concepts"]
        groups["colors"]["prompts"][2] = groups["animals"]["prompts"][1]
        path = tmp_path / "c.json"
        path.write_text(json.dumps(document))
        said = "concepts.animals and concepts.colors both hold 'w1 w2 zoo cat'"
        with pytest.raises(RequestError, match=said):
            load_concepts(str(path))

    def test_a_prompt_of_a_concept_that_is_neutral_is_refused(self, tmp_path):
        document = concepts_document()
        document["neutral_prompts"][5] = document["concepts"]["animals"]["prompts"][1]
        path = tmp_path / "c.json"
        path.write_text(json.dumps(document))
        with pytest.raises(RequestError, match="concepts.animals and neutral_prompts both hold"):
            load_concepts(str(path))

    def test_a_built_in_neutral_prompt_is_refused_too(self, tmp_path):
        first = load_concepts(None).neutral[0]
        document = concepts_document()
        del document["neutral_prompts"]
        document["concepts"]["animals"]["prompts"][0] = {
            "prompt": first.prompt,
            "answer": first.answer,
        }
        path = tmp_path / "c.json"
        path.write_text(json.dumps(document))
        with pytest.raises(RequestError, match="concepts.animals and neutral_prompts both hold"):
            load_concepts(str(path))

    def test_an_existing_file_is_a_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("a=b.concepts").write_text(json.dumps(concepts_document()))
        assert load_concepts("a=b.concepts").names == ["animals", "colors"]
        assert load_concepts("a=b.other").names == ["a"]
        assert Config(concepts="a=b.concepts").concepts == "a=b.concepts"


def test_equal_runs_give_the_same_bytes(there):
    for name in ("one", "two"):
        assert main(command(out=name)) == 0
    one, two = files_in(there / "one"), files_in(there / "two")
    assert one.keys() == two.keys()
    differing = [name for name in one if one[name] != two[name]]
    assert {*differing} <= {"manifest.json", "concept_vector_results_cpu.json"}
    # Nothing but the folder's name and what the clock says.
    assert lasting(there / "one") == lasting(there / "two")


def test_the_vectors_file_is_written_the_same_way_each_time(tmp_path):
    """The library orders the metadata at random."""
    from safetensors.torch import load, save

    from conceptvec.files import with_sorted_metadata

    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    about = {name: name * 3 for name in ("ids", "concepts", "model", "fold", "é")}
    contents = {with_sorted_metadata(save(tensors, about)) for _ in range(40)}
    assert len(contents) == 1
    (content,) = contents
    (tmp_path / "x.safetensors").write_bytes(content)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == about
    assert all(torch.equal(load(content)[name], tensors[name]) for name in tensors)
