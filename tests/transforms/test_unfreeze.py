from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from hf_stages.transforms import AddLora, Unfreeze


@pytest.mark.parametrize("meta", [False, True])
def test_unfreezes_what_matches_and_nothing_else(meta, tiny, trainable):
    model = tiny("bert", meta=meta).requires_grad_(False)
    model = Unfreeze("layer.1.output.dense")(model)
    assert trainable(model) == {f"bert.encoder.layer.1.output.dense.{end}" for end in ("weight", "bias")}


def test_unfreezing_keeps_the_function(tiny, logits):
    model = tiny("llama").requires_grad_(False)
    expected = logits(model)
    assert torch.equal(logits(Unfreeze("*")(model)), expected)
    assert Unfreeze("a").keeps_function
    assert not Unfreeze("a").structural


def test_a_tied_weight_answers_to_both_names(tiny, trainable):
    model = tiny("llama", tie_word_embeddings=True).requires_grad_(False)
    assert trainable(Unfreeze("lm_head")(model)) == {"lm_head.weight", "model.embed_tokens.weight"}


def test_in_a_peft_model_the_idle_original_stays_frozen(tiny, trainable):
    model = AddLora(2, target_modules="q_proj", modules_to_save="lm_head")(tiny("llama")).requires_grad_(False)
    Unfreeze(["lm_head.weight", "layers.1.self_attn.k_proj.weight"])(model)
    assert trainable(model) == {
        "base_model.model.lm_head.modules_to_save.default.weight",
        "base_model.model.model.layers.1.self_attn.k_proj.weight",
    }


def test_integer_weights_are_left_alone():
    model = nn.Module()
    model.packed = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    model.scale = nn.Parameter(torch.ones(1), requires_grad=False)
    with pytest.raises(ValueError, match=r"Unfreeze: \['packed'\] matches integer"):
        Unfreeze("packed")(model)
    assert [name for name, p in Unfreeze("*")(model).named_parameters() if p.requires_grad] == ["scale"]


def test_a_pattern_without_match_is_named(tiny):
    with pytest.raises(ValueError, match="Unfreeze: the pattern 'nowhere' matches nothing"):
        Unfreeze("nowhere")(tiny("llama"))


def test_it_is_a_plain_value():
    part = Unfreeze("a")
    assert part == Unfreeze(["a"]) == pickle.loads(pickle.dumps(part)) == eval(repr(part))
