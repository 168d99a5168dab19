"""Layers of experts: scales, gradients, activations and saved weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_stages.layers import Quantizer, SplitLinear
from hf_stages.transforms import (
    SplitTernary,
    Ternarize,
)
from tests.transforms.quantized_models import BUILD, apart, outputs


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


def test_full_precision_weights_read_into_quantized_experts(build):
    plain = build("mixtral")
    quantized = Ternarize()(copy.deepcopy(plain))
    for parameter in quantized.parameters():
        parameter.data.zero_()
    quantized.load_state_dict(plain.state_dict())
    assert torch.equal(
        quantized.model.layers[0].mlp.experts.down_proj_latent, plain.model.layers[0].mlp.experts.down_proj
    )


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
