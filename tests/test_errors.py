"""Bad requests and damaged files: exit 1 or 2, one short message that says what to do, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conceptvec.cli import main
from conceptvec.concepts import load_concepts
from conceptvec.errors import RequestError, RunError
from conceptvec.results import load_results
from conceptvec.scoring.lexicon import score_tokens
from tests.conftest import concepts_document, make_hf, make_tokenizer


def refused(capsys: Any, *argv: str, status: int = 2) -> str:
    """The one message of a request that ends badly."""
    assert main(list(argv)) == status
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("conceptvec: ")]
    assert len(lines) == 1 and said.err.strip().endswith(lines[0]) and said.out == ""
    assert "Traceback" not in said.err and 20 < len(lines[0]) < 900 and lines[0].isprintable()
    return lines[0]


OPTIONS = [
    (["--device", "gpu"], "expected auto, cpu, cuda, cuda:N or mps"), (["--device", "cuda:99"], "not available here"),
    (["--device", "cuda:-1"], "expected auto"), (["--device", ""], "expected auto"), (["--dtype", "float16"], "65,504"),
    (["--dtype", "int8"], "expected auto, float32, bfloat16"), (["--layers", "x"], "expected 8-20, 3,5,7 or all"),
    (["--layers", "5-3"], "expected 8-20"), (["--layers", ""], "expected 8-20"), (["--layers", "-1"], "expected"),
    (["--layers", "2,99"], "0 to 3: the model has 4 layers"), (["--max-vectors", "0"], "at least 1, or all"),
    (["--max-vectors", "1.5"], "at least 1, or all"), (["--batch-size", "0"], "at least 1"),
    (["--batch-size", "many"], "at least 1"), (["--top-k", "-4"], "expected"), (["--fold", "all"], "both, final, none"),
    (["--score-threshold", "1.1"], "0 to 1"), (["--score-threshold", "nan"], "0 to 1"),
    (["--concepts", "/no/such.json"], "no file at"), (["--corpus", "/no/such.txt"], "no file at"),
    (["--corpus", "."], "no file at"), (["--damage", "fire"], "zero, rotate, mean, noise"),
    (["--damage", "zero,zero"], "each once"), (["--damage", ""], "zero, rotate, mean, noise"), (["--seed", "-1"], "at least 0"),
    (["--seed", "1e3"], "at least 0"), (["--stages", "3"], "1, 1,2 or 1,2,3"), (["--stages", "one"], "1, 1,2 or"),
    (["--noise-sigma", "0"], "1e-09"), (["--noise-sigma", "inf"], "1e+06"), (["--corpus-tokens", "0"], "at least 1"),
    (["--noise-ratio", "2"], "unrecognized"), (["--draws", "1"], "unrecognized"), (["--nulls", "9"], "unrecognized"), (["--min-kurtosis", "x"], "a number"),
    (["--colour", "red"], "unrecognized arguments"), (["--seed"], "expected one argument"), (["extra"], "unrecognized"),
    (["--model", ""], "demo, a Hugging Face id"), (["--model", "./nothing"], "no folder at"),
    (["--model", "a/b/c"], "no folder at"), (["--model", "a b"], "no folder at"),
    (["--model", "nobody/nothing"], "not on this machine"), (["--out", "/dev/null"], "cannot be written"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "said"), OPTIONS, ids=lambda x: " ".join(x) if isinstance(x, list) else ""
)
def test_bad_options(extra: list[str], said: str, capsys, tmp_path) -> None:
    out = [] if "--out" in extra else ["--out", str(tmp_path / "run")]
    device = [] if "--device" in extra else ["--device", "cpu"]
    assert said in refused(capsys, "run", *device, *out, *extra)
    assert not (tmp_path / "run").exists()


def edited(*path: Any, to: Any = None, drop: bool = False) -> str:
    """The concepts file with one place changed."""
    document: Any = json.loads(json.dumps(concepts_document()))
    at = document
    for key in path[:-1]:
        at = at[key]
    if drop:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return json.dumps(document)


ANIMALS = ("concepts", "animals")
CONCEPTS = {
    "": "not JSON", "{": "not JSON", "[" * 100_000: "not JSON", "[]": "expected an object",
    "null": "expected an object", "{}": "'concepts' is missing", '{"concepts": {}}': "at least one concept",
    '{"concepts": [1]}': "expected an object with", edited("extra", to=1): "unknown key 'extra'",
    edited(*ANIMALS, to=3): "concepts.animals: got int", edited(*ANIMALS, "keywords", drop=True): "'keywords'",
    edited(*ANIMALS, "prompts", drop=True): "'prompts' is missing", edited(*ANIMALS, "colour", to=1): "unknown key",
    edited(*ANIMALS, "keywords", to=[]): "concepts.animals: expected at least one",
    edited(*ANIMALS, "keywords", to="dog"): "animals.keywords: got",
    edited(*ANIMALS, "keywords", to=["dog", 3]): "animals.keywords[1]: got 3",
    edited(*ANIMALS, "keywords", to=[" "]): "animals.keywords[0]", edited(*ANIMALS, "prompts", to=[]): "at least one",
    edited(*ANIMALS, "prompts", to={}): "animals.prompts: expected a list",
    edited(*ANIMALS, "prompts", 2, to="x"): "animals.prompts[2]: got str",
    edited(*ANIMALS, "prompts", 2, "answer", drop=True): "animals.prompts[2]: 'answer' is missing",
    edited(*ANIMALS, "prompts", 2, "answer", to=""): "prompts[2].answer: got ''",
    edited(*ANIMALS, "prompts", 0, "prompt", to=5): "prompts[0].prompt: got 5",
    edited(*ANIMALS, "prompts", 0, "prompt", to="\ud800"): "prompts[0].prompt",
    edited("concepts", "none", to={"keywords": ["a"], "prompts": None}): "reserved",
    edited("concepts", "", to={"keywords": ["a"], "prompts": None}): "reserved or empty",
    edited("neutral_prompts", to=[]): "neutral_prompts: expected a list", edited("neutral_prompts", to=1): "expected",
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), CONCEPTS.items(), ids=range(len(CONCEPTS)))
def test_bad_concepts_files(text: str, said: str, capsys, tmp_path) -> None:
    file = tmp_path / "concepts.json"
    file.write_text(text)
    found = refused(
        capsys, "run", "--device", "cpu", "--concepts", str(file), "--out", str(tmp_path / "run")
    )
    assert said in found and str(file) in found
    assert not (tmp_path / "run").exists() and file.read_text() == text


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\xef\xbb\xbf", b"\n\n \n"])
def test_unreadable_text(content: bytes, capsys, tmp_path) -> None:
    file = tmp_path / "text"
    file.write_bytes(content)
    assert str(file) in refused(capsys, "run", "--device", "cpu", "--concepts", str(file))
    argv = [
        "run",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
        "--corpus",
        str(file),
    ]
    said = refused(capsys, *argv)
    assert str(file) in said or "holds no text" in said


def config_json(**changes: Any) -> Callable[[Path], None]:
    """Change fields of config.json."""

    def spoil(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(document | changes))

    return spoil


def replace(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Replace or remove a file."""
    return lambda folder: (
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    )  # type: ignore[return-value]


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


def sharded(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    for i, part in enumerate((names[::2], names[1::2])):
        save_file(
            {n: weights[n] for n in part}, folder / f"model-{i}.safetensors", {"format": "pt"}
        )
    where = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


def lost_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-1.safetensors").unlink()


def outside(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../../etc/passwd"}}'
    )


def weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the tensors of the checkpoint."""

    def spoil(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DOWN, EMBED, NORM = (
    "model.layers.1.mlp.down_proj.weight",
    "model.embed_tokens.weight",
    "model.norm.weight",
)
MODELS = {
    "no config": (replace("config.json", None), "no config.json"), "bad config": (replace("config.json", b"{"), "JSON"),
    "list config": (replace("config.json", b"[1]"), "holds a list"),
    "binary config": (replace("config.json", b"\xff\x00"), "JSON"),
    "gpt2": (config_json(model_type="gpt2"), "'gpt2'; supported: gemma3, gemma3_text, gemma2, llama"),
    "gemma3n": (config_json(model_type="gemma3n"), "'gemma3n'; supported"),
    "phi3": (config_json(model_type="phi3"), "'phi3'; supported"),
    "own code": (config_json(model_type="evil", auto_map={"AutoConfig": "evil.E"}), "'evil'; supported"),
    "no type": (config_json(model_type=None), "family None"), "list type": (config_json(model_type=[1]), "family [1]"),
    "quantised": (config_json(quantization_config={"bits": 4}), "quantised"),
    "text for hidden size": (config_json(hidden_size="big"), "config.json"),
    "negative layers": (config_json(num_hidden_layers=-2), "config.json"),
    "no such activation": (config_json(hidden_activation="magic"), "could not be loaded"),
    "more layers": (config_json(num_hidden_layers=5, layer_types=["full_attention"] * 5), "weights are missing"),
    "wider MLP": (config_json(intermediate_size=48), "fetch"),
    "no tokenizer": (replace("tokenizer.json", None), "no tokenizer.json"),
    "bad tokenizer": (replace("tokenizer.json", b"{}"), "could not be loaded"),
    "empty tokenizer": (replace("tokenizer.json", b""), "could not be loaded"),
    "bad tokenizer config": (replace("tokenizer_config.json", b"{"), "could not be loaded"),
    "no weights": (replace("model.safetensors", None), "no model.safetensors"),
    "empty weights": (replace("model.safetensors", b""), "is damaged"), "cut weights": (cut, "is damaged"),
    "text as weights": (replace("model.safetensors", b"hello world, this is text"), "is damaged"),
    "pickle": (pickled, "pickle"), "lost shard": (lost_shard, "lacks model-1.safetensors"),
    "shard outside": (outside, "no usable weight_map"),
    "missing weight": (weights(lambda t: t.pop(DOWN)), "1 weights are missing"),
    "wrong size": (weights(lambda t: t.update({DOWN: t[DOWN][:, :5].copy()})), "fetch them again"),
    "no readout": (config_json(tie_word_embeddings=False), "lm_head.weight"),
    "fewer tokens": (weights(lambda t: t.update({EMBED: t[EMBED][:-9].copy()})), "fetch them again"),
    "short norm": (weights(lambda t: t.update({NORM: t[NORM][:7].copy()})), "fetch them again"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_hf().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings(
    "ignore"
)  # transformers warns about some of these files before it fails
@pytest.mark.parametrize(
    "stages", ["1", "1,2"]
)  # the first streams the weights, the second loads the model
@pytest.mark.parametrize("name", MODELS)
def test_bad_models(
    name: str, stages: str, model_folder: Path, capsys, tmp_path, monkeypatch
) -> None:
    if name == "no such activation" and stages != "1,2,3":
        pytest.skip("nothing is activated where only weights are read")
    spoil, said = MODELS[name]
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    spoil(folder)
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    argv = [
        "run",
        "--device",
        "cpu",
        "--stages",
        stages,
        "--model",
        str(folder),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(argv) == 2
    err = capsys.readouterr().err
    message = err.splitlines()[-1]
    assert (
        message.startswith("conceptvec: --model: ") and said in message and "Traceback" not in err
    ), err
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == before
    )  # no run folder, and no pickle was opened


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("tensor", "said"), [("mlp.down_proj", "layer 1"), ("embed_tokens", "unembedding")]
)
@pytest.mark.parametrize(
    "command", [["run", "--stages", "1"], ["run", "--stages", "1,2"], ["find", "dog"]]
)
def test_weights_that_are_no_numbers(
    command, tensor, said, number, model_folder: Path, capsys, tmp_path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors[next(k for k in tensors if tensor in k and ".0." not in k)][20, 5] = number
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    out = ["--out", str(tmp_path / "run")] if command[0] == "run" else []
    assert main([*command, "--device", "cpu", "--model", str(folder), *out]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("conceptvec: NaN or infinity in") and said in message


def test_a_sound_copy_and_shards_are_loaded(model_folder: Path, tmp_path) -> None:
    from conceptvec import Config, load_model

    whole = load_model(Config(model=str(model_folder), device="cpu"))
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    sharded(folder)
    assert load_model(Config(model=str(folder), device="cpu")).fingerprint == whole.fingerprint
    config_json(rope_local_base_freq=77.0, rope_parameters=None)(folder)
    assert load_model(Config(model=str(folder), device="cpu")).fingerprint != whole.fingerprint


RESULTS = [
    "",
    "{",
    "[]",
    "null",
    '"text"',
    "{}",
    '{"schema_version": 2}',
    "NaN",
    '{"schema_version": NaN}',
    "[" * 99_999,
]


@pytest.mark.parametrize("text", RESULTS, ids=range(len(RESULTS)))
def test_bad_results_files(text: str, capsys, tmp_path) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    assert str(file) in refused(capsys, "show", str(file))


def test_other_commands(capsys, tmp_path) -> None:
    assert "found 0 results files" in refused(capsys, "show", str(tmp_path))
    assert "no such file" in refused(capsys, "show", "/no/such/file").lower()
    assert "invalid choice" in refused(capsys, "fly")
    assert "required" in refused(capsys, "score-tokens")
    assert "required" in refused(capsys, "show")
    assert "no/such.json" in refused(capsys, "score-tokens", "dog", "--concepts", "no/such.json")
    assert "expected auto" in refused(capsys, "selfcheck", "--device", "gpu")
    assert "65,504" in refused(capsys, "selfcheck", "--dtype", "fp16")


def run_python(*argv: str, **more: Any) -> subprocess.CompletedProcess:
    """A real process in which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", *argv], capture_output=True, timeout=120, **more
    )


@pytest.mark.whole
def test_real_processes() -> None:
    """Light requests import no torch, bad ones end in one line, and closed or full outputs are no crash."""
    light = "import sys, conceptvec; from conceptvec.cli import main; code = main({}); " \
        "assert not {{'torch', 'transformers'}} & set(sys.modules); sys.exit(code)"  # fmt: skip
    assert run_python("-c", light.format([])).returncode == 0
    bad = run_python("-c", light.format(["run", "--dtype", "float16"]))
    assert bad.returncode == 2 and bad.stderr.count(b"\n") == 1
    version = run_python("-m", "conceptvec", "--version")
    assert version.returncode == 0 and version.stdout.startswith(b"conceptvec ")
    odd = [b"caf\xe9", "狗".encode(), b" dog", b"\x1b[31m"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    found = run_python("-m", "conceptvec", "score-tokens", "--json", *odd, env=ascii_only)  # type: ignore[arg-type]
    assert (
        found.returncode == 0
        and json.loads(found.stdout)["concept"]
        and b"\x1b" not in found.stdout
    )
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "conceptvec", "score-tokens", "dog"]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert (
            done.returncode == 1
            and b"No space left" in done.stderr
            and b"Traceback" not in done.stderr
        )


def test_control_characters_stay_out_of_the_terminal(capsys) -> None:
    assert main(["score-tokens", "\x1b]0;owned\x07", "dog\u202e", "cat\u2028"]) == 0
    assert not set("\x1b\x07\u202e\u2028") & set(capsys.readouterr().out)
    assert "\x1b" not in refused(capsys, "run", "--layers", "\x1b[2J\n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["concepts", "keywords", "prompts", "prompt", "answer", "neutral_prompts"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refused(read: Callable[[], Any]) -> None:
    try:
        read()
    except RequestError as error:
        assert len(str(error)) > 20


@QUIET
@given(document=JSON, text=st.binary(max_size=40), which=st.booleans())
def test_fuzzed_files(document: Any, text: bytes, which: bool, tmp_path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(text if which else json.dumps(document).encode())
    read_or_refused(lambda: load_concepts(str(file)))
    read_or_refused(lambda: load_results(file))


@QUIET
@given(data=st.data())
def test_fuzzed_places_in_a_concepts_file(data, tmp_path) -> None:
    """Replace any place of a sound file by anything."""
    document: Any = json.loads(json.dumps(concepts_document()))
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        key = data.draw(st.sampled_from(list(keys)))
        if not at[key] or not isinstance(at[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            break
        at = at[key]
    at[key] = data.draw(JSON)
    file = tmp_path / "c.json"
    file.write_text(json.dumps(document))
    read_or_refused(lambda: load_concepts(str(file)))


@QUIET
@given(
    tokens=st.lists(
        st.text(max_size=12) | st.sampled_from([" dog", "▁cats", "1", "狗", "\u0301", "İ"]),
        max_size=60,
    )
)
def test_fuzzed_token_lists(tokens: list[str], tmp_path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(concepts_document()))
    found = score_tokens(tokens, str(file))
    assert 0 <= found["score"] <= 1 and json.dumps(found, allow_nan=False)


@pytest.mark.whole
def test_a_filter_that_nothing_passes(tmp_path) -> None:
    argv = [
        "run",
        "--device",
        "cpu",
        "--layers",
        "3",
        "--min-kurtosis",
        "1000",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(argv) == 0
    stats = load_results(tmp_path / "r")["pipeline_stats"]
    assert (
        stats["filtered_candidates"],
        stats["concept_candidates"],
        stats["validated_vectors"],
    ) == (0, 0, 0)


@pytest.mark.whole
def test_find_in_a_run_reads_only_sound_listed_layers(tmp_path, capsys) -> None:
    out = str(tmp_path / "r")
    argv = [
        "run",
        "--device",
        "cpu",
        "--stages",
        "1",
        "--max-vectors",
        "all",
        "--top-k",
        "4000",
        "--out",
        out,
    ]
    assert main([*argv, "--seed", str(2**64)]) == 0
    find = ["find", "dog", "--device", "cpu", "--json"]
    capsys.readouterr()
    assert main([*find, "--run", out]) == 0
    kept = json.loads(capsys.readouterr().out)["results"]
    assert main(find) == 0
    assert {f["id"] for f in kept[:5]} == {
        f["id"] for f in json.loads(capsys.readouterr().out)["results"][:5]
    }
    assert main([*find, "--run", out, "--layers", "1"]) == 0
    assert {f["layer"] for f in json.loads(capsys.readouterr().out)["results"]} == {1}
    assert "the model has 4 layers" in refused(capsys, *find, "--run", out, "--layers", "9")
    layer = tmp_path / "r/projections/layer_02.safetensors"
    layer.write_bytes(layer.read_bytes()[:-1])
    assert "layer_02.safetensors is damaged" in refused(capsys, *find, "--run", out)
    (tmp_path / "r/manifest.json").write_text("{}")
    assert "not written by conceptvec" in refused(capsys, *find, "--run", out)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([("The dog", " barks")] * 2, "prompts[1]: the same as [0]"),
        ([("dog " * 200, " barks")], "at most 128"),
    ],
)
def test_prompts_that_cannot_serve(prompts, said, tmp_path, capsys) -> None:
    document = concepts_document()
    document["concepts"]["animals"]["prompts"] = [{"prompt": p, "answer": a} for p, a in prompts]
    (tmp_path / "c.json").write_text(json.dumps(document))
    assert main(["prompts", "--device", "cpu", "--concepts", str(tmp_path / "c.json")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--corpus", "corpus.txt"], ["--chat-template"]])
def test_refused_before_anything_is_written(options, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_bytes(b"Sound text.\n" * 9 + b"\xff\xfe\n")
    assert main(["run", "--device", "cpu", *options, "--out", "r"]) == 2
    assert not Path("r").exists() and "Traceback" not in capsys.readouterr().err


@pytest.mark.whole
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_output_is_no_error(options) -> None:
    command = " ".join(
        [sys.executable, "-m", "conceptvec", "score-tokens", *options, "dog", "cat", ">&-"]
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_types_of_the_configuration(tmp_path) -> None:
    from conceptvec import Config

    (tmp_path / "birds.txt").write_text("robin\neagle")
    config = Config(concepts=tmp_path / "birds.txt", out=tmp_path / "r", model=tmp_path)  # type: ignore[arg-type]
    assert config.out == str(tmp_path / "r") and json.dumps(config.resolved())
    bad = [("out", 5), ("revision", 5), ("concepts", {}), ("overwrite", "no"), ("chat_template", 1),
           ("concepts", "a" * 5000), ("corpus", 3)]  # fmt: skip
    for name, value in bad:
        with pytest.raises(RequestError, match=name.replace("_", "-")):
            Config(**{name: value})  # type: ignore[arg-type]


def test_tokens_of_other_types() -> None:
    assert score_tokens(t for t in ("dog", "cat", "horse", "cow"))["concept"] == "animals"
    assert score_tokens("dog") == score_tokens(["dog"])
    for tokens in ([1], ["dog", None]):
        with pytest.raises(RequestError, match="expected text"):
            score_tokens(tokens)  # type: ignore[list-item]


@pytest.mark.parametrize("kind", [RequestError, RunError])
def test_errors_show_their_message_alone_in_a_cell(kind: Any) -> None:
    assert kind("do that")._render_traceback_() == [f"{kind.__name__}: do that"]


@pytest.mark.parametrize("cleared", [False, True])
def test_the_line_to_go_on_after_overwrite(cleared: bool, tmp_path, monkeypatch, capsys) -> None:
    """Before the old run was cleared the word stays; behind it, it would clear the new one."""

    def interrupted(*_, **__) -> None:
        raise KeyboardInterrupt

    at = "conceptvec.pipeline." + ("save_run" if cleared else "preflight")
    monkeypatch.setattr(at, interrupted)
    argv = ["run", "--device", "cpu", "--layers", "0", "--max-vectors", "3", "--stages", "1"]
    assert main([*argv, "--out", str(tmp_path / "r"), "--overwrite"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "Resume: conceptvec run" in last
    assert ("--overwrite" in last) is not cleared


@pytest.mark.whole
@pytest.mark.parametrize("tokens", ["1", "30", "400"])
def test_too_little_text_is_no_error(tokens: str, tmp_path, capsys) -> None:
    """Also where the text holds no word of a candidate's concept: then nothing is repeated."""
    argv = ["run", "--device", "cpu", "--layers", "3", "--max-vectors", "8", "--json"]
    assert main([*argv, "--corpus-tokens", tokens, "--out", str(tmp_path / "r")]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["validation_results"]
    assert set(results["verdicts"]) <= {"inconclusive", "inactive"}


@pytest.mark.whole
def test_a_bar_that_is_found_half_made_says_nothing() -> None:
    """Tqdm before 4.67 fails in its own `__del__` where an interruption comes while it is made."""
    half_made = (
        "import conceptvec.cli as cli; cli.main(['score-tokens', 'dog', 'cat', 'owl'])\n"
        "class tqdm:\n"
        "    def __del__(self): raise AttributeError('disable')\n"
        "class other:\n"
        "    def __del__(self): raise ValueError('heard')\n"
        "tqdm(); other()\n"
    )
    done = run_python("-c", half_made)
    said = done.stderr.decode()
    assert "disable" not in said
    assert "heard" in said
