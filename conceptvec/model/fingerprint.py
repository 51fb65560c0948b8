"""A model's fingerprint: SHA-256 over all that decides a result, however it was read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "sliding_window",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "tie_word_embeddings",
)
PROBE = "The 3 dogs’ naïve OWNER didn't   pay 12.5 €;\n\tΚαλημέρα, 狗を飼う. e\u0301 🙂"
PROBED = 500  # words of the vocabulary that stand before it
ROWS = 2**14  # of a tensor at a time: a precision is changed, a device read in parts


def fingerprint(
    config: Any,
    vocabulary: Mapping[str, int],
    pieces: Iterable[int],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> str:
    """SHA-256 over architecture, vocabulary and weights.

    The same in every version of transformers; of a multimodal model the text decoder alone counts.

    Args:
        config: transformers' configuration of the text decoder.
        vocabulary: token → id.
        pieces: how the tokenizer cuts the `probe`.
        dtype: the model's precision, in which the weights count.
        tensors: the decoder's weights, by name in rising order.
    """
    architecture = {name: getattr(config, name, None) for name in ARCHITECTURE}
    architecture["rotary"] = _rotary(config)
    architecture["activation"] = _activation(config)
    architecture["sliding"] = _sliding_layers(config)
    about = [architecture, str(dtype), config.num_hidden_layers]
    digest = hashlib.sha256(json.dumps(about, default=str).encode())
    digest.update(json.dumps(sorted(vocabulary.items())).encode())
    digest.update(json.dumps(list(pieces)).encode())
    for name, tensor in tensors:
        digest.update(name.encode())
        for rows in tensor.detach().split(ROWS):
            content = rows.to("cpu", dtype).contiguous()
            digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def probe(vocabulary: Iterable[str]) -> str:
    """A text that tokenizers of one vocabulary cut alike where they cut all texts alike."""
    listed = sorted(vocabulary)
    return " ".join([*listed[:: max(1, len(listed) // PROBED)], PROBE])


def _activation(config: Any) -> str:
    """The MLP's activation function, which families name differently."""
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None))


def _sliding_layers(config: Any) -> list[int]:
    """The layers whose attention is local; old versions of transformers have a rule for them."""
    layers = range(config.num_hidden_layers)
    if kinds := getattr(config, "layer_types", None):
        return [layer for layer in layers if kinds[layer].startswith("sliding")]
    pattern = 2 if config.model_type == "gemma2" else getattr(config, "sliding_window_pattern", 0)
    return [layer for layer in layers if pattern and (layer + 1) % pattern]


def _rotary(config: Any) -> list[Any]:
    """Rotary base of the full layers, its factor, base of the sliding layers.

    The major versions of transformers name them differently.
    """
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if not parameters:
        scaling = getattr(config, "rope_scaling", None) or {}
        parameters = {"rope_theta": getattr(config, "rope_theta", None)} | scaling
    full = parameters.get("full_attention", parameters)
    sliding = parameters.get("sliding_attention") or {}
    local = sliding.get("rope_theta", getattr(config, "rope_local_base_freq", None))
    return [full.get("rope_theta"), full.get("factor"), local]
