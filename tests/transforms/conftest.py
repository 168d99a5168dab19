"""Tiny models, built from configs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as tf

from tests.transforms.quantized_models import BUILD

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
CONFIGS: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "bert": ("AutoModelForMaskedLM", tf.BertConfig, {"vocab_size": 40, **SIZES}),
    "llama": (
        "AutoModelForCausalLM",
        tf.LlamaConfig,
        {"vocab_size": 40, "num_key_value_heads": 1, "pad_token_id": 0, **SIZES},
    ),
    "vit": ("AutoModelForMaskedImageModeling", tf.ViTConfig, {"image_size": 8, "patch_size": 4, **SIZES}),
    "t5": ("AutoModelForSeq2SeqLM", tf.T5Config, {"vocab_size": 40, **T5}),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On matrices of 16 columns more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """``tiny("llama", meta=True, tie_word_embeddings=True)``: a model in evaluation mode, with noise in its biases."""

    def build(kind: str, *, meta: bool = False, auto: str | None = None, **options: Any) -> Any:
        auto_class, config_class, sizes = CONFIGS[kind]
        torch.manual_seed(0)
        with torch.device("meta" if meta else "cpu"):
            model = getattr(tf, auto or auto_class).from_config(config_class(**{**sizes, **options}))
        if not meta:
            with torch.no_grad():  # zero biases and unit norms would hide what is not copied
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.eval()

    return build


@pytest.fixture
def logits() -> Callable[[Any], torch.Tensor]:
    """The model's first output on a fixed batch."""

    def run(model: Any) -> torch.Tensor:
        kind = model.config.model_type
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, 40, (2, 7), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if kind == "t5" and "decoder" in dict(model.named_children()):
            batch["decoder_input_ids"] = ids
        if kind == "vit":
            batch = {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
        with torch.no_grad():
            return model(**batch)[0]

    return run


@pytest.fixture
def trainable() -> Callable[[Any], set[str]]:
    return lambda model: {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


@pytest.fixture
def names() -> Callable[[Any], list[str]]:
    return lambda model: [name for name, _ in model.named_parameters()]


@pytest.fixture
def build():
    def make(kind):
        torch.manual_seed(0)
        model = BUILD[kind]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.eval()

    return make
