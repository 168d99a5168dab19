"""The stacks of real architectures, in shape alone, and what is refused."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from hf_stages.layers import blocks_of, stacks_of
from tests.support import tiny

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWER = {**SIZES, "image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2}


def build(kind, **options):
    with torch.device("meta"):
        return tf.AutoModel.from_config(tf.AutoConfig.for_model(kind, **options))


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("bert", SIZES, {"": ("encoder.layer", 3)}),
        ("distilbert", {"n_layers": 3}, {"": ("transformer.layer", 3)}),
        ("mpnet", SIZES, {"": ("encoder.layer", 3)}),
        ("llama", SIZES, {"": ("layers", 3)}),
        ("mixtral", {**SIZES, "num_local_experts": 2}, {"": ("layers", 3)}),
        ("gpt2", {"n_layer": 3, "n_embd": 12}, {"": ("h", 3)}),
        ("vit", SIZES, {"": ("layers", 3)}),
        ("t5", T5, {"encoder": ("encoder.block", 3), "decoder": ("decoder.block", 2)}),
        (
            "bart",
            {"encoder_layers": 3, "decoder_layers": 2},
            {"encoder": ("encoder.layers", 3), "decoder": ("decoder.layers", 2)},
        ),
        (
            "llava",
            {"text_config": {**SIZES, "model_type": "llama"}, "vision_config": TOWER},
            {"vision_tower": ("vision_tower.encoder.layers", 3), "language_model": ("language_model.layers", 3)},
        ),
        ("albert", {**SIZES, "embedding_size": 8}, {}),
        ("resnet", {}, {}),
    ],
)
def test_the_stacks_of_each_architecture_are_found(kind, options, expected):
    assert {name: (path, len(blocks)) for name, (path, blocks) in stacks_of(build(kind, **options)).items()} == expected


def test_blocks_are_found_below_a_head_and_an_adapter():
    peft = pytest.importorskip("peft")
    model = tiny.llama()
    assert blocks_of(model) is model.model.layers
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2))
    assert blocks_of(adapted) is model.model.layers
    assert stacks_of(adapted)[""][0] == "model.layers"


def test_a_stack_is_named_where_there_are_several_and_only_there():
    t5 = tiny.t5()
    assert blocks_of(t5, "decoder") is t5.decoder.block
    with pytest.raises(
        ValueError, match=r"T5ForCond.*: it has 2 stacks of blocks; say which: stack= one of 'encoder', 'decoder'"
    ):
        blocks_of(t5)
    with pytest.raises(ValueError, match="expected stack= one of 'encoder', 'decoder', got 'vision'"):
        blocks_of(t5, "vision")
    with pytest.raises(
        ValueError, match="LlamaForCausalLM: it has one stack of blocks, got stack='encoder'; leave stack out"
    ):
        blocks_of(tiny.llama(), "encoder")


def test_models_without_blocks_are_refused():
    with pytest.raises(ValueError, match="AlbertModel: its layers share their weights"):
        blocks_of(build("albert", **SIZES))
    with pytest.raises(ValueError, match=r"Linear: expected an nn.ModuleList of blocks .* found none"):
        blocks_of(torch.nn.Linear(2, 2))
