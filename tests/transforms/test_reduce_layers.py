from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers as tf

from hf_stages import Stage, StagedTrainer
from hf_stages.layers import stack_of
from hf_stages.models.optimizer_moments import load
from hf_stages.schedules import Resume
from hf_stages.transforms import AddLora, ReduceLayers
from tests.support import tiny as models

GPT2 = tf.GPT2Config(n_embd=16, n_layer=4, n_head=2, vocab_size=64, bos_token_id=1, eos_token_id=2)
DEEP = {
    "bert": lambda: models.bert(num_hidden_layers=4),
    "llama": lambda: models.llama(num_hidden_layers=4),
    "vit": lambda: models.vit(num_hidden_layers=4),
    "gpt2": lambda: tf.GPT2LMHeadModel(copy.deepcopy(GPT2)),
    "encoder": lambda: models.t5(num_layers=4, num_decoder_layers=4),
    "decoder": lambda: models.t5(num_layers=4, num_decoder_layers=4),
}


def deep(kind):
    torch.manual_seed(0)
    model = DEEP[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def reduce(kind, keep):
    return ReduceLayers(keep, stack=kind if kind in ("encoder", "decoder") else None)


def outputs(model):
    ids = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(1))
    batch = (
        {"pixel_values": torch.linspace(0, 1, 2 * 3 * 256).view(2, 3, 16, 16)}
        if model.config.model_type == "vit"
        else {"input_ids": ids}
    )
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("kind", DEEP)
def test_is_the_model_without_the_other_blocks_and_loads_again(kind, tmp_path):
    model = deep(kind)
    before, whole = dict(model.named_parameters()), outputs(model)
    _, blocks = stack_of(model, reduce(kind, [1]).stack)
    kept = [blocks[2], blocks[0], blocks[3]]
    part = reduce(kind, [3, 1, -1])
    assert part(model) is model
    assert list(stack_of(model, part.stack)[1]) == kept
    after = dict(model.named_parameters())
    moves = part.moves(list(before), list(after))
    assert {new[0] for new in moves.values()} == set(after)
    assert all(after[new] is before[old] for old, (new,) in moves.items())
    assert not torch.allclose(outputs(model), whole, atol=1e-3)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert len(stack_of(loaded, part.stack)[1]) == 3
    assert torch.equal(outputs(loaded), outputs(model))
    for name, module in model.named_modules():  # what comes with the config, all through
        for key in ("layer_idx", "has_relative_attention_bias"):
            assert getattr(module, key, None) == getattr(loaded.get_submodule(name), key, None)
    for config, other in zip(_configs(model), _configs(loaded), strict=True):
        assert config.num_hidden_layers == other.num_hidden_layers


def _configs(model):
    return [module.config for module in model.modules() if hasattr(module, "config")]


# Not the encoder: transformers 5.23 makes any T5's cache as deep as its encoder, too short for a deeper decoder.
@pytest.mark.parametrize("kind", ["llama", "gpt2", "decoder"])
def test_the_cache_is_right(kind):
    model = reduce(kind, [4, 2])(deep(kind))
    ids = torch.tensor([[5, 6, 7]])
    made = [
        model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=63, use_cache=use) for use in (True, False)
    ]
    assert made[0].shape[1] > 4
    assert torch.equal(*made)


@pytest.mark.parametrize("keep", [[2, 3], [2, 1]])
def test_position_biases_stay_in_the_first_block(keep):
    model = deep("encoder")
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    blocks = reduce("encoder", keep)(model).encoder.block
    assert blocks[0].layer[0].SelfAttention.relative_attention_bias is bias
    assert [block.layer[0].SelfAttention.has_relative_attention_bias for block in blocks] == [True, False]
    assert not hasattr(blocks[1].layer[0].SelfAttention, "relative_attention_bias")


def test_lists_with_an_entry_per_layer_are_reduced():
    layers = ["sliding_attention", "full_attention"] * 2
    config = tf.Qwen3Config(
        **{**models.llama_config().to_dict(), "num_hidden_layers": 4, "layer_types": layers, "head_dim": 8}
    )
    model = ReduceLayers([1, 3, 4])(tf.Qwen3ForCausalLM(config))
    assert model.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert model.config is model.model.config


def test_what_knows_the_depth_of_a_tower():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = tf.CLIPConfig(text_config=dict(sizes), vision_config={**sizes, "image_size": 28, "patch_size": 14})
    model = ReduceLayers([-1], stack="text_model")(tf.CLIPModel(config))
    assert (model.config.text_config.num_hidden_layers, model.config.vision_config.num_hidden_layers) == (1, 3)


def test_what_the_config_cannot_say_is_refused():
    config = {
        **models.llama_config().to_dict(),
        "num_hidden_layers": 4,
        "head_dim": 8,
        "num_experts": 2,
        "mlp_only_layers": [0],
    }
    config |= {"num_experts_per_tok": 1, "moe_intermediate_size": 8}
    model = tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**config))
    with pytest.raises(
        ValueError, match=r"layers.0.mlp: the kept block has Qwen3MoeSparseMoeBlock, .* would build Qwen3MoeMLP"
    ):
        ReduceLayers([2, 3])(model)
    assert len(model.model.layers) == model.config.num_hidden_layers == 4  # refused before anything was changed
    ReduceLayers([1, 3])(model)


def test_a_skeleton_is_reduced_too(tiny):
    model = ReduceLayers([2])(tiny("llama", meta=True))
    assert model.config.num_hidden_layers == len(model.model.layers) == 1
    assert model.model.layers[0].self_attn.layer_idx == 0
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("keep", [[], [0], [1.5], [True], "2", 3, [1, 2, 1], None])
def test_bad_values_are_refused_at_once(keep):
    with pytest.raises(ValueError, match="ReduceLayers: keep: expected"):
        ReduceLayers(keep)


def test_refusals_name_the_model(tiny):
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: keep: expected layers 1 to 2 .* got 3"):
        ReduceLayers([1, 3])(tiny("llama"))
    with pytest.raises(ValueError, match="LlamaForCausalLM: keep: expected each layer once, got 2 and -1"):
        ReduceLayers([2, -1])(tiny("llama"))
    with pytest.raises(ValueError, match="ReduceLayers: T5ForConditionalGeneration: it has 2 stacks"):
        ReduceLayers([1])(tiny("t5"))
    with pytest.raises(ValueError, match="ReduceLayers: expected a transformers model, got a Linear"):
        ReduceLayers([1])(torch.nn.Linear(2, 2))
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="ReduceLayers: expected a model without adapters"):
        ReduceLayers([1])(AddLora(2)(tiny("llama")))


def test_moments_are_not_guessed_where_names_leave_a_choice(names):
    model = models.t5()
    before = names(model)
    assert ReduceLayers([2, 1], stack="encoder").moves(before, before)["encoder.block.0.layer.1.layer_norm.weight"] == [
        "encoder.block.1.layer.1.layer_norm.weight"
    ]
    assert ReduceLayers([2, 1]).moves(before, before) == {}


def test_it_is_a_plain_value():
    part = ReduceLayers([2, -1], stack="encoder")
    assert part == pickle.loads(pickle.dumps(part)) == eval(repr(part))
    assert hash(part)


def test_a_stage_with_it_trains_and_its_folder_loads(tmp_path):
    data = models.class_data(8)
    args = tf.TrainingArguments(
        tmp_path, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    stages = [
        Stage("deep", "2 steps"),
        Stage("shallow", "2 steps", schedule=Resume(), transforms=[ReduceLayers([2, 4])]),
        Stage("again", "1 steps"),
    ]
    trainer = StagedTrainer(deep("bert"), args, train_dataset=data, stages=stages)
    trainer.train()
    for folder in ("02-shallow", "03-again"):
        loaded = tf.BertForSequenceClassification.from_pretrained(tmp_path / folder)
        assert loaded.config.num_hidden_layers == len(loaded.bert.encoder.layer) == 2
    model = StagedTrainer.from_stage(tmp_path / "02-shallow", args).model.eval()
    plainly = tf.BertForSequenceClassification.from_pretrained(tmp_path / "02-shallow")
    assert torch.equal(outputs(model), outputs(plainly))
    # Adam counts its steps by parameter: two in the deep model, two more in the shallow one.
    state = load(tmp_path / "02-shallow" / "training_state").state
    assert {name: int(own["step"]) for name, own in state.items()} == dict.fromkeys(dict(plainly.named_parameters()), 4)
