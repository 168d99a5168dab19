"""Quantized models saved, loaded, frozen, resumed and given other heads."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers as tf

from hf_stages.layers import SplitEmbedding, SplitLinear
from hf_stages.layers.experts import QuantizedExperts
from hf_stages.models.structure import Blueprint, latent_split_on_disk, load_weights, replay, save_weights
from hf_stages.transforms import (
    AddLora,
    Freeze,
    MergeLora,
    ReduceLayers,
    ResizeVocab,
    SetTask,
    SplitTernary,
    Ternarize,
    Unfreeze,
)
from tests.transforms.quantized_models import BUILD, apart, outputs


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


def test_moments_follow_latent_weights_through_a_split(build):
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
