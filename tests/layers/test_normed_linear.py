from __future__ import annotations

import copy

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.layers import NormedLinear


def reference(x, gain, eps, linear):
    x = x.double()
    normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gain.double()
    return normed @ linear.weight.double().T + linear.bias.double()


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3


def test_it_is_a_norm_and_then_the_linear_layer():
    linear = nn.Linear(6, 4)
    layer = NormedLinear(linear, eps=0.1)
    assert torch.equal(layer.norm.weight, torch.ones(6))
    with torch.no_grad():
        layer.norm.weight.copy_(inputs(6))
    x = inputs(2, 3, 6).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    expected = reference(twin, layer.norm.weight.detach(), 0.1, linear)
    assert torch.allclose(layer(x).double(), expected, atol=1e-6)
    layer(x).square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(x.grad, twin.grad, atol=1e-4)
    assert layer.norm.weight.grad is not None
    assert linear.weight.grad is not None


def test_the_norm_computes_in_float32():
    layer = NormedLinear(nn.Linear(512, 8).bfloat16())
    x = inputs(4, 512).bfloat16() * 1000
    assert layer.norm.weight.dtype == layer(x).dtype == torch.bfloat16
    whole = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)).bfloat16()
    assert torch.equal(layer.norm(x), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a float32 layer under autocast: the norm is exact still
        assert torch.equal(NormedLinear(nn.Linear(512, 8)).norm(x), whole)


def test_its_weight_and_sizes_are_those_of_the_linear_layer():
    for linear in (nn.Linear(6, 4), nn.Linear(6, 4, bias=False), Conv1D(4, 6)):
        layer = NormedLinear(linear)
        assert (layer.in_features, layer.out_features) == (6, 4)
        assert layer.weight is linear.weight
        assert layer.bias is getattr(linear, "bias", None)
        assert layer(inputs(2, 6)).shape == (2, 4)
        assert [name for name, _ in layer.named_parameters()][:2] == ["norm.weight", "linear.weight"]


class Rounded(nn.Linear):
    """Stands for a quantized layer: the weight that is used is computed."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight_latent = nn.Parameter(self._parameters.pop("weight").data)

    @property
    def weight(self):
        return self.weight_latent.round(decimals=1)


def test_a_subclass_may_replace_the_linear_layer():
    layer = NormedLinear(nn.Linear(6, 4))
    layer.linear = Rounded(6, 4)
    assert torch.equal(layer.weight, layer.linear.weight_latent.round(decimals=1))
    assert torch.allclose(
        layer(inputs(2, 6)).double(), reference(inputs(2, 6), torch.ones(6), 1e-6, layer.linear), atol=1e-6
    )
    assert NormedLinear(Rounded(6, 4)).in_features == 6


def test_it_copies_and_follows_device_and_mode():
    layer = NormedLinear(nn.Linear(6, 4, device="meta").eval())
    assert layer.norm.weight.is_meta
    assert not layer.training
    layer = NormedLinear(nn.Linear(6, 4))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(inputs(2, 6)), layer(inputs(2, 6)))
    assert twin.norm.weight is not layer.norm.weight
