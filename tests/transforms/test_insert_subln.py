from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
import transformers as tf

from hf_stages import Stage, StagedTrainer
from hf_stages.layers import NormedLinear
from hf_stages.models.optimizer_moments import load
from hf_stages.schedules import Resume
from hf_stages.transforms import AddLora, InsertSubLN, MergeLora, ReduceLayers, SetTask
from tests.support import tiny as models
from tests.transforms.conftest import SIZES

MOE = {**SIZES, "num_local_experts": 2, "num_key_value_heads": 1, "head_dim": 8}


def normed(model):
    return [name for name, module in model.named_modules() if isinstance(module, NormedLinear)]


def in_block(name):
    return re.sub(r".*\.\d+\.", "", name)


def build(kind, **options):
    with torch.device("meta"):
        return tf.AutoModel.from_config(tf.AutoConfig.for_model(kind, **options))


DENSE = {**SIZES, "num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0}
BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("kind", "options", "attention", "ffn"),
    [
        ("llama", DENSE, ["self_attn.o_proj"], ["mlp.down_proj"]),
        ("mistral", DENSE, ["self_attn.o_proj"], ["mlp.down_proj"]),
        ("qwen2", DENSE, ["self_attn.o_proj"], ["mlp.down_proj"]),
        ("qwen3", DENSE, ["self_attn.o_proj"], ["mlp.down_proj"]),
        (
            "phi3",
            {**DENSE, "num_attention_heads": 4, "num_key_value_heads": 3},
            ["self_attn.o_proj"],
            ["mlp.down_proj"],
        ),
        ("gpt2", {"n_layer": 2, "n_embd": 12, "n_head": 2}, ["attn.c_proj"], ["mlp.c_proj"]),
        ("gpt_neox", SIZES, ["attention.dense"], ["mlp.dense_4h_to_h"]),
        ("bert", SIZES, ["attention.output.dense"], ["output.dense"]),
        ("distilbert", {"n_layers": 2, "dim": 12, "n_heads": 2, "hidden_dim": 24}, ["attention.out_lin"], ["ffn.lin2"]),
        ("mpnet", SIZES, ["attention.attn.o"], ["output.dense"]),
        ("modernbert", SIZES, ["attn.Wo"], ["mlp.Wo"]),
        ("vit", SIZES, ["attention.o_proj"], ["mlp.fc2"]),
        ("t5", T5, ["SelfAttention.o", "EncDecAttention.o"], ["DenseReluDense.wo"]),
        ("bart", BART, ["self_attn.out_proj", "encoder_attn.out_proj"], ["fc2"]),
        ("deepseek_v3", {**SIZES, "first_k_dense_replace": 2}, ["self_attn.o_proj"], ["mlp.down_proj"]),
    ],
)
def test_finds_the_projections(kind, options, attention, ffn):
    for where, ends in (("attention", attention), ("ffn", ffn), (("ffn", "attention"), attention + ffn)):
        model = build(kind, **options)
        expected = [name for name in map(in_block, dict(model.named_modules())) if name in ends]
        assert len(expected) >= 2 * len(ends)
        assert sorted(map(in_block, normed(InsertSubLN(where=where)(model)))) == sorted(expected)


@pytest.mark.parametrize("kind", ["llama", "bert", "vit", "t5"])
def test_computes_what_hooks_would(kind, tiny, logits):
    model = tiny(kind)
    hooked = copy.deepcopy(model)
    InsertSubLN(eps=0.01)(model)
    names = normed(model)
    with torch.no_grad():
        for name in names:
            gain = model.get_submodule(name).norm.weight
            assert torch.equal(gain, torch.ones_like(gain))
            gain.normal_()
    for name in names:
        hooked.get_submodule(name).register_forward_pre_hook(_norm(model.get_submodule(name).norm.weight))
    assert torch.allclose(logits(model), logits(hooked), atol=1e-4)


def _norm(gain):
    return lambda module, args: args[0] / (args[0].square().mean(-1, keepdim=True) + 0.01).sqrt() * gain


def test_moves_the_function_and_says_so(tiny, logits):
    model = tiny("llama")
    before = logits(model)
    assert not InsertSubLN.keeps_function
    assert not torch.allclose(logits(InsertSubLN()(model)), before, atol=1e-2)


def test_patterns_name_modules(tiny):
    assert normed(InsertSubLN(modules="layers.1.mlp.up_proj")(tiny("llama"))) == ["model.layers.1.mlp.up_proj"]
    model = InsertSubLN(where="all")(tiny("llama"))
    assert len(normed(model)) == 2 * 7
    assert not isinstance(model.lm_head, NormedLinear)


def test_moments_follow_their_weights(names, tiny):
    model = tiny("bert")
    before = dict(model.named_parameters())
    after = dict(InsertSubLN()(model).named_parameters())
    moves = InsertSubLN().moves(list(before), list(after))
    assert set(moves) == set(before)
    assert all(after[new] is before[old] for old, (new,) in moves.items())
    assert {name.rpartition(".")[0] for name in set(after) - {new for (new,) in moves.values()}} == {
        f"{name}.norm" for name in normed(model)
    }


def test_layers_that_cannot_have_a_norm_are_refused(tiny):
    with pytest.raises(ValueError, match=r"InsertSubLN: model.layers.0.self_attn.o_proj: it has its norm already"):
        InsertSubLN()(InsertSubLN()(tiny("llama")))
    InsertSubLN(where="ffn")(InsertSubLN(where="attention")(tiny("llama")))
    with pytest.raises(
        ValueError, match=r"layers.0.mlp.experts holds the projections of all experts .* where='attention'"
    ):
        InsertSubLN()(build("mixtral", **MOE))
    assert len(normed(InsertSubLN(where="attention")(build("mixtral", **MOE)))) == 2
    with pytest.raises(
        ValueError, match=r"layers.0: expected the output projection of its attention, .*; name modules="
    ):
        InsertSubLN()(build("mamba", num_hidden_layers=1, hidden_size=16))
    with pytest.raises(ValueError, match=r"no stack of blocks with linear layers; name modules="):
        InsertSubLN()(build("albert", **SIZES, embedding_size=8))
    with pytest.raises(ValueError, match="lm_head is the output head"):
        InsertSubLN(modules="lm_head")(tiny("llama"))
    with pytest.raises(ValueError, match="matches nothing"):
        InsertSubLN(modules="o_porj")(tiny("llama"))
    model = tiny("llama")
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(23, 16)
    with pytest.raises(ValueError, match=r"layers.1: .* mlp.down_proj takes 23, which nothing before it gives"):
        InsertSubLN()(model)
    assert not normed(model)  # refused before anything was changed
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="InsertSubLN: expected a model without adapters"):
        InsertSubLN()(AddLora(2)(tiny("llama")))


@pytest.mark.parametrize("bad", [{"where": "head"}, {"eps": 0}, {"modules": []}, {"modules": "fc", "where": "ffn"}])
def test_bad_values_are_refused_at_once(bad):
    with pytest.raises(ValueError, match="InsertSubLN: "):
        InsertSubLN(**bad)


def test_it_is_a_plain_value():
    part = InsertSubLN(where=["ffn", "attention"], eps=1e-5)
    assert part == pickle.loads(pickle.dumps(part)) == eval(repr(part)) == InsertSubLN(eps=1e-5)


def test_lora_finds_the_linear_inside(tiny, logits):
    pytest.importorskip("peft")
    model = InsertSubLN()(tiny("llama"))
    before = logits(model)
    adapted = AddLora(2, target_modules="all-linear")(model)
    found = {name.partition(".lora_A.default")[0] for name, _ in adapted.named_parameters() if ".lora_A." in name}
    assert "base_model.model.model.layers.0.self_attn.o_proj.linear" in found
    assert len(found) == 2 * 7
    assert torch.equal(logits(adapted), before)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    with_adapter = logits(adapted)
    merged = MergeLora()(adapted)
    assert torch.allclose(logits(merged), with_adapter, atol=1e-4)
    assert not torch.allclose(before, with_adapter, atol=0.1)
    assert len(normed(merged)) == 4
    AddLora(2)(InsertSubLN()(tiny("llama")))  # PEFT's choice, by the architecture's own model_type
    AddLora(2, target_modules="o_proj.linear")(InsertSubLN()(tiny("llama")))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generates_with_its_cache(kind):
    torch.manual_seed(0)
    model = models.llama() if kind == "llama" else tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=2, n_head=2))
    model = InsertSubLN()(model.eval())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ids = torch.tensor([[5, 6, 7]])
    made = [model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=63, use_cache=c) for c in (True, False)]
    assert made[0].shape[1] > 4
    assert torch.equal(*made)


def test_goes_with_the_other_transforms(tiny, logits):
    model = ReduceLayers([2])(InsertSubLN()(tiny("llama")))
    assert len(normed(model)) == 2
    task = SetTask("AutoModelForSequenceClassification", num_labels=3)(model)
    assert normed(task) == normed(model)
    assert logits(task).shape == (2, 3)
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), model.model.parameters(), strict=True))


def test_a_resumed_run_with_it_equals_the_uncut_one(tmp_path):
    data = models.lm_data(16)

    def trainer(out, **more):
        options = {"per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True, **more}
        stages = [Stage("plain", "2 steps"), Stage("normed", "3 steps", schedule=Resume(), transforms=[InsertSubLN()])]
        return StagedTrainer(models.llama(), tf.TrainingArguments(out, **options), train_dataset=data, stages=stages)

    whole = trainer(tmp_path / "a", save_steps=1, learning_rate=1e-2)
    whole.train()
    steps = {name: int(own["step"]) for name, own in load(tmp_path / "a/02-normed/training_state").state.items()}
    assert steps["model.layers.0.self_attn.o_proj.linear.weight"] == 5
    assert steps["model.layers.0.self_attn.o_proj.norm.weight"] == 3
    gain = whole.model.model.layers[0].self_attn.o_proj.norm.weight
    assert not torch.equal(gain, torch.ones_like(gain))

    again = StagedTrainer.from_stage(tmp_path / "a/02-normed", whole.args).model
    auto = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "a/02-normed")
    checkpoint = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "a/checkpoint-4")
    ids = torch.tensor([data[0]["input_ids"]])
    with torch.no_grad():
        expected = whole.model.eval()(ids).logits
        assert torch.equal(again(ids).logits, expected)
        assert torch.equal(auto(ids).logits, expected)
        assert not torch.equal(checkpoint(ids).logits, expected)

    cut = trainer(tmp_path / "a", save_steps=1, learning_rate=1e-2)
    (tmp_path / "a/02-normed").rename(tmp_path / "away")
    cut.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-4"))
    for (name, one), two in zip(whole.model.named_parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(one, two), name

    # A run that begins with such a model: its structure can be built anew as well.
    stages = [Stage("more", "1 steps"), Stage("branch", "1 steps", parents=[])]
    later = StagedTrainer(auto, tf.TrainingArguments(tmp_path / "b", **_quiet()), train_dataset=data, stages=stages)
    later.train()
    loaded = StagedTrainer.from_stage(tmp_path / "b/02-branch", later.args).model
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, later.model.eval()(ids).logits)


def _quiet():
    return {"per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
