"""Architectures as ONNX graphs without caches: complete sequences in, hidden states or logits out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_stages.packing.formats.onnx_layers import Layers

_SMALLEST = float(np.finfo(np.float32).min)


def bert(layers: Layers) -> None:
    """Build the graph of a BERT."""
    graph, model = layers.graph, layers.reader.model
    classifies = type(model).__name__ != "BertModel"
    prefix, config = "bert." if classifies else "", model.config
    if config.is_decoder:
        raise ValueError("Onnx: expected an encoder, got is_decoder=True")
    ids, mask, kinds = (
        graph.input(name, ["batch", "length"]) for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    own, eps = f"{prefix}embeddings", config.layer_norm_eps
    places = _range(graph, ids)
    x = graph.op(
        "Add", layers.table(f"{own}.word_embeddings", ids), layers.table(f"{own}.token_type_embeddings", kinds)
    )
    position = layers.table(f"{own}.position_embeddings", graph.op("Unsqueeze", places, [0]))
    x = layers.norm(f"{own}.LayerNorm", graph.op("Add", x, position), eps)
    seen = graph.op("Unsqueeze", graph.op("Greater", mask, 0), [1, 2])
    for i, layer in enumerate(model.base_model.encoder.layer):
        own, attention = f"{prefix}encoder.layer.{i}", layer.attention.self
        q, k, v = (layers.linear(f"{own}.attention.self.{name}", x) for name in ("query", "key", "value"))
        heads = [0, 0, attention.num_attention_heads, attention.attention_head_size]
        q, v = (graph.op("Transpose", graph.op("Reshape", part, heads), perm=[0, 2, 1, 3]) for part in (q, v))
        k = graph.op("Transpose", graph.op("Reshape", k, heads), perm=[0, 2, 3, 1])
        found = graph.op("Transpose", _attend(graph, q, k, v, seen, attention.scaling), perm=[0, 2, 1, 3])
        found = layers.linear(f"{own}.attention.output.dense", graph.op("Reshape", found, [0, 0, -1]))
        x = layers.norm(f"{own}.attention.output.LayerNorm", graph.op("Add", found, x), eps)
        inner = _activation(graph, config.hidden_act, layers.linear(f"{own}.intermediate.dense", x))
        inner = layers.linear(f"{own}.output.dense", inner)
        x = layers.norm(f"{own}.output.LayerNorm", graph.op("Add", inner, x), eps)
    if not classifies:
        graph.output("last_hidden_state", x, ["batch", "length", config.hidden_size])
    if model.base_model.pooler is not None:
        first = graph.op("Gather", x, 0, axis=1)
        pooled = graph.op("Tanh", layers.linear(f"{prefix}pooler.dense", first))
        if classifies:
            graph.output("logits", layers.linear("classifier", pooled), ["batch", config.num_labels])
        else:
            graph.output("pooler_output", pooled, ["batch", config.hidden_size])


def llama(layers: Layers) -> None:
    """Build the graph of a Llama."""
    graph, model = layers.graph, layers.reader.model
    config, inner = model.config, model.model
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ValueError(f"Onnx: rope_parameters: expected frequencies that are fixed, got rope_type {kind!r}")
    ids, mask = (graph.input(name, ["batch", "length"]) for name in ("input_ids", "attention_mask"))
    places = _range(graph, ids)
    row, column = graph.op("Unsqueeze", places, [1]), graph.op("Unsqueeze", places, [0])
    seen = graph.op(
        "And", graph.op("GreaterOrEqual", row, column), graph.op("Unsqueeze", graph.op("Greater", mask, 0), [1, 2])
    )
    seen = graph.op("Unsqueeze", seen, [1])
    turn = _rotation(graph, places, inner.rotary_emb)
    eps = config.rms_norm_eps
    x = layers.table("model.embed_tokens", ids)
    for i, layer in enumerate(inner.layers):
        own, attention = f"model.layers.{i}", layer.self_attn
        width = attention.head_dim
        groups = attention.k_proj.out_features // width
        each = attention.q_proj.out_features // width // groups
        y = layers.rms_norm(f"{own}.input_layernorm", x, eps)
        q, k, v = (layers.linear(f"{own}.self_attn.{name}_proj", y) for name in "qkv")
        # Queries are grouped by the key that they share.
        q = graph.op("Transpose", graph.op("Reshape", q, [0, 0, groups, each, width]), perm=[0, 2, 3, 1, 4])
        k, v = (
            graph.op("Transpose", graph.op("Reshape", part, [0, 0, groups, 1, width]), perm=[0, 2, 3, 1, 4])
            for part in (k, v)
        )
        k = graph.op("Transpose", _rotated(graph, k, turn, width), perm=[0, 1, 2, 4, 3])
        found = _attend(graph, _rotated(graph, q, turn, width), k, v, seen, attention.scaling)
        found = graph.op("Reshape", graph.op("Transpose", found, perm=[0, 3, 1, 2, 4]), [0, 0, -1])
        x = graph.op("Add", x, layers.linear(f"{own}.self_attn.o_proj", found))
        y = layers.rms_norm(f"{own}.post_attention_layernorm", x, eps)
        gate = _activation(graph, config.hidden_act, layers.linear(f"{own}.mlp.gate_proj", y))
        y = graph.op("Mul", gate, layers.linear(f"{own}.mlp.up_proj", y))
        x = graph.op("Add", x, layers.linear(f"{own}.mlp.down_proj", y))
    x = layers.rms_norm("model.norm", x, eps)
    shared = config.tie_word_embeddings and type(model.lm_head).__name__ == "Linear"
    logits = layers.head("model.embed_tokens", x) if shared else layers.linear("lm_head", x)
    graph.output("logits", logits, ["batch", "length", model.lm_head.out_features])


def _range(graph: Any, ids: str) -> str:
    """Return the positions 0, 1, 2 ..."""
    length = graph.op("Squeeze", graph.op("Shape", ids, start=1, end=2), [0])
    return graph.op("Range", 0, length, 1)


def _attend(graph: Any, q: str, k: str, v: str, seen: str, scaling: float) -> str:
    """Compute attention; ``k`` is transposed already. A row that may see nothing sees all alike, as in transformers."""
    scores = graph.op("Mul", graph.op("MatMul", q, k), float(scaling))
    shares = graph.op("Softmax", graph.op("Where", seen, scores, _SMALLEST), axis=-1)
    return graph.op("MatMul", shares, v)


def _rotation(graph: Any, places: str, rotary: Any) -> tuple[str, str]:
    turns = graph.op("Unsqueeze", graph.cast(places), [1])
    angles = graph.op("Mul", turns, rotary.inv_freq.float().numpy()[None])
    angles = graph.op("Concat", angles, angles, axis=-1)
    cos, sin = graph.op("Cos", angles), graph.op("Sin", angles)
    by = float(rotary.attention_scaling)
    return (cos, sin) if by == 1.0 else (graph.op("Mul", cos, by), graph.op("Mul", sin, by))


def _rotated(graph: Any, x: str, turn: tuple[str, str], width: int) -> str:
    one, two = graph.op("Split", x, outputs=2, axis=-1, num_outputs=2)
    other = graph.op("Concat", graph.op("Neg", two), one, axis=-1)
    return graph.op("Add", graph.op("Mul", x, turn[0]), graph.op("Mul", other, turn[1]))


def _activation(graph: Any, name: str, x: str) -> str:
    if name in ("silu", "swish"):
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    if name in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        return graph.op("Gelu", x, approximate="none" if name == "gelu" else "tanh")
    if name in ("relu", "tanh"):
        return graph.op(name.capitalize(), x)
    raise ValueError(f"Onnx: hidden_act: expected gelu, gelu_new, silu, relu or tanh, got {name!r}")


ARCHITECTURES: dict[str, Callable[[Layers], None]] = {
    "BertModel": bert,
    "BertForSequenceClassification": bert,
    "LlamaForCausalLM": llama,
}
