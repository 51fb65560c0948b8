"""What the benchmarks run on: models of real shapes with random weights, and random passages."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conceptvec.effects.passages import Passages

if TYPE_CHECKING:
    from conceptvec.model.network import Model

GEMMA_270M = {
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "vocab_size": 262_144,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 512,
}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}  # nats between two ways to one number
BOS = 2
FIRST_WORD = 10  # smaller ids are special tokens
LENGTHS = (24, 56)  # tokens of a random passage, the second not included


def random_model(
    device: str, dtype: torch.dtype, shape: Mapping[str, int] | None = None, seed: int = 0
) -> Model:
    """A Gemma 3 with random weights and no tokenizer, of the 270M's shape where none is given."""
    import transformers

    from conceptvec.model.network import FAMILIES, Model

    settings: dict[str, Any] = {**GEMMA_270M, **(shape or {})}
    kinds = [
        "full" if (i + 1) % 6 == 0 else "sliding" for i in range(settings["num_hidden_layers"])
    ]
    config = transformers.Gemma3TextConfig(
        **settings,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=settings["head_dim"],
        layer_types=[f"{kind}_attention" for kind in kinds],
    )
    torch.manual_seed(seed)
    with torch.device(device):
        hf: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    hf = hf.to(dtype).eval().requires_grad_(False)
    hf.generation_config = None  # nothing ends a text
    tokenizer = SimpleNamespace(bos_token_id=BOS, all_special_ids=[])
    family = FAMILIES["gemma3_text"]
    return Model(hf, tokenizer, "random", None, family, torch.device(device), dtype)


def random_passages(number: int, vocabulary: int, seed: int = 0) -> Passages:
    """Passages as long as those that a model writes, each a document of its own."""
    stream = np.random.default_rng([seed, 31])
    sizes = stream.integers(*LENGTHS, number)
    texts = [[BOS, *stream.integers(FIRST_WORD, vocabulary, size - 1).tolist()] for size in sizes]
    return Passages.of_lists(texts, [2] * number, range(number))


def padded(passages: Passages, members: np.ndarray) -> torch.Tensor:
    """Some passages as rows, padded on the right with 0: int64 (B, T)."""
    ids = np.zeros((len(members), int(passages.lengths[members].max())), np.int64)
    for row, number in enumerate(members):
        ids[row, : passages.lengths[number]] = passages.passage(int(number))
    return torch.from_numpy(ids)
