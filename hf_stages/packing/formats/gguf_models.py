"""Which tensors and numbers llama.cpp expects of an architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hf_stages.packing.formats._gguf_writing import Writing
from hf_stages.packing.formats.model_weights import Array, Source


def rope_order(rows: int, heads: int) -> Array:
    """Queries' and keys' rows as llama.cpp turns them: neighbours make a pair, where transformers pairs both halves of a head.

    >>> rope_order(8, 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def write_llama(source: Source, writing: Writing, pooling: None) -> None:
    model, config, writer = source.model.model, source.model.config, writing.writer
    attention = model.layers[0].self_attn
    width = attention.head_dim
    heads, of_keys = attention.q_proj.out_features // width, attention.k_proj.out_features // width
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"Gguf: hidden_act: expected silu, as llama.cpp computes it, got {config.hidden_act!r}")
    _common(source, writing, len(model.layers), model.layers[0].mlp.up_proj.out_features, heads, width)
    writer.add_head_count_kv(of_keys)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    factors = _rope_factors(model.rotary_emb, config, width)
    if factors is not None:
        writing.vector("rope_freqs.weight", factors)
    writing.matrix("token_embd.weight", source.weight("model.embed_tokens"))
    for i, layer in enumerate(model.layers):
        own, name = f"model.layers.{i}", f"blk.{i}"
        rows = layer.self_attn.q_proj.out_features, layer.self_attn.k_proj.out_features
        writing.norm(source, f"{own}.input_layernorm", f"{name}.attn_norm", bias=False)
        writing.linear(source, f"{own}.self_attn.q_proj", f"{name}.attn_q", rope_order(rows[0], heads))
        writing.linear(source, f"{own}.self_attn.k_proj", f"{name}.attn_k", rope_order(rows[1], of_keys))
        writing.linear(source, f"{own}.self_attn.v_proj", f"{name}.attn_v")
        writing.linear(source, f"{own}.self_attn.o_proj", f"{name}.attn_output")
        writing.norm(source, f"{own}.post_attention_layernorm", f"{name}.ffn_norm", bias=False)
        for part in ("gate", "up", "down"):
            writing.linear(source, f"{own}.mlp.{part}_proj", f"{name}.ffn_{part}")
    writing.norm(source, "model.norm", "output_norm", bias=False)
    if not config.tie_word_embeddings:  # else llama.cpp multiplies with token_embd
        writing.linear(source, "lm_head", "output")


def _rope_factors(rotary: Any, config: Any, width: int) -> Array | None:
    """By how much each frequency is lower than RoPE's own: any fixed scaling (linear, Llama 3's) comes down to that."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"Gguf: rope_parameters: expected rope_type default, linear or llama3, got {kind!r}")
    base = config.rope_parameters["rope_theta"]
    plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    found = (plain / rotary.inv_freq.float()).numpy()
    return None if kind == "default" else found


def write_bert(source: Source, writing: Writing, pooling: str | None) -> None:
    import gguf

    classifies = type(source.model).__name__ != "BertModel"
    prefix = "bert." if classifies else ""
    model, config, writer = source.model.base_model, source.model.config, writing.writer
    attention = model.encoder.layer[0].attention.self
    heads, width = attention.num_attention_heads, attention.attention_head_size
    _refuse_unlike_bert(config, heads * width)
    pooling = pooling or ("rank" if classifies else "none")
    if pooling == "rank" and not classifies:
        raise ValueError(
            "Gguf: pooling: 'rank' reads a classifier's head, and a BertModel has none; choose another one"
        )
    _common(
        source, writing, len(model.encoder.layer), model.encoder.layer[0].intermediate.dense.out_features, heads, width
    )
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_pooling_type(gguf.PoolingType[pooling.upper()])
    writing.matrix("token_embd.weight", source.weight(f"{prefix}embeddings.word_embeddings"))
    # Added to activations, which are float32.
    for name, own in (("token_types", "token_type_embeddings"), ("position_embd", "position_embeddings")):
        table = source.weight(f"{prefix}embeddings.{own}")
        writing.vector(f"{name}.weight", table if isinstance(table, np.ndarray) else table.dense())
    writing.norm(source, f"{prefix}embeddings.LayerNorm", "token_embd_norm")
    for i in range(len(model.encoder.layer)):
        own, name = f"{prefix}encoder.layer.{i}", f"blk.{i}"
        for short, part in (("q", "query"), ("k", "key"), ("v", "value")):
            writing.linear(source, f"{own}.attention.self.{part}", f"{name}.attn_{short}")
        writing.linear(source, f"{own}.attention.output.dense", f"{name}.attn_output")
        writing.norm(source, f"{own}.attention.output.LayerNorm", f"{name}.attn_output_norm")
        writing.linear(source, f"{own}.intermediate.dense", f"{name}.ffn_up")
        writing.linear(source, f"{own}.output.dense", f"{name}.ffn_down")
        writing.norm(source, f"{own}.output.LayerNorm", f"{name}.layer_output_norm")
    if classifies:
        # llama.cpp's head of a classifier: a layer, tanh, a layer; the first is BERT's pooler.
        writing.linear(source, "bert.pooler.dense", "cls")
        writing.linear(source, "classifier", "cls.output")
        writer.add_classifier_output_labels([config.id2label[i] for i in range(config.num_labels)])
        writing.notes.append("llama.cpp takes every token for one of the first sentence (token type 0), also in pairs")
    elif model.pooler is not None:
        source.skip("pooler")
        writing.notes.append("the pooler is left out: llama.cpp pools token embeddings by itself")


def _refuse_unlike_bert(config: Any, heads: int) -> None:
    if config.hidden_act not in ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        raise ValueError(f"Gguf: hidden_act: expected gelu, as llama.cpp computes it, got {config.hidden_act!r}")
    if heads != config.hidden_size:
        raise ValueError(
            f"Gguf: expected attention heads that make up the hidden size of {config.hidden_size}, got {heads} "
            "(ReduceWidth took some); llama.cpp knows no such BERT"
        )
    if config.is_decoder:
        raise ValueError("Gguf: expected an encoder, got is_decoder=True")


def _common(source: Source, writing: Writing, layers: int, neurons: int, heads: int, width: int) -> None:
    config, writer = source.model.config, writing.writer
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(neurons)
    writer.add_head_count(heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(source.model.get_input_embeddings().num_embeddings)


ARCHITECTURES: dict[str, tuple[str, Callable[[Source, Writing, Any], None]]] = {
    "LlamaForCausalLM": ("llama", write_llama),
    "BertModel": ("bert", write_bert),
    "BertForSequenceClassification": ("bert", write_bert),
}
