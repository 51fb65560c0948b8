"""Tiny GGUF files as llama.cpp's converter writes them: names, norms and rotary order of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import make_tokenizer

NORMAL, CONTROL = 1, 3  # kinds of tokens


def save_gguf(
    hf: Any, arch: str, path: Path, kind: str = "F32", more: Callable[[Any], Any] | None = None
) -> Path:
    """Write a tiny network, in float32 or quantised; `more` adds to what is written."""
    import gguf

    config = hf.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}" if kind != "F32" else "ALL_F32"])
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    if arch == "gemma3":
        writer.add_sliding_window(config.sliding_window)

    tokens = sorted(make_tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([-float(number) for _, number in tokens])
    writer.add_token_types([CONTROL if token[0] == "<" else NORMAL for token, _ in tokens])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)

    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, parameter in hf.named_parameters():
        values = parameter.detach().float()
        if arch == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = halves_to_pairs(values, config, ".k_proj." in name)
        called = names.get_name(name.removesuffix(".weight"))
        array = values.contiguous().numpy()
        if kind != "F32" and array.ndim == 2 and array.shape[1] % 32 == 0:  # a block
            quantised = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(
                f"{called}.weight", gguf.quantize(array, quantised), raw_dtype=quantised
            )
        else:
            writer.add_tensor(f"{called}.weight", np.ascontiguousarray(array))
    if more is not None:
        more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def halves_to_pairs(values: torch.Tensor, config: Any, is_key: bool) -> torch.Tensor:
    """The rows of a head in llama.cpp's rotary order, which takes neighbours instead of halves."""
    heads = config.num_key_value_heads if is_key else config.num_attention_heads
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
    return rows.swapaxes(1, 2).reshape(values.shape)
