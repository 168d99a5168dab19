"""Tiny models with quantized layers, and what goes into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from hf_stages.transforms import Binarize, InsertSubLN, ReduceWidth, SplitTernary, Ternarize
from tests.support import tiny

IDS = torch.arange(12).reshape(2, 6)
TIED = ["*embed_tokens", "lm_head", "*_proj"]


def gpt2() -> Any:
    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=0
    )
    return GPT2LMHeadModel(config)


def odd_llama() -> Any:
    """No size a multiple of eight."""
    return tiny.llama(
        hidden_size=36, intermediate_size=45, num_attention_heads=2, num_key_value_heads=1, head_dim=18, vocab_size=61
    )


KINDS: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "bert-binary": (tiny.bert, [Binarize(embeddings=True)]),
    "bert-split": (tiny.bert, [Ternarize(), SplitTernary()]),
    "bert-groups-asymmetric": (tiny.bert, [Ternarize(per=8, symmetric=False)]),
    "bert-learned-clip": (tiny.bert, [Binarize(method="learned", clip=2.0)]),
    "bert-half-width": (tiny.bert, [ReduceWidth(0.5), Ternarize(), SplitTernary()]),
    "bert-no-activations": (tiny.bert, [Binarize(activations=None)]),
    "llama-per-tensor": (tiny.llama, [Ternarize(per="tensor", method="absmean")]),
    "llama-odd-4bit": (odd_llama, [Ternarize(per=9, activations=4)]),
    "llama-tied": (lambda: tiny.llama(tie_word_embeddings=True), [Ternarize(TIED)]),
    "llama-tied-split-learned": (
        lambda: tiny.llama(tie_word_embeddings=True),
        [Ternarize(TIED, method="learned"), SplitTernary()],
    ),
    "llama-subln": (tiny.llama, [InsertSubLN(), Ternarize()]),
    "gpt2": (gpt2, [Binarize()]),
    "t5": (tiny.t5, [Ternarize()]),
    "t5-tied": (tiny.t5, [Ternarize(["shared", "*embed_tokens", "lm_head", "*.wo"])]),
    "vit": (tiny.vit, [Binarize()]),
}


def quantized(kind: str) -> Any:
    build, transforms = KINDS[kind]
    torch.manual_seed(0)
    model = build()
    for transform in transforms:
        model = transform(model)
    return model.eval()


def inputs(model: Any) -> dict[str, torch.Tensor]:
    if model.config.model_type == "vit":
        size = model.config.image_size
        return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))}
    return {"input_ids": IDS, **({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(**inputs(model)).logits


AUTO = {
    "bert": AutoModelForSequenceClassification,
    "llama": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "vit": AutoModelForImageClassification,
}


def loaded(folder, kind="bert", **options):
    return AUTO[kind.partition("-")[0]].from_pretrained(folder, **options).eval()
