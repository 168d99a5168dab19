"""The tensors and numbers that llama.cpp expects of each architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hf_stages.packing.formats._gguf_writing import TensorWriter
from hf_stages.packing.formats.model_weights import Array, WeightReader


def rope_order(rows: int, heads: int) -> Array:
    """Return the order of queries' and keys' rows for llama.cpp, whose RoPE rotates neighbours in a head.

    transformers rotates pairs of one row from each half of a head.

    >>> rope_order(8, 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def write_llama(reader: WeightReader, tensors: TensorWriter, pooling: None) -> None:
    model, config, writer = reader.model.model, reader.model.config, tensors.writer
    attention = model.layers[0].self_attn
    width = attention.head_dim
    heads, of_keys = attention.q_proj.out_features // width, attention.k_proj.out_features // width
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"Gguf: hidden_act: expected silu, as llama.cpp computes it, got {config.hidden_act!r}")
    _common(reader, tensors, len(model.layers), model.layers[0].mlp.up_proj.out_features, heads, width)
    writer.add_head_count_kv(of_keys)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    factors = _rope_factors(model.rotary_emb, config, width)
    if factors is not None:
        tensors.vector("rope_freqs.weight", factors)
    tensors.matrix("token_embd.weight", reader.weight("model.embed_tokens"))
    for i, layer in enumerate(model.layers):
        own, name = f"model.layers.{i}", f"blk.{i}"
        rows = layer.self_attn.q_proj.out_features, layer.self_attn.k_proj.out_features
        tensors.norm(reader, f"{own}.input_layernorm", f"{name}.attn_norm", bias=False)
        tensors.linear(reader, f"{own}.self_attn.q_proj", f"{name}.attn_q", rope_order(rows[0], heads))
        tensors.linear(reader, f"{own}.self_attn.k_proj", f"{name}.attn_k", rope_order(rows[1], of_keys))
        tensors.linear(reader, f"{own}.self_attn.v_proj", f"{name}.attn_v")
        tensors.linear(reader, f"{own}.self_attn.o_proj", f"{name}.attn_output")
        tensors.norm(reader, f"{own}.post_attention_layernorm", f"{name}.ffn_norm", bias=False)
        for part in ("gate", "up", "down"):
            tensors.linear(reader, f"{own}.mlp.{part}_proj", f"{name}.ffn_{part}")
    tensors.norm(reader, "model.norm", "output_norm", bias=False)
    if not config.tie_word_embeddings:  # else llama.cpp uses token_embd
        tensors.linear(reader, "lm_head", "output")


def _rope_factors(rotary: Any, config: Any, width: int) -> Array | None:
    """Return the factors by which frequencies are lower than RoPE's own, for any fixed scaling (linear, Llama 3)."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"Gguf: rope_parameters: expected rope_type default, linear or llama3, got {kind!r}")
    base = config.rope_parameters["rope_theta"]
    plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    found = (plain / rotary.inv_freq.float()).numpy()
    return None if kind == "default" else found


def write_bert(reader: WeightReader, tensors: TensorWriter, pooling: str | None) -> None:
    import gguf

    classifies = type(reader.model).__name__ != "BertModel"
    prefix = "bert." if classifies else ""
    model, config, writer = reader.model.base_model, reader.model.config, tensors.writer
    attention = model.encoder.layer[0].attention.self
    heads, width = attention.num_attention_heads, attention.attention_head_size
    _check_bert(config, heads * width)
    pooling = pooling or ("rank" if classifies else "none")
    if pooling == "rank" and not classifies:
        raise ValueError(
            "Gguf: pooling: 'rank' reads a classifier's head, and a BertModel has none; choose another one"
        )
    _common(
        reader, tensors, len(model.encoder.layer), model.encoder.layer[0].intermediate.dense.out_features, heads, width
    )
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_pooling_type(gguf.PoolingType[pooling.upper()])
    tensors.matrix("token_embd.weight", reader.weight(f"{prefix}embeddings.word_embeddings"))
    # They are added to activations, which are float32.
    for name, own in (("token_types", "token_type_embeddings"), ("position_embd", "position_embeddings")):
        table = reader.weight(f"{prefix}embeddings.{own}")
        tensors.vector(f"{name}.weight", table if isinstance(table, np.ndarray) else table.dense())
    tensors.norm(reader, f"{prefix}embeddings.LayerNorm", "token_embd_norm")
    for i in range(len(model.encoder.layer)):
        own, name = f"{prefix}encoder.layer.{i}", f"blk.{i}"
        for short, part in (("q", "query"), ("k", "key"), ("v", "value")):
            tensors.linear(reader, f"{own}.attention.self.{part}", f"{name}.attn_{short}")
        tensors.linear(reader, f"{own}.attention.output.dense", f"{name}.attn_output")
        tensors.norm(reader, f"{own}.attention.output.LayerNorm", f"{name}.attn_output_norm")
        tensors.linear(reader, f"{own}.intermediate.dense", f"{name}.ffn_up")
        tensors.linear(reader, f"{own}.output.dense", f"{name}.ffn_down")
        tensors.norm(reader, f"{own}.output.LayerNorm", f"{name}.layer_output_norm")
    if classifies:
        # llama.cpp's classifier is a layer, tanh, and a layer; the first is BERT's pooler.
        tensors.linear(reader, "bert.pooler.dense", "cls")
        tensors.linear(reader, "classifier", "cls.output")
        writer.add_classifier_output_labels([config.id2label[i] for i in range(config.num_labels)])
        tensors.notes.append("llama.cpp takes every token for one of the first sentence (token type 0), also in pairs")
    elif model.pooler is not None:
        reader.skip("pooler")
        tensors.notes.append("the pooler is left out: llama.cpp pools token embeddings by itself")


def _check_bert(config: Any, heads: int) -> None:
    if config.hidden_act not in ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        raise ValueError(f"Gguf: hidden_act: expected gelu, as llama.cpp computes it, got {config.hidden_act!r}")
    if heads != config.hidden_size:
        raise ValueError(
            f"Gguf: expected attention heads that make up the hidden size of {config.hidden_size}, got {heads} "
            "(ReduceWidth took some); llama.cpp knows no such BERT"
        )
    if config.is_decoder:
        raise ValueError("Gguf: expected an encoder, got is_decoder=True")


def _common(reader: WeightReader, tensors: TensorWriter, layers: int, neurons: int, heads: int, width: int) -> None:
    config, writer = reader.model.config, tensors.writer
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(neurons)
    writer.add_head_count(heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(reader.model.get_input_embeddings().num_embeddings)


ARCHITECTURES: dict[str, tuple[str, Callable[[WeightReader, TensorWriter, Any], None]]] = {
    "LlamaForCausalLM": ("llama", write_llama),
    "BertModel": ("bert", write_bert),
    "BertForSequenceClassification": ("bert", write_bert),
}
