"""Which modules are quantized, and what a model can still do then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hf_stages.core.curves import Linear
from hf_stages.layers import BinaryLinear, Quantizer, TernaryEmbedding, TernaryLinear
from hf_stages.layers.quantized import WithStrength
from hf_stages.recipes import part_from_dict, part_to_dict
from hf_stages.transforms import (
    Binarize,
    SplitTernary,
    Ternarize,
)
from tests.transforms.quantized_models import BUILD, LEFT_OUT, OwnForward, with_own_forward


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


def test_a_ternary_model_generates_with_a_cache(build):
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


def test_layers_with_a_forward_pass_of_their_own_are_left_out(build):
    model = Ternarize()(with_own_forward(build("llama")))
    assert type(model.model.layers[0].mlp.up_proj) is OwnForward
    assert isinstance(model.model.layers[1].mlp.up_proj, TernaryLinear)


def test_it_reads_and_writes_as_a_recipes_part(build):
    part = {"use": "Ternarize", "per": 64, "strength": {"use": "Linear", "start": 0, "end": 1}}
    transform = part_from_dict(part, "transforms")
    assert transform == Ternarize(per=64, strength=Linear(0, 1))
    assert part_from_dict(part_to_dict(transform, "transforms"), "transforms") == transform
    assert part_to_dict(transform, "transforms") == part
    assert isinstance(Binarize()(build("llama")).model.layers[0].mlp.up_proj, BinaryLinear)
