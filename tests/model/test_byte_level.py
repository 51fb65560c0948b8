"""A model with a byte-level tokenizer, as Llama 3, Qwen and SmolLM have: words are read as text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers

from conceptvec import Config, load_model
from conceptvec.cli import main
from conceptvec.model.vocabulary import byte_letters, masked_tokens, token_texts
from conceptvec.validation.entries import _in_top_tokens
from tests.conftest import make_hf

LETTER_OF = {byte: letter for letter, byte in byte_letters().items()}
WORDS = ["café", "dog", "狗", "собака", "naïve", *(f"w{n}" for n in range(50))]


def written(text: str) -> str:
    return "".join(LETTER_OF[byte] for byte in text.encode())


def byte_level_tokenizer() -> Any:
    """One token a word, the bytes by themselves, and half of a Chinese character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<|end|>", *LETTER_OF.values(), *(written(f" {word}") for word in WORDS)]
    tokens.append(written("狗")[:2])
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>", unk_token="<|end|>"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer = byte_level_tokenizer()
    make_hf("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    about = folder / "tokenizer_config.json"  # Llama's own class would build another tokenizer
    about.write_text(
        json.dumps(json.loads(about.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return folder


@pytest.fixture
def model(folder: Path) -> Any:
    loaded = load_model(Config(model=str(folder), device="cpu"))
    loaded.tokenizer = byte_level_tokenizer()
    return loaded


@pytest.mark.parametrize("word", WORDS[:5])
def test_find_reads_words_as_text(word: str, folder: Path, capsys) -> None:
    assert main(["find", word, "--device", "cpu", "--json", "--model", str(folder)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["results"]
    text = json.dumps(document, ensure_ascii=False)
    assert word in text
    assert "Ġ" not in text


def test_parts_of_a_character_are_masked_and_words_are_not(model: Any) -> None:
    texts = token_texts(model)
    shown = {
        text for text, hidden in zip(texts, masked_tokens(model, texts), strict=True) if not hidden
    }
    assert {f" {word}" for word in WORDS} <= shown
    assert not any("�" in text or text.startswith("<0x") for text in shown)
    assert " " not in shown


@pytest.mark.parametrize("word", WORDS[:5])
def test_answers_are_looked_for_among_decoded_words(word: str, model: Any) -> None:
    ids = [*model.encode(f" {word}"), *model.encode(" w1")]
    scan = SimpleNamespace(
        passages=SimpleNamespace(ids=np.array([0, *ids])), decode=model.tokenizer.decode
    )
    tested: Any = SimpleNamespace(positions=SimpleNamespace(of_concept=np.array([0, 1])))
    candidate: Any = SimpleNamespace(top_tokens=((f" {word}", 1.0), (" w2", 0.5)))
    assert _in_top_tokens(candidate, tested, scan) == 0.5  # type: ignore[arg-type]


def test_a_bos_that_the_tokenizer_does_not_use_is_not_put_in_front(model: Any) -> None:
    assert model.tokenizer.bos_token_id == 0
    assert 0 not in model.encode(" dog")
