"""Tiny models and data, built from configs without a network. Importable from subprocess scripts too."""

from __future__ import annotations

import functools

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCAB = 64
LLAMA_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""For a recipe's ``model: {config: {model_type: llama, ...}}``."""


@functools.cache
def llama_config() -> LlamaConfig:
    return LlamaConfig(**LLAMA_SIZES, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)


@functools.cache
def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=3,
    )


@functools.cache
def t5_config() -> T5Config:
    return T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


@functools.cache
def vit_config() -> ViTConfig:
    return ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )


def llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    return _build(LlamaForCausalLM, llama_config(), seed, changes)


def bert(seed: int = 0, **changes) -> BertForSequenceClassification:
    return _build(BertForSequenceClassification, bert_config(), seed, changes)


def t5(seed: int = 0, **changes) -> T5ForConditionalGeneration:
    return _build(T5ForConditionalGeneration, t5_config(), seed, changes)


def vit(seed: int = 0, **changes) -> ViTForImageClassification:
    return _build(ViTForImageClassification, vit_config(), seed, changes)


def lm_data(rows: int = 32, length: int = 16, seed: int = 0) -> Dataset:
    """Random tokens 3..VOCAB-1 (0-2 are specials); labels are the inputs, as causal models take them."""
    ids = torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def class_data(rows: int = 32, length: int = 16, seed: int = 0, *, labels: int = 3) -> Dataset:
    """Random tokens with a class that can be learned: the first token modulo ``labels``."""
    ids = torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": [row[0] % labels for row in ids]})


def image_data(rows: int = 16, size: int = 16, seed: int = 0, *, labels: int = 3) -> Dataset:
    """Random pixels and classes; ``.with_format("torch")`` is set."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand((rows, 3, size, size), generator=generator).tolist()
    classes = torch.randint(labels, (rows,), generator=generator).tolist()
    return Dataset.from_dict({"pixel_values": pixels, "labels": classes}).with_format("torch")


def tokenizer(template: str | None = None, **options) -> PreTrainedTokenizerFast:
    """One token per byte (3 .. 258), pad 0, mask 1, end 2, no network."""
    vocab = {"<pad>": 0, "<mask>": 1, "<end>": 2, **{c: i for i, c in enumerate(sorted(ByteLevel.alphabet()), start=3)}}
    raw = Tokenizer(BPE(vocab, merges=[]))
    raw.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = ByteLevelDecoder()
    special = {"pad_token": "<pad>", "mask_token": "<mask>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template, **{**special, **options})


def _build(model: type[PreTrainedModel], config: PretrainedConfig, seed: int, changes: dict) -> PreTrainedModel:
    """A fresh model: the shared config is copied, so that a test may change what it was given."""
    config = type(config).from_dict({**config.to_dict(), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(config)
