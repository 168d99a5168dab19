from __future__ import annotations

import pickle
import sys

import pytest
import torch

from hf_stages.recipes import part_from_dict, part_to_dict
from hf_stages.transforms import AddLora, Freeze

pytest.importorskip("peft")
ATTENTION = {"bert": ("query", "value"), "llama": ("q_proj", "v_proj")}


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "dropout": 0.5}, {"use_dora": True}])
def test_a_fresh_adapter_keeps_the_function(kind, options, tiny, logits):
    model = tiny(kind)
    expected = logits(model)
    adapted = AddLora(4, target_modules="all-linear", **options)(model).eval()
    exact = not options.get("use_dora")  # DoRA divides by a norm and multiplies by it
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=0 if exact else 1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("meta", [False, True])
def test_only_the_additions_train(kind, meta, tiny, trainable):
    model = AddLora(2)(tiny(kind, meta=meta))  # PEFT's default targets
    assert len(trainable(model)) == 2 * 2 * 2  # A and B, of two modules, in two layers
    assert all(".lora_A." in n or ".lora_B." in n for n in trainable(model))
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in trainable(model)} == set(ATTENTION[kind])
    assert all(p.is_meta == meta for p in model.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_moves_name_every_parameter_and_its_own_tensor(kind, tiny, names):
    model = Freeze("layer*.1")(tiny(kind, tie_word_embeddings=False))
    before = {name: p.clone() for name, p in model.named_parameters()}
    part = AddLora(2, target_modules="all-linear")
    adapted = part(model)
    after = dict(adapted.named_parameters())
    moves = part.moves(list(before), list(after))
    assert moves.keys() == before.keys()
    assert all(torch.equal(before[old], after[new]) for old, news in moves.items() for new in news)
    assert not any("lora_" in new for news in moves.values() for new in news)


def test_moments_of_a_saved_module_go_to_its_training_copy(tiny, names):
    model = tiny("llama")
    before = names(model)
    part = AddLora(2, target_modules="q_proj", modules_to_save="lm_head")
    adapted = part(model)
    moved = part.moves(before, names(adapted))
    assert moved["lm_head.weight"] == ["base_model.model.lm_head.modules_to_save.default.weight"]
    assert adapted.get_parameter(moved["lm_head.weight"][0]).requires_grad
    assert moved.keys() == set(before)


@pytest.mark.parametrize(
    ("kind", "auto", "task", "wrapper"),
    [
        ("llama", "AutoModelForCausalLM", "CAUSAL_LM", "PeftModelForCausalLM"),
        ("t5", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", "PeftModelForSeq2SeqLM"),
        ("bert", "AutoModelForSequenceClassification", "SEQ_CLS", "PeftModelForSequenceClassification"),
        ("bert", "AutoModelForTokenClassification", "TOKEN_CLS", "PeftModelForTokenClassification"),
        ("bert", "AutoModelForQuestionAnswering", "QUESTION_ANS", "PeftModelForQuestionAnswering"),
        ("bert", "AutoModelForMaskedLM", None, "PeftModel"),
    ],
)
def test_the_task_is_inferred_from_the_models_class(kind, auto, task, wrapper, tiny, logits, trainable):
    model = tiny(kind, auto=auto)
    expected = logits(model)
    adapted = AddLora(2)(model).eval()
    assert type(adapted).__name__ == wrapper
    assert adapted.peft_config["default"].task_type == task
    assert torch.equal(logits(adapted.get_base_model()), expected)
    heads = [name for name in trainable(adapted) if "modules_to_save" in name]
    assert bool(heads) == (task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"))


def test_remembers_what_was_trainable(tiny, trainable):
    model = Freeze("layers.0")(tiny("llama", tie_word_embeddings=True))
    expected = trainable(model)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= expected
    assert AddLora(2)(model)._trainable_before_lora == expected


def test_a_regex_is_the_whole_name(tiny, trainable):
    model = AddLora(2, target_modules=r"model\.layers\.1\..*\.(q|o)_proj")(tiny("llama"))
    places = {n.split("model.layers.")[1].split(".lora_")[0] for n in trainable(model)}
    assert places == {"1.self_attn.q_proj", "1.self_attn.o_proj"}


def test_depends_on_torch_seed_alone(tiny):
    def draw():
        model = tiny("llama")
        torch.manual_seed(7)
        return [p for n, p in AddLora(2)(model).named_parameters() if "lora_A" in n]

    assert all(torch.equal(a, b) for a, b in zip(draw(), draw(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj", "v_prj"]}, r"target_modules: .*got 'v_prj', which matches none.*v_proj"),
        ({"target_modules": r"layers\.\d+\.q_proj"}, r"target_modules: .*matches none"),
        ({"target_modules": "q_proj", "modules_to_save": "lm_hed"}, r"modules_to_save: .*'lm_hed'.*lm_head"),
        ({"task_type": "CAUSAL"}, r"task_type: expected one of .*CAUSAL_LM.*got 'CAUSAL'"),
    ],
)
def test_errors_name_the_field_and_what_there_is(options, message, tiny):
    with pytest.raises(ValueError, match="AddLora: " + message):
        AddLora(2, **options)(tiny("llama"))


def test_without_a_default_asks_for_targets(tiny):
    with pytest.raises(ValueError, match=r"AddLora: target_modules: PEFT has no default for ViT.*all-linear"):
        AddLora(2)(tiny("vit"))


@pytest.mark.parametrize(
    ("options", "field"),
    [({"r": 0}, "r"), ({"r": 1.5}, "r"), ({"alpha": 0}, "alpha"), ({"dropout": 1.0}, "dropout")]
    + [({"target_modules": wrong}, "target_modules") for wrong in ([], "", [1])],
)
def test_bad_values_are_refused_at_once(options, field):
    with pytest.raises(ValueError, match=f"AddLora: {field}: expected"):
        AddLora(**options)


def test_refuses_a_second_adapter(tiny):
    model = AddLora(2)(tiny("llama"))
    with pytest.raises(ValueError, match=r"got a PeftModelForCausalLM that has some; merge it first: MergeLora\(\)"):
        AddLora(2)(model)
    with pytest.raises(ValueError, match="merge it first"):
        AddLora(2)(model.get_base_model())


def test_without_peft_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "hf_stages\[lora\]"'):
        AddLora(2)(tiny("llama"))


def test_alpha_goes_by_the_name_that_peft_has_for_it(tiny):
    part = AddLora(4, lora_alpha=32)
    assert part == AddLora(4, 32) == eval(repr(part))
    assert part_to_dict(part, "transforms") == {"use": "AddLora", "r": 4, "alpha": 32}
    read = part_from_dict({"use": "AddLora", "r": 4, "lora_alpha": 32}, "transforms")
    assert read == part
    assert read(tiny("llama")).peft_config["default"].lora_alpha == 32
    assert AddLora(4, 16, lora_alpha=16) == AddLora(4)
    assert part_to_dict(AddLora(4), "transforms") == {"use": "AddLora", "r": 4}


@pytest.mark.parametrize("alpha", [16, 16.0, 8])
def test_two_alphas_that_differ_are_refused(alpha):
    with pytest.raises(ValueError, match=rf"AddLora: alpha and lora_alpha .* got {alpha!r} and 32; give one"):
        AddLora(4, alpha, lora_alpha=32)
    with pytest.raises(ValueError, match=r"AddLora: alpha: expected more than 0, got -1"):
        AddLora(4, lora_alpha=-1)


def test_it_is_a_plain_value():
    part = AddLora(4, 8, target_modules=["q_proj"], dropout=0.1, modules_to_save="score")
    assert part == pickle.loads(pickle.dumps(part)) == eval(repr(part))
    assert hash(part)
