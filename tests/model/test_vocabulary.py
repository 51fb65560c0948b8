"""How tokens are written: ▁, byte-level alphabets, and what cannot be shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conceptvec.model.vocabulary import byte_letters, is_byte_level, masked_tokens, token_texts

LETTER_OF = {byte: letter for letter, byte in byte_letters().items()}


def written(text: bytes) -> str:
    """Bytes as a byte-level tokenizer writes them."""
    return "".join(LETTER_OF[byte] for byte in text)


TEXTS = [" the", " café", "狗", " собака", "\n", "ing", " naïve", "🐶"]
TOKENS = [written(text.encode()) for text in TEXTS]


def model_of(tokens: list[str]) -> Any:
    """What `token_texts` and `masked_tokens` read of a model."""
    tokenizer = SimpleNamespace(
        get_vocab=lambda: {token: number for number, token in enumerate(tokens)},
        all_special_ids=[],
        __len__=lambda: len(tokens),
    )
    kind = type("Tokenizer", (), {"__len__": lambda self: len(tokens)})
    own = kind()
    own.__dict__.update({k: v for k, v in vars(tokenizer).items() if k != "__len__"})
    rows = torch.randn(len(tokens), 4, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(tokenizer=own, vocab_size=len(tokens), unembedding=rows, name="tiny")


def test_the_alphabet_writes_every_byte_by_one_letter() -> None:
    assert sorted(byte_letters().values()) == list(range(256))


@pytest.mark.parametrize(("byte", "letter"), [(0x20, "Ġ"), (0x0A, "Ċ"), (0x41, "A"), (0xE9, "é")])
def test_the_alphabet_is_gpt_2_s(byte: int, letter: str) -> None:
    assert LETTER_OF[byte] == letter


def test_byte_level_tokens_are_decoded() -> None:
    assert token_texts(model_of(TOKENS)) == TEXTS


def test_half_a_letter_is_no_text_and_is_masked() -> None:
    tokens = [*TOKENS, written("狗".encode()[:2])]
    model = model_of(tokens)
    texts = token_texts(model)
    assert texts[-1] == "<0xE7><0x8B>"
    assert masked_tokens(model, texts).tolist()[-1] is True


def test_special_tokens_stay_as_they_are() -> None:
    assert token_texts(model_of([*TOKENS, "<|im_start|>"]))[-1] == "<|im_start|>"


def test_gemma_s_tokens_keep_their_letters() -> None:
    assert token_texts(model_of(["▁the", "Ġ", "▁café", "é"])) == [" the", "Ġ", " café", "é"]


def test_which_alphabet_it_is_is_told_by_the_spaces() -> None:
    assert is_byte_level(["Ġa", "Ġb", "▁c"])
    assert not is_byte_level(["▁a", "▁b", "Ġc"])


class Fake:
    """A tokenizer of given ids, with added tokens."""

    def __init__(self, ids: dict[str, int], added: dict[int, tuple[str, bool]]) -> None:
        self.ids, self.all_special_ids = ids, [n for n, (_, special) in added.items() if special]
        self.added_tokens_decoder = {
            n: SimpleNamespace(content=text, special=special)
            for n, (text, special) in added.items()
        }

    def get_vocab(self) -> dict[str, int]:
        return self.ids

    def __len__(self) -> int:
        return len(self.ids)


def around(tokenizer: Fake, size: int) -> Any:
    rows = torch.randn(size, 4, generator=torch.Generator().manual_seed(0)) + 3
    return SimpleNamespace(tokenizer=tokenizer, vocab_size=size, unembedding=rows, name="tiny")


def test_ids_with_holes_keep_their_last_tokens() -> None:
    ids = {f"▁w{n}": n for n in range(100) if not 20 <= n < 60}
    model = around(Fake(ids, {}), 100)
    texts = token_texts(model)
    assert texts[99] == " w99"
    assert masked_tokens(model, texts).nonzero().flatten().tolist() == list(range(20, 60))


def test_tokens_beyond_the_matrix_are_left_out() -> None:
    assert token_texts(around(Fake({"▁a": 0, "▁b": 7}, {}), 2)) == [" a", ""]


@pytest.mark.parametrize(
    ("text", "special", "is_masked"),
    [
        ("zebrafish", False, False),
        ("New York", False, False),
        ("café", False, False),
        ("<table>", False, True),
        ("[multimodal]", False, True),
        ("\n\n", False, True),
        ("zebrafish", True, True),
    ],
)
@pytest.mark.parametrize("space", ["▁", "Ġ"])
def test_added_tokens_are_words_unless_they_are_special(
    text: str, special: bool, is_masked: bool, space: str
) -> None:
    """Also in a byte-level vocabulary, where added tokens stand as plain text."""
    ids = {f"{space}w{n}": n for n in range(9)} | {text: 9}
    model = around(Fake(ids, {9: (text, special)}), 12)
    texts = token_texts(model)
    assert texts[9] == text
    mask = masked_tokens(model, texts).tolist()
    assert mask[9] is is_masked
    assert mask[10:] == [True, True]
    assert not any(mask[:9])


def test_pieces_of_added_words_in_a_byte_level_vocabulary() -> None:
    from conceptvec.effects.target_words import token_pieces

    ids = {f"Ġw{n}": n for n in range(9)} | {"café": 9, written(" café".encode()): 11}
    pieces = token_pieces(Fake(ids, {9: ("café", False)}), 13)
    assert pieces[9:] == ["café", "", " café", ""]
