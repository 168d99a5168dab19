"""Quantized linear layers compute what plain ones do with the quantized weight."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from hf_stages.layers import Activations, BinaryLinear, Quantizer, SplitLinear, TernaryLinear
from tests.layers.linear_kinds import ACTIVATIONS, built, each_kind, inputs


def plain(layer, x: torch.Tensor) -> torch.Tensor:
    """The layer in autograd's own operations: straight through by detaching."""
    entered = x
    if layer.activations is not None:
        clip = layer.activation_clip
        rounded = layer.activations(x, clip)
        within = x
        if clip is not None:
            low, high = (-clip, clip) if layer.activations.symmetric else (clip[0], clip[1])
            within = x * ((x >= low) & (x <= high))
        entered = rounded.detach() + within - within.detach()
    return F.linear(entered, layer.weight, layer.bias)


def gradients(layer, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    names = [name for name, _ in layer.named_parameters() if name != "activation_clip"]
    found = torch.autograd.grad(y.square().sum(), [x, *(layer.get_parameter(name) for name in names)])
    return list(found)


@each_kind
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_it_equals_plain_operations_on_the_quantized_weight(kind, method, strength):
    for activations in ACTIVATIONS if strength == 1 else [None]:
        layer, x = built(kind, method, activations), inputs()
        layer.set_strength(strength)
        y, expected = layer(x), plain(layer, x)
        torch.testing.assert_close(y, expected)
        for found, wanted in zip(gradients(layer, x, y), gradients(layer, x, expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@each_kind
def test_the_weight_is_quantized(kind, method):
    layer = built(kind, method)
    scales = layer.scales or [None] * len(layer.latents)
    parts = [layer.quantizer(latent, scale) for latent, scale in zip(layer.latents, scales, strict=True)]
    torch.testing.assert_close(layer.weight, sum(parts))
    assert layer.weight.requires_grad
    with torch.no_grad():
        assert not layer.weight.requires_grad


@each_kind
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_strength_blends_from_the_latent_weight_to_the_quantized_one(kind, method, activations):
    layer, x = built(kind, method, activations), inputs()
    quantized = layer(x)
    layer.set_strength(0.0)
    torch.testing.assert_close(layer(x), F.linear(x, sum(layer.latents), layer.bias))
    y = layer(x)
    y.square().sum().backward()
    wanted = torch.autograd.grad(F.linear(x, sum(layer.latents), layer.bias).square().sum(), [x, layer.latents[0]])
    torch.testing.assert_close([x.grad, layer.latents[0].grad], list(wanted), rtol=1e-4, atol=1e-4)
    assert all((scale.grad == 0).all() for scale in layer.scales)
    layer.set_strength(0.5)
    assert not torch.allclose(layer(x), y)
    assert not torch.allclose(layer(x), quantized)
    layer.set_strength(1)
    assert torch.equal(layer(x), quantized)
    layer.set_strength(0.3)
    assert not list(layer.buffers())  # DDP fails when its last one becomes None
    assert float(copy.deepcopy(layer).half().strength) == pytest.approx(0.3)
    assert layer.to("meta").strength.is_meta
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength: expected a number from 0"):
            layer.set_strength(wrong)


@each_kind
def test_conv1d_is_the_same_layer_transposed(kind, method):
    layer = built(kind, method, 8, per="row")
    gpt = Conv1D(6, 16)
    gpt.bias.data.copy_(layer.bias.data)
    latents = [nn.Parameter(latent.detach().t().contiguous()) for latent in layer.latents]
    other = kind.from_layer(
        gpt, layer.quantizer, layer.activations, latents, [s.detach().clone() for s in layer.scales]
    )
    assert (other.in_features, other.out_features) == (16, 6)
    x = inputs()
    torch.testing.assert_close(other(x), layer(x))
    torch.testing.assert_close(other.weight, layer.weight.t())
    other(x).square().sum().backward()
    layer(x).square().sum().backward()
    for latent, wanted in zip(other.latents, layer.latents, strict=True):
        torch.testing.assert_close(latent.grad, wanted.grad.t())
    assert save(other.state_dict())


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_inputs_of_any_shape_give_outputs_and_gradients(activations):
    layer = built(BinaryLinear, activations=activations)
    for shape in [(16,), (1, 16), (0, 16), (2, 0, 16), (2, 3, 4, 16)]:
        x = inputs(*shape)
        layer.zero_grad()
        y = layer(x)
        y.sum().backward()
        assert y.shape == (*shape[:-1], 6)
        assert x.grad.shape == x.shape
        assert layer.weight_latent.grad.shape == layer.weight_latent.shape
    strided = inputs(3, 16, 5).transpose(1, 2)
    torch.testing.assert_close(layer(strided), layer(strided.contiguous()))


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_in_a_token_show_in_its_outputs_alone(activations, bad):
    layer, x = built(BinaryLinear, activations=activations), inputs(3, 16).detach()
    x[1, 4] = bad
    y = layer(x)
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


def kept(layer: nn.Module, x: torch.Tensor) -> int:
    """Bytes of what autograd holds between forward and backward, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert y.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("strength", [1.0, 0.5])
@each_kind
def test_it_keeps_no_more_memory_for_the_backward_pass_than_a_plain_layer(kind, method, strength):
    """Beside the input, or a quarter of it, only the rows' scales and thresholds, and each token's."""
    x, halves = inputs(64, 64), 2 if kind is SplitLinear else 1
    most = kept(nn.Linear(64, 32), x)
    rows = 4 * 32 * 2 * halves
    for activations in ACTIVATIONS:
        layer = kind(64, 32, method=method, activations=activations)
        layer.set_strength(strength)
        codes = strength == 1 and getattr(layer.activations, "clip", 1) is None
        assert kept(layer, x) <= (most // 4 + 2 * 4 * 64 if codes else most) + rows + 4
        layer.requires_grad_(False)  # under LoRA
        if getattr(layer.activations, "clip", None) is None:
            assert kept(layer, x) <= rows + 4


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_autocast_gives_what_a_plain_layer_gives(activations):
    layer, x = built(TernaryLinear, "twn", activations), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = layer(x), plain(layer, x.bfloat16())
        assert layer(x.double()).dtype == torch.float64
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2)
    y.float().square().sum().backward()
    assert layer.weight_latent.grad.dtype == x.grad.dtype == torch.float32


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_compute_the_same_within_their_precision(kind, method, dtype):
    for activations in (None, 8, Activations(8, clip=1.5)):
        layer, x = built(kind, method, activations), inputs(dtype=dtype)
        wanted = layer(x.detach().float())
        layer = layer.to(dtype)
        y = layer(x)
        assert {y.dtype, layer.weight.dtype} == {dtype}
        torch.testing.assert_close(y.float(), wanted, rtol=0.1, atol=0.1)
        y.sum().backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in layer.parameters())


@each_kind
def test_checkpointing_and_a_layer_used_twice_give_the_same_gradients(kind, method):
    layer, x = built(kind, method, Activations(8, clip=1.5), bias=False), inputs()
    square = kind(6, 16, method=method)
    chain = nn.Sequential(layer, square, layer)
    wanted = torch.autograd.grad(chain(x).square().sum(), [x, *chain.parameters()])
    for reentrant in (False, True):
        y = checkpoint(chain, x, use_reentrant=reentrant).square().sum()
        y.backward()
        assert torch.equal(x.grad, wanted[0])
        assert all(torch.equal(p.grad, g) for p, g in zip(chain.parameters(), wanted[1:], strict=True))
        x.grad = None
        chain.zero_grad()


def test_the_two_halves_have_gradients_of_their_own():
    layer = built(SplitLinear)
    layer(inputs()).sum().backward()
    one, two = (latent.grad for latent in layer.latents)
    assert torch.equal(one, two)
    assert one.data_ptr() != two.data_ptr()


@each_kind
def test_frozen_latents_get_no_gradient(kind, method):
    layer, x = built(kind, method, 8).requires_grad_(False), inputs()
    layer(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in layer.parameters())
    assert not layer(x.detach()).requires_grad


def test_evaluation_gives_the_same_values():
    layer, x = built(TernaryLinear, "twn", 8).eval(), inputs()
    wanted = layer(x).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(layer(x.detach()), wanted)
            assert layer.weight.shape == (6, 16)


def test_a_second_derivative_is_refused():
    """Not silently wrong: the backward pass is not differentiable."""
    layer, x = built(BinaryLinear), inputs()
    (of_x,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_x.sum().backward()


def test_a_changed_latent_is_noticed_before_backward():
    layer = built(BinaryLinear)
    y = layer(inputs()).sum()
    with torch.no_grad():
        layer.weight_latent.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_groups_and_activations_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="groups of 5 do not fill rows of 16 weights"):
        BinaryLinear(16, 4, per=5)
    with pytest.raises(ValueError, match=r"activations: expected 8, 4, Activations\(...\) or None, got '8'"):
        BinaryLinear(16, 4, activations="8")
    with pytest.raises(ValueError, match="expected a layer of one weight, got a SplitLinear"):
        BinaryLinear.from_layer(SplitLinear(4, 4), Quantizer("binary", "mean"))
