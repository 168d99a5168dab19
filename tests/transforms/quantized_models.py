"""Models of every kind that is quantized, small, and which of their layers are left out."""

from __future__ import annotations

import torch
import transformers as tf
from torch import nn

from tests.support import tiny as models

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8}
BUILD = {
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen2-moe": lambda: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**SIZES, num_experts=4, shared_expert_intermediate_size=8, decoder_sparse_step=1, **MOE)
    ),
    "gpt-oss": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(**SIZES, num_local_experts=4, head_dim=8)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)),
    "tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)),
    "gemma": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SIZES, head_dim=8, tie_word_embeddings=False)),
    "bert": models.bert,
    "t5": models.t5,
    "vit": models.vit,
}
LEFT_OUT = {
    "mixtral": {"mlp.gate", "lm_head"},
    "qwen2-moe": {"mlp.gate", "mlp.shared_expert_gate", "lm_head"},
    "gpt-oss": {"mlp.router", "mlp.experts", "lm_head"},  # of the experts their biases
    "llama": {"lm_head"},
    "tied": {"model.embed_tokens"},
    "gpt2": {"transformer.wte", "transformer.wpe"},
    "gemma": {"lm_head"},
    "bert": {"embeddings.position_embeddings", "embeddings.token_type_embeddings", "classifier"},
    "t5": {"shared", "SelfAttention.relative_attention_bias"},
    "vit": {"patch_embeddings.projection", "classifier"},
}


def outputs(model, rows=2):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (rows, 7), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.model_type == "t5":
        batch["decoder_input_ids"] = ids
    if model.config.model_type == "vit":
        batch = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    with torch.no_grad():
        return model(**batch).logits


def apart(a, b):
    return ((a - b).abs().max() / a.abs().max()).item()


class OwnForward(nn.Linear):
    """A linear layer that computes something else, so that no quantized layer may replace it."""

    def forward(self, x):
        return super().forward(x) * 2


def with_own_forward(model):
    model.model.layers[0].mlp.up_proj = OwnForward(16, 24, bias=False)
    return model
