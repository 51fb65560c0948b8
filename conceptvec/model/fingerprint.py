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
ROWS = 2**14  # of a tensor at a time: a precision is changed, a device read in parts


def fingerprint(
    config: Any,
    vocabulary: Mapping[str, int],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> str:
    """SHA-256 over architecture, vocabulary and weights.

    The same in every version of transformers; of a multimodal model the text decoder alone counts.

    Args:
        config: transformers' configuration of the text decoder.
        vocabulary: token → id.
        dtype: the model's precision, in which the weights count.
        tensors: the decoder's weights, by name in rising order.
    """
    architecture = {name: getattr(config, name, None) for name in ARCHITECTURE}
    architecture["rotary"] = _rotary(config)
    about = [architecture, str(dtype), config.num_hidden_layers]
    digest = hashlib.sha256(json.dumps(about, default=str).encode())
    digest.update(json.dumps(sorted(vocabulary.items())).encode())
    for name, tensor in tensors:
        digest.update(name.encode())
        for rows in tensor.detach().split(ROWS):
            content = rows.to("cpu", dtype).contiguous()
            digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
