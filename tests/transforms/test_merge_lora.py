from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from hf_stages.transforms import AddLora, Freeze, MergeLora

peft = pytest.importorskip("peft")


def shake(model):
    """As if trained: B away from zero, saved modules away from their originals."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "dropout": 0.5}])
def test_keeps_the_trained_function(kind, options, tiny, logits):
    model = tiny(kind)
    start = logits(model)
    adapted = shake(AddLora(2, target_modules="all-linear", **options)(model))
    expected = logits(adapted)
    assert not torch.allclose(expected, start, atol=1e-2)
    merged = MergeLora()(adapted)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert type(merged) is type(model)
    assert MergeLora().keeps_function


def test_keeps_a_trained_head(tiny, logits):
    adapted = shake(AddLora(2)(tiny("llama", auto="AutoModelForSequenceClassification")))
    head = adapted.get_parameter("base_model.model.score.modules_to_save.default.weight").clone()
    expected = logits(adapted)
    merged = MergeLora()(adapted)
    assert torch.equal(merged.score.weight, head)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("meta", [False, True])
def test_restores_names_shapes_and_what_was_trainable(kind, meta, tiny, trainable):
    model = Freeze(["layer*.0", "embed*"])(tiny(kind, meta=meta))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    expected = trainable(model)
    merged = MergeLora()(AddLora(2, target_modules="all-linear")(model))
    assert {name: p.shape for name, p in merged.named_parameters()} == shapes
    assert trainable(merged) == expected
    assert all(p.is_meta == meta for p in merged.parameters())
    AddLora(2)(merged)  # nothing of the first adapter is left


def test_of_a_peft_model_made_elsewhere_all_is_trainable(tiny, trainable, names):
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(r=2))
    merged = MergeLora()(model)
    assert trainable(merged) == set(names(merged))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_moves_go_back_where_they_came_from(kind, tiny, names):
    model = tiny(kind)
    plain = names(model)
    add = AddLora(2, target_modules="all-linear")
    adapted = add(model)
    inside = names(adapted)
    there = add.moves(plain, inside)
    back = MergeLora().moves(inside, names(MergeLora()(adapted)))
    assert back == {new: [old] for old, (new,) in there.items()}
    assert back.keys() <= set(inside)
    assert not any("lora_" in name for name in back)


def test_moments_of_a_trained_head_come_back(tiny, names):
    adapted = AddLora(2)(tiny("llama", auto="AutoModelForSequenceClassification"))
    before = names(adapted)
    moves = MergeLora().moves(before, names(MergeLora()(adapted)))
    sources = [old for old, news in moves.items() if news == ["score.weight"]]
    assert sources == ["base_model.model.score.modules_to_save.default.weight"]


def test_refuses_a_plain_model(tiny):
    with pytest.raises(ValueError, match=r"MergeLora: expected a PeftModel, got LlamaForCausalLM; AddLora\(\)"):
        MergeLora()(tiny("llama"))


def test_a_prompt_is_refused(tiny):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(tiny("llama"), config)
    with pytest.raises(ValueError, match=r"expected an adapter inside the weights.*PROMPT_TUNING"):
        MergeLora()(model)


def test_an_adapter_with_nan_is_refused(tiny):
    adapted = AddLora(2)(tiny("llama"))
    with torch.no_grad():
        next(p for name, p in adapted.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        MergeLora()(adapted)


def test_refuses_a_layer_that_would_quantize_the_merged_weight(tiny):
    class SignLinear(nn.Linear):
        __module__ = "hf_stages.layers.sign_linear"

    model = tiny("llama")
    model.model.layers[0].self_attn.q_proj = SignLinear(16, 16)
    adapted = AddLora(2)(model)
    with pytest.raises(
        ValueError, match=r"model\.layers\.0\.self_attn\.q_proj: expected a plain layer, got a SignLinear"
    ):
        MergeLora()(adapted)


def test_it_is_a_plain_value():
    assert MergeLora() == pickle.loads(pickle.dumps(MergeLora())) == eval(repr(MergeLora()))
