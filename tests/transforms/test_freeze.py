from __future__ import annotations

import pickle

import pytest
import torch

from hf_stages.transforms import AddLora, Freeze


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("meta", [False, True])
def test_freezes_what_matches_and_nothing_else(kind, meta, tiny, trainable):
    model = tiny(kind, meta=meta)
    before = trainable(model)
    model = Freeze(["embed*", "layer*.0"])(model)
    frozen = before - trainable(model)
    assert frozen
    tied = {"cls.predictions.decoder.weight"}  # BERT's head is its word embedding
    assert all("embed" in n or "layers.0." in n or "layer.0." in n or n in tied for n in frozen)
    assert not any("layers.0." in n or "layer.0." in n for n in trainable(model))


def test_freezing_keeps_the_function(tiny, logits):
    model = tiny("llama")
    expected = logits(model)
    assert torch.equal(logits(Freeze("layers")(model)), expected)
    assert Freeze("a").keeps_function
    assert not Freeze("a").structural


@pytest.mark.parametrize("alias", ["lm_head", "embed_tokens"])
def test_a_tied_weight_answers_to_both_names(alias, tiny):
    model = Freeze(alias)(tiny("llama", tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.requires_grad


def test_but_spares_what_it_names(tiny, trainable):
    model = Freeze("*", but=["lm_head", "norm"])(tiny("llama"))
    assert trainable(model) == {"lm_head.weight", "model.norm.weight"}


@pytest.mark.parametrize(
    "pattern",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "layers.0.self_attn.q_proj.lora_B",
    ],
)
def test_names_of_the_base_model_hold_in_a_peft_model(pattern, tiny, trainable):
    model = AddLora(2, target_modules="q_proj")(tiny("llama"))
    model.requires_grad_(True)
    before = trainable(model)
    part = "lora_B.default" if "lora_B" in pattern else "base_layer"
    expected = f"base_model.model.model.layers.0.self_attn.q_proj.{part}.weight"
    assert before - trainable(Freeze(pattern)(model)) == {expected}


def test_a_saved_module_is_its_training_copy(tiny, trainable):
    model = AddLora(2, target_modules="q_proj", modules_to_save="lm_head")(tiny("llama"))
    before = trainable(model)
    gone = before - trainable(Freeze("lm_head.weight")(model))
    assert gone == {"base_model.model.lm_head.modules_to_save.default.weight"}


def test_refuses_to_leave_nothing(tiny):
    with pytest.raises(ValueError, match=r"Freeze: \['\*'\] leaves no trainable parameter in LlamaForCausalLM"):
        Freeze("*")(tiny("llama"))


def test_a_pattern_without_match_is_named(tiny):
    with pytest.raises(ValueError, match=r"Freeze: the pattern 'lyers\.0' matches nothing.*layers"):
        Freeze("lyers.0")(tiny("llama"))
    with pytest.raises(ValueError, match="Freeze: but: the pattern 'had' matches nothing"):
        Freeze("layers", but="had")(tiny("llama"))


@pytest.mark.parametrize("wrong", [[], "", [3], None, 7])
def test_patterns_are_names(wrong):
    with pytest.raises(ValueError, match="Freeze: expected a name pattern"):
        Freeze(wrong)


def test_it_is_a_plain_value():
    part = Freeze(["a", "b"], but="c")
    assert part == Freeze(("a", "b"), but=("c",)) == pickle.loads(pickle.dumps(part)) == eval(repr(part))
    assert hash(part) == hash(Freeze(("a", "b"), but=["c"]))


def test_moments_stay_where_they_are(tiny, names):
    model = tiny("llama")
    assert Freeze("layers").moves(names(model), names(model)) == {name: [name] for name in names(model)}
