"""Ternarize, Binarize and SplitTernary: which modules, the same function, names that transformers understands."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn

from hf_stages import Recipe, Stage
from hf_stages.core.curves import Linear
from hf_stages.layers import BinaryLinear, Quantizer, SplitEmbedding, SplitLinear, TernaryEmbedding, TernaryLinear
from hf_stages.layers.experts import QuantizedExperts
from hf_stages.layers.quantized import WithStrength
from hf_stages.models.structure import Blueprint, latent_split_on_disk, load_weights, replay, save_weights
from hf_stages.planning.model_shapes import dry_models
from hf_stages.recipes import part_from_dict, part_to_dict
from hf_stages.transforms import (
    AddLora,
    Binarize,
    Freeze,
    MergeLora,
    ReduceLayers,
    ResizeVocab,
    SetTask,
    SplitTernary,
    Ternarize,
    Unfreeze,
)
from tests.support import tiny as models

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8}
BUILD = {
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_local_experts=4)),
    "qwen2-moe": lambda: tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(**SIZES, num_experts=4, shared_expert_intermediate_size=8, decoder_sparse_step=1, **MOE)
    ),
    "gpt-oss": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(**SIZES, num_local_experts=4, head_dim=8)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)),
    "tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)),
    "gemma": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SIZES, head_dim=8, tie_word_embeddings=False)),
    "bert": models.bert,
    "t5": models.t5,
    "vit": models.vit,
}
LEFT_OUT = {
    "mixtral": {"mlp.gate", "lm_head"},
    "qwen2-moe": {"mlp.gate", "mlp.shared_expert_gate", "lm_head"},
    "gpt-oss": {"mlp.router", "mlp.experts", "lm_head"},  # of the experts their biases
    "llama": {"lm_head"},
    "tied": {"model.embed_tokens"},
    "gpt2": {"transformer.wte", "transformer.wpe"},
    "gemma": {"lm_head"},
    "bert": {"embeddings.position_embeddings", "embeddings.token_type_embeddings", "classifier"},
    "t5": {"shared", "SelfAttention.relative_attention_bias"},
    "vit": {"patch_embeddings.projection", "classifier"},
}


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


def outputs(model, rows=2):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (rows, 7), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.model_type == "t5":
        batch["decoder_input_ids"] = ids
    if model.config.model_type == "vit":
        batch = {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    with torch.no_grad():
        return model(**batch).logits


def apart(a, b):
    return ((a - b).abs().max() / a.abs().max()).item()


# ---- which modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUILD)
def test_left_out_by_default(build, kind):
    model = Ternarize()(build(kind))
    plain = {name for name, p in model.named_parameters() if p.dim() in (2, 4) and "_latent" not in name}
    assert {".".join(name.split(".")[:-1][-2:]) for name in plain} == LEFT_OUT[kind]


def test_patterns_exclude_and_embeddings(build):
    model = Ternarize(["layers.0", "embed_tokens"], exclude="mlp", embeddings=None)(build("llama"))
    made = {n for n, m in model.named_modules() if isinstance(m, TernaryLinear | TernaryEmbedding)}
    assert made == {"model.embed_tokens", *(f"model.layers.0.self_attn.{x}_proj" for x in "qkvo")}
    bare = Ternarize(embeddings=False)(build("bert"))
    assert type(bare.bert.embeddings.word_embeddings) is nn.Embedding
    both = Ternarize("layers.0", embeddings=True)(build("llama"))
    assert isinstance(both.model.embed_tokens, TernaryEmbedding)
    assert type(both.model.layers[1].mlp.up_proj) is nn.Linear


def test_the_rest_of_a_model_in_a_second_stage(build):
    model = Ternarize("layers.0", per=8)(build("llama"))
    model = Ternarize(method="absmean")(model)
    assert model.model.layers[0].mlp.up_proj.quantizer == Quantizer("ternary", "twn", 8)
    assert model.model.layers[1].mlp.up_proj.quantizer == Quantizer("ternary", "absmean", "row")


def test_each_transform_governs_the_layers_it_made(build):
    first, second = Ternarize("layers.0", strength=Linear(0, 1)), Ternarize(strength=Linear(0, 1))
    model = second(first(build("llama")))
    layers = [block.mlp.up_proj for block in model.model.layers]
    second.at(model, 0.25)
    assert layers[0].strength is None
    assert layers[1].strength == 0.25
    copied = copy.deepcopy(model)
    second.at(copied, 1.0)
    assert copied.model.layers[1].mlp.up_proj.strength is None
    assert layers[1].strength == 0.25


def test_an_equal_transform_of_an_earlier_stage_lets_go():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    transform = Ternarize("*", strength=Linear(0, 1), activations=None)
    transform(model)
    model.append(nn.Linear(4, 4))
    Ternarize("2", strength=Linear(0, 1), activations=None)(model)
    model[2].strength_owner = transform
    transform._release(model)
    transform.at(model, 0.0)
    assert all(layer.strength is None for layer in model)


# ---- the function -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixtral", "qwen2-moe", "gpt-oss"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_experts_multiply_with_rows_of_their_own_scale(build, kind, implementation):
    plain = build(kind)
    plain.config._experts_implementation = implementation
    quantized = Ternarize("experts", activations=None)(copy.deepcopy(plain))
    transposed = kind == "gpt-oss"
    for mine, theirs in zip(quantized.model.layers, plain.model.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            stack = getattr(theirs.mlp.experts, name).data
            rows = stack.transpose(1, 2) if transposed else stack
            by_hand = torch.stack([Quantizer("ternary", "twn")(matrix) for matrix in rows])
            stack.copy_(by_hand.transpose(1, 2) if transposed else by_hand)
            assert torch.allclose(getattr(mine.mlp.experts, name), stack)
    assert torch.allclose(outputs(quantized), outputs(plain), atol=1e-6)


def test_gradients_pass_straight_through_experts(build):
    plain, ids = build("mixtral"), torch.arange(5, 11)[None]
    quantized = Ternarize("experts", activations=None)(copy.deepcopy(plain))
    for mine, theirs in zip(quantized.model.layers, plain.model.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            getattr(theirs.mlp.experts, name).data.copy_(getattr(mine.mlp.experts, name))
    for model in (plain, quantized):
        model(input_ids=ids, labels=ids).loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in quantized.named_parameters():
        assert torch.allclose(parameter.grad, expected[name.replace("_latent", "")], atol=1e-6), name


def test_activations_of_experts_are_rounded_where_they_enter(build):
    experts = Ternarize("experts", activations=4)(build("mixtral")).model.layers[0].mlp.experts
    x, chosen, shares = torch.randn(5, 16), torch.tensor([[0], [1], [0], [3], [2]]), torch.ones(5, 1)

    def rounded(t):
        step = t.abs().amax(-1, keepdim=True) / 7
        return (t / step).round() * step

    wanted = []
    for row, (expert,) in zip(x, chosen.tolist(), strict=True):
        gate, up = F.linear(rounded(row), experts.gate_up_proj[expert]).chunk(2)
        wanted.append(F.linear(rounded(F.silu(gate) * up), experts.down_proj[expert]))
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        experts.config._experts_implementation = implementation
        assert torch.allclose(experts(x, chosen, shares), torch.stack(wanted), atol=1e-5), implementation


def test_ranges_of_experts_train(build):
    model = Ternarize("experts", clip=2.0, method="learned")(build("mixtral"))
    ids = torch.arange(5, 11)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    extra = [name for name, p in model.named_parameters() if name.endswith(("_clip", "_scale")) and p.grad is not None]
    assert len(extra) == 2 * 4


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("method", ["twn", "learned"])
def test_splitting_keeps_the_function(build, kind, method):
    model = Ternarize(per=8, method=method, clip=2.0 if method == "learned" else None)(build(kind))
    for module in model.modules():
        if getattr(module, "activation_clip", None) is not None:
            module.activation_clip.data.add_(0.1)  # as if trained
    before = outputs(model)
    assert apart(before, outputs(SplitTernary()(model))) < 1e-4
    assert any(isinstance(m, SplitLinear) for m in model.modules())


# ---- folders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUILD)
def test_a_folder_gives_the_same_function_back(build, kind, tmp_path):
    model = build(kind)
    blueprint, chain = Blueprint(model), [Ternarize(per=8, activations=None)]
    for transform in [None, SplitTernary()]:
        chain += [transform] if transform else []
        model = chain[-1](model)
        if latent_split_on_disk(model):
            pytest.skip("this transformers cannot store latent stacks of experts")
        folder = tmp_path / str(len(chain))
        folder.mkdir()
        save_weights(model, folder)
        stock, info = type(model).from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert apart(outputs(model), outputs(stock)) < 1e-6
        again = replay(blueprint.build(), chain).eval()
        load_weights(again, folder)
        assert torch.equal(outputs(again), outputs(model))
        for (name, mine), (other, theirs) in zip(model.named_parameters(), again.named_parameters(), strict=True):
            assert name == other
            assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("method", ["twn", "learned"])
def test_tied_weights_stay_tied(build, method, tmp_path):
    both = {"modules": ["embed_tokens", "lm_head", "layers"], "method": method}
    model = build("tied")
    blueprint, chain = Blueprint(model), [Ternarize(**both), SplitTernary()]
    for count in (1, 2):
        model = chain[count - 1](model)
        head, table = model.lm_head, model.model.embed_tokens
        assert all(a is b for a, b in zip(head.parameters(), table.parameters(), strict=True))
        model.tie_weights()
        assert all(a is b for a, b in zip(model.lm_head.parameters(), table.parameters(), strict=True))
        folder = tmp_path / str(count)
        folder.mkdir()
        model.save_pretrained(folder)
        again = replay(blueprint.build(), chain[:count]).eval()
        load_weights(again, folder)
        assert torch.equal(outputs(again), outputs(model))
        assert torch.equal(again.lm_head.latents[0], head.latents[0])
        assert again.lm_head.latents[0] is again.model.embed_tokens.latents[0]
        stock = tf.LlamaForCausalLM.from_pretrained(folder)
        assert torch.equal(stock.lm_head.weight, head.weight)
    assert isinstance(model.model.embed_tokens, SplitEmbedding)


def test_quantized_models_are_copied_and_pickled(build):
    model = Ternarize()(build("mixtral"))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other.model.layers[0].mlp.experts, QuantizedExperts)
        assert torch.equal(outputs(other), outputs(model))


def test_full_precision_weights_read_into_quantized_experts(build):
    plain = build("mixtral")
    quantized = Ternarize()(copy.deepcopy(plain))
    for parameter in quantized.parameters():
        parameter.data.zero_()
    quantized.load_state_dict(plain.state_dict())
    assert torch.equal(
        quantized.model.layers[0].mlp.experts.down_proj_latent, plain.model.layers[0].mlp.experts.down_proj
    )


# ---- beside other transforms ------------------------------------------------------------------------------------------------


def test_moments_go_along(build):
    model = build("mixtral")
    chain = [Ternarize(), SplitTernary()]
    names = [[n for n, _ in model.named_parameters()]]
    for transform in chain:
        model = transform(model)
        names.append([n for n, _ in model.named_parameters()])
    first, second = (t.moves(a, b) for t, a, b in zip(chain, names, names[1:], strict=False))
    expert = "model.layers.0.mlp.experts.down_proj"
    assert first[expert] == [f"{expert}_latent"]
    assert first["lm_head.weight"] == ["lm_head.weight"]
    assert second[f"{expert}_latent"] == [f"{expert}_latent_1", f"{expert}_latent_2"]
    assert {new for news in first.values() for new in news} == set(names[1])
    assert {new for news in second.values() for new in news} == set(names[2])


def test_freezing_by_the_plain_names(build):
    model = SplitTernary("layers.0")(Ternarize(method="learned")(build("mixtral")))
    Freeze(["*.self_attn.*.weight", "experts.down_proj"])(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "model.layers.0.self_attn.q_proj.weight_latent_2" in frozen
    assert "model.layers.1.mlp.experts.down_proj_scale" in frozen
    assert not any("gate_up" in name or "norm" in name for name in frozen)
    Unfreeze("q_proj.weight")(model)
    assert model.model.layers[1].self_attn.q_proj.weight_scale.requires_grad


def test_frozen_layers_stay_frozen(build):
    model = Freeze("layers.0")(build("mixtral"))
    model = SplitTernary()(Ternarize(method="learned", clip=1.0)(model))
    assert not any(p.requires_grad for p in model.model.layers[0].parameters())
    assert all(p.requires_grad for p in model.model.layers[1].parameters())


def test_a_new_task_keeps_the_quantized_body(build):
    model = SplitTernary("layers.0")(Ternarize()(build("mixtral")))
    new = SetTask("AutoModelForSequenceClassification", num_labels=3)(model)
    assert isinstance(new.model.layers[1].mlp.experts, QuantizedExperts)
    kept = {n: p for n, p in model.named_parameters() if not n.startswith("lm_head")}
    assert all(torch.equal(dict(new.named_parameters())[n], p) for n, p in kept.items())
    assert isinstance(new.model.layers[0].self_attn.q_proj, SplitLinear)


def test_a_head_that_the_config_ties_to_quantized_embeddings_is_refused(build):
    model = Ternarize()(build("bert"))
    with pytest.raises(
        ValueError, match=r"SetTask: tied weights: .* ties .*decoder.weight to .*; quantize both or neither"
    ):
        SetTask("AutoModelForMaskedLM")(model)
    SetTask("AutoModelForMaskedLM")(Ternarize(embeddings=False)(build("bert")))


def test_layers_and_vocabulary(build):
    model = Ternarize(embeddings=False)(build("mixtral"))
    model = ResizeVocab(48)(ReduceLayers([2])(model))
    assert outputs(model).shape[-1] == 48
    quantized = Ternarize()(build("llama"))
    with pytest.raises(ValueError, match="put ResizeVocab before the transform"):
        ResizeVocab(48)(quantized)


@pytest.mark.parametrize(("kind", "dora"), [("llama", False), ("llama", True), ("gpt2", False)])
def test_low_rank_additions_on_ternary_layers(build, kind, dora):
    model = Ternarize()(build(kind))
    target = "q_proj" if kind == "llama" else "c_attn"
    before, ids = outputs(model), torch.arange(5, 11)[None]
    model = AddLora(r=2, target_modules=[target], use_dora=dora)(model)
    assert apart(before, outputs(model.eval())) < (1e-5 if not dora else 1e-3)
    model(input_ids=ids, labels=ids).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    with pytest.raises(ValueError, match="expected a plain layer, got a TernaryLinear"):
        MergeLora()(model)
    with pytest.raises(ValueError, match="merge it first"):
        Ternarize()(model)


def test_dora_on_quantized_conv1d_is_refused(build):
    with pytest.raises(ValueError, match=r"AddLora: use_dora: .*leave use_dora out"):
        AddLora(r=2, target_modules=["c_attn"], use_dora=True)(Ternarize()(build("gpt2")))


def test_generation(build):
    model = Ternarize()(build("llama"))
    ids = model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    steps = torch.tensor([[5, 6]])
    for _ in range(4):
        with torch.no_grad():
            steps = torch.cat([steps, model(steps).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids, steps[:, : ids.shape[1]])


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_all_means_the_rest_where_layers_are_binary_or_split(build, kind):
    mixed = Ternarize()(Binarize(["self_attn"])(build(kind)))
    levels = {path: m.levels for path, m in mixed.named_modules() if isinstance(m, WithStrength)}
    assert {path for path, level in levels.items() if level == "binary"} == {p for p in levels if ".self_attn." in p}
    assert len(levels) == len([m for m in Ternarize()(build(kind)).modules() if isinstance(m, WithStrength)])
    split = Binarize()(SplitTernary()(Ternarize("mlp")(build(kind))))
    assert {m.split for p, m in split.named_modules() if isinstance(m, WithStrength) and ".mlp" in p} == {True}
    assert isinstance(split.model.layers[0].self_attn.q_proj, BinaryLinear)


# ---- refusals ---------------------------------------------------------------------------------------------------------------


class Odd(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def _odd(model):
    model.model.layers[0].mlp.up_proj = Odd(16, 24, bias=False)
    return model


def test_layers_with_a_forward_pass_of_their_own_are_left_out(build):
    model = Ternarize()(_odd(build("llama")))
    assert type(model.model.layers[0].mlp.up_proj) is Odd
    assert isinstance(model.model.layers[1].mlp.up_proj, TernaryLinear)


B, T, S = Binarize(), Ternarize(), SplitTernary()
REFUSED = {
    "nothing": ([Ternarize("no_such")], "modules: the pattern 'no_such' matches nothing; there are names"),
    "odd": ([Ternarize("layers.0.mlp.up_proj")], "is a Odd, whose forward pass is not known"),
    "group": ([Ternarize(per=7)], "per: groups of 7 do not fill rows of 16 weights; choose a divisor of 16"),
    "all-out": ([Ternarize(exclude="*")], "nothing left to quantize"),
    "split-plain": ([S], "expected ternary layers, got a .* without quantized layers"),
    "split-binary": ([B, S], "expected ternary layers, got a .* quantized layers are binary"),
    "split-twice": ([T, S, S], "expected ternary layers"),
    "split-pattern": ([T, SplitTernary("lm_head")], "modules: the pattern 'lm_head' matches nothing"),
    "binary-ternary": ([B, T], "is binary already; ternary comes before binary"),
    "split-binarize": ([T, S, B], "was split into two binary halves already"),
    "split-ternarize": ([T, S, T], "was split into two binary halves already"),
    "twice": ([T, T], "nothing left to quantize"),
    "twice-named": ([T, Ternarize("layers.0.self_attn")], "is ternary already; leave this transform out"),
    "peft": ([AddLora(r=2, target_modules=["q_proj"]), T], "merge it first: MergeLora"),
    "merge": ([T, AddLora(r=2, target_modules=["q_proj"]), MergeLora()], "merge before quantizing"),
    "vocab": ([T, ResizeVocab(48)], "put ResizeVocab before the transform which made it"),
    "latents": ([T, Freeze("no_such")], "matches nothing; there are names such as"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_the_plan(build, name):
    chain, message = REFUSED[name]
    model = _odd(build("llama")) if name == "odd" else build("llama")
    stages = [Stage(f"s{i}", "1 steps", transforms=[t]) for i, t in enumerate(chain)]
    with pytest.raises(
        ValueError, match=rf"stage 's{len(chain) - 1}': transforms\[0\] {type(chain[-1]).__name__}.*{message}"
    ):
        dry_models(Recipe(stages), model.to("meta"))


@pytest.mark.parametrize("modules", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("kind", [Ternarize, Binarize])
def test_one_side_of_a_tie_is_refused(build, kind, modules):
    with pytest.raises(ValueError, match=r"shares its weight with .*, which is not to be quantized; name both"):
        kind(modules)(build("tied"))
    way = rf"leave embeddings=True out, or name both in {kind.__name__}\(modules=...\)"
    with pytest.raises(ValueError, match=rf"model.embed_tokens shares its weight with lm_head, .*; {way}"):
        kind(embeddings=True)(build("tied"))


def test_models_quantized_by_others_are_refused(build):
    model = build("llama")
    model.is_quantized = True
    with pytest.raises(
        ValueError, match="expected full-precision weights to train, got a model that is quantized already"
    ):
        Ternarize()(model)
    foreign = type("Linear4bit", (nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    model = build("llama")
    model.model.layers[0].mlp.up_proj = foreign(16, 24)
    with pytest.raises(ValueError, match=r"quantized already \(Linear4bit\); load it without quantization_config"):
        Ternarize("layers.1")(model)


def test_unknown_ways_of_multiplying_experts_refuse_activations():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(2, 8, 12))
            self.down_proj = nn.Parameter(torch.randn(2, 6, 8))

        def forward(self, x):
            return torch.bmm(torch.bmm(x, self.gate_up_proj)[..., :6], self.down_proj)

    model = nn.Sequential(Experts())
    with pytest.raises(ValueError, match="cannot be rounded; give activations=None"):
        Ternarize("0")(model)
    x = torch.randn(2, 3, 8)
    own = Ternarize("0", activations=None)(model)(x)
    assert model[0].transposed
    assert torch.allclose(own, torch.bmm(torch.bmm(x, model[0].gate_up_proj)[..., :6], model[0].down_proj))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": Linear(0, 0.5)}, "expected 1 at the stage's end"),
        ({"strength": 0.5}, "expected 1 at the stage's end"),
        ({"strength": Linear(-1, 1)}, "expected values from 0 to 1"),
        ({"per": 0}, "per: expected"),
        ({"activations": 3}, "activations: bits: expected 8 or 4"),
        ({"activations": None, "clip": 1.0}, "expected 8 or 4 beside"),
        ({"method": "mean"}, "method: expected one of"),
        ({"embeddings": "yes"}, "embeddings: expected True, False or None"),
        ({"modules": 3}, "modules: expected a name pattern"),
    ],
)
def test_declarations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=f"Ternarize: .*{message}"):
        Ternarize(**options)


def test_read_and_written(build):
    part = {"use": "Ternarize", "per": 64, "strength": {"use": "Linear", "start": 0, "end": 1}}
    transform = part_from_dict(part, "transforms")
    assert transform == Ternarize(per=64, strength=Linear(0, 1))
    assert part_from_dict(part_to_dict(transform, "transforms"), "transforms") == transform
    assert part_to_dict(transform, "transforms") == part
    assert isinstance(Binarize()(build("llama")).model.layers[0].mlp.up_proj, BinaryLinear)
