"""Tiny models of every family: random weights, a word-level tokenizer, no download."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs one process per core

import pytest
import torch
import transformers

from conceptvec import Config
from conceptvec.model.checkpoint import FAMILIES
from conceptvec.model.network import Model

# The families that this version of transformers knows; 4.50 has no Qwen 3.
KNOWN = [
    family
    for family in FAMILIES
    if family in transformers.models.auto.configuration_auto.CONFIG_MAPPING
]
WORDS = [f"w{i}" for i in range(200)]
ANIMALS = [
    "dog",
    "cat",
    "horse",
    "cow",
    "sheep",
    "goat",
    "lion",
    "fox",
    "wolf",
    "rabbit",
    "monkey",
    "elephant",
]
COLORS = [
    "red",
    "blue",
    "green",
    "yellow",
    "purple",
    "brown",
    "black",
    "white",
    "pink",
    "gray",
    "violet",
    "beige",
]
OTHERS = {  # words of built-in concepts that a run's own are compared with
    "food": "meal recipe snack breakfast dinner supper dessert picnic barbecue banquet brunch",
    "body": "torso skull scalp forehead eyebrow eyelid cornea retina nose earlobe limb",
    "time": "hour week month weekend fortnight duration timeline day minutes weekday timing",
    "science": "scientist laboratory hypothesis theorem physics researcher relativity physicist",
    "emotions": "happy joyful cheerful delighted elated euphoria jubilant glad gleeful unhappy",
}
OTHER_WORDS = [word for words in OTHERS.values() for word in words.split()]
SPECIAL = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<unused0>",
    "<unused1>",
    "<0x00>",
    "<0x41>",
]


def make_tokenizer() -> Any:
    """One token per word, ▁ before it, Gemma's special tokens first."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {
        w: i
        for i, w in enumerate(
            SPECIAL + ["▁" + w for w in [*WORDS, *ANIMALS, *COLORS, "zoo", "paint", *OTHER_WORDS]]
        )
    }
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        mask_token="<mask>",
    )  # fmt: skip


CONFIGURATIONS = {
    "gemma3_text": "Gemma3TextConfig",
    "gemma2": "Gemma2Config",
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
}


def make_hf(family: str = "gemma3_text", layers: int = 4, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model of a family; Gemma 3 has sliding and full layers."""
    options: dict[str, Any] = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": True,
    }
    if family.startswith("gemma"):
        options["sliding_window"] = 4
        options["query_pre_attn_scalar"] = 8
        options["hidden_activation"] = "gelu_pytorch_tanh"
    if family == "gemma3_text":
        kinds = ("sliding_attention", "full_attention")
        options["layer_types"] = [kinds[layer % 2] for layer in range(layers)]
    torch.manual_seed(seed)
    hf = _multimodal(options) if family == "gemma3" else _text(family, options | changes)
    if hasattr(hf, "set_attn_implementation"):
        hf.set_attn_implementation("eager")
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "norm" in name:  # norm weights that matter, instead of all zeros or ones
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return hf.float().eval()


def _text(family: str, options: dict[str, Any]) -> Any:
    name = CONFIGURATIONS[family]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = getattr(transformers, name)(**options)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def _multimodal(options: dict[str, Any]) -> Any:
    """A Gemma 3 with a vision tower."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = transformers.Gemma3TextConfig(**options).to_dict()
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def wrap(hf: Any, family: str = "gemma3_text") -> Model:
    """The model as the package sees it."""
    return Model(
        hf, make_tokenizer(), "tiny", None, FAMILIES[family], torch.device("cpu"), torch.float32
    )


def save(hf: Any, folder: Path, **options: Any) -> None:
    """Save a network and the tokenizer as a model folder."""
    hf.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)


@pytest.fixture(autouse=True)
def loud() -> None:
    """The command line silences all but the first of several processes; a test begins with talk."""
    logging.getLogger("conceptvec").setLevel(logging.INFO)


@pytest.fixture
def tiny() -> Model:
    """A tiny random Gemma 3."""
    return wrap(make_hf())


@pytest.fixture
def tiny_of() -> Callable[[str], Model]:
    """A tiny random model of any family."""
    return lambda family: wrap(make_hf(family), family)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A tiny random Gemma 3 saved as a local folder."""
    folder = tmp_path / "tiny"
    make_hf().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def config() -> Config:
    """A quick configuration on the CPU."""
    return Config(device="cpu", top_k=10, batch_size=7)


def corpus_text(lines: int = 240) -> str:
    """Lines in the tiny tokenizer's words: animals behind *zoo*, colors behind *paint*, and others."""
    listed = []
    for i in range(lines):
        start = " ".join(WORDS[(k * i) % 200] for k in (1, 7, 3, 9, 17, 19))
        ends = [f"zoo {ANIMALS[i // 5 % 12]}", f"paint {COLORS[i // 5 % 12]}"]
        ends += [f"zoo {WORDS[(5 * i) % 200]}", f"paint {WORDS[(11 * i) % 200]}"]
        ends.append(f"w1 {OTHER_WORDS[i // 5 % len(OTHER_WORDS)]}")
        listed.append(f"{start} {ends[i % 5]} {WORDS[(13 * i) % 200]}")
    return "\n".join(listed)


def concepts_document() -> dict[str, Any]:
    """Two concepts in the words of the tiny tokenizer."""

    def prompts(cue: str, answers: list[str]) -> list[dict[str, str]]:
        return [
            {"prompt": f"w{i} w{i + 1} {cue}", "answer": " " + answers[i % 12]} for i in range(26)
        ]

    return {
        "concepts": {
            "animals": {"keywords": ANIMALS, "prompts": prompts("zoo", ANIMALS)},
            "colors": {"keywords": COLORS, "prompts": prompts("paint", COLORS)},
        },
        "neutral_prompts": [
            {"prompt": f"w{i} w{i + 3}", "answer": f" w{i + 7}"} for i in range(60)
        ],
    }


@pytest.fixture
def small(tmp_path: Path) -> Config:
    """A configuration with two concepts in the tiny tokenizer's words and two lines of text."""
    concepts, corpus = tmp_path / "concepts.json", tmp_path / "corpus.txt"
    concepts.write_text(json.dumps(concepts_document()))
    corpus.write_text("w1 w2 w3 dog w4\nw5 w6 red w7")
    return Config(device="cpu", top_k=10, concepts=str(concepts), corpus=str(corpus))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: Any) -> list[str]:
    """The arguments of a quick but complete run: tiny random Gemma 3, two concepts, a text file."""
    folder = tmp_path_factory.mktemp("tiny_run")
    make_hf().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "concepts.json").write_text(json.dumps(concepts_document()))
    (folder / "corpus.txt").write_text(corpus_text())
    return [
        "run", "--device", "cpu", "--model", str(folder / "model"), "--concepts", str(folder / "concepts.json"),
        "--corpus", str(folder / "corpus.txt"), "--top-k", "10", "--score-threshold", "0.05",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def two_layers(tiny_run: list[str], tmp_path_factory: Any) -> Path:
    """The folder of a finished run of two layers; tests only read it, or write its report."""
    from conceptvec.cli import main

    folder = tmp_path_factory.mktemp("two_layers") / "run"
    assert main([*tiny_run, "--layers", "1,2", "--out", str(folder)]) == 0
    return folder


# What takes a second or more, by what a test uses and by its file; others bear the mark themselves.
WHOLE_FIXTURES = {"tiny_run", "two_layers", "finished", "hub"}
WHOLE_FILES = {
    "test_calibrate.py",
    "test_damage.py",
    "test_errors.py",
    "test_export.py",
    "test_figures.py",
    "test_foreign_files.py",
    "test_gradients.py",
    "test_notebooks.py",
    "test_one_reader.py",
    "test_one_truth.py",
    "test_pictures.py",
    "test_pipeline.py",
    "test_planted.py",
    "test_projection.py",
    "test_report.py",
    "test_stage_fuzz.py",
    "test_weights.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test: all that are not `whole` or `slow` are `fast`."""
    for item in items:
        uses = WHOLE_FIXTURES & set(getattr(item, "fixturenames", ()))
        if uses or item.path.name in WHOLE_FILES:
            item.add_marker("whole")
        if not any(item.get_closest_marker(name) for name in ("whole", "slow")):
            item.add_marker("fast")
