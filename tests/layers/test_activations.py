"""Activations in 8 or 4 bits, against references of a few lines."""

from __future__ import annotations

import pytest
import torch

from hf_stages.layers import Activations


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 3 * torch.randn(*(shape or (5, 16)), generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("bits", [8, 4])
def test_symmetric_rounding_equals_the_reference(bits):
    x, top = tokens(), 2 ** (bits - 1) - 1
    step = x.abs().max(-1, keepdim=True).values / top
    torch.testing.assert_close(Activations(bits)(x), (x / step).round() * step)


@pytest.mark.parametrize("bits", [8, 4])
def test_asymmetric_rounding_equals_the_reference(bits):
    x, top = tokens() + 2, 2**bits - 1
    low, high = x.min(-1, keepdim=True).values.clamp(max=0), x.max(-1, keepdim=True).values.clamp(min=0)
    step = (high - low) / top
    zero = (-low / step).round()
    found = Activations(bits, symmetric=False)(x)
    torch.testing.assert_close(found, (((x / step).round() + zero).clamp(0, top) - zero) * step)
    assert float((found - x).abs().max()) <= float(step.max()) * 1.01


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [None, 2.0])
def test_codes_in_bytes_give_the_same_activations(symmetric, clip):
    activations = Activations(8, symmetric, clip)
    range_ = None if clip is None else activations.initial_range()
    for x in (tokens(), tokens(2, 3, 4), tokens(7), tokens(1, 4), torch.zeros(2, 4), -tokens().abs(), tokens(0, 4)):
        coded = activations.encode(x, range_)
        assert coded[0].element_size() == 1
        assert torch.equal(activations.decode(coded, x.dtype), activations(x, range_))
        assert (activations(torch.zeros_like(x), range_) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_round_as_float32_does(dtype):
    x = (6e3 * tokens()).to(dtype)
    found = Activations()(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, Activations()(x.float()).to(dtype))
    small = tokens(dtype=dtype) * 1e-4  # steps below what float16 holds
    torch.testing.assert_close(Activations()(small), Activations()(small.float()).to(dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [None, 2.0])
def test_a_token_with_nan_or_infinity_becomes_nan(bad, symmetric, clip):
    activations, x = Activations(8, symmetric, clip), tokens()
    x[1, 2] = bad
    found = activations(x, None if clip is None else activations.initial_range())
    assert found[1].isnan().all()
    assert found[[0, 2, 3, 4]].isfinite().all()


def clipped(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, top: int, zero: bool) -> torch.Tensor:
    """LSQ with autograd. What lies beyond the range is its end; rounding is the identity to a gradient."""
    step = (high - low) / top if zero else high / top
    inner = torch.where(x > high, high, torch.where(x < low, low, x))
    codes = inner / step
    return ((codes.round() - codes).detach() + codes) * step


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_a_learned_range_equal_autograd(symmetric):
    activations, x = Activations(8, symmetric, 2.0), tokens().requires_grad_()
    clip = activations.initial_range().requires_grad_()
    low, high = (-clip, clip) if symmetric else (clip[:1], clip[1:])
    grad = tokens(5, 16).flip(0)
    clipped(x, low, high, activations.top, not symmetric).backward(grad)
    of_x, of_clip = activations.gradients(grad, x, clip)
    torch.testing.assert_close(of_x, x.grad)
    assert (x.grad == 0).any()
    torch.testing.assert_close(of_clip, clip.grad / (16 * activations.top) ** 0.5, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_range_driven_through_zero_stays_usable(symmetric):
    activations, x = Activations(8, symmetric, 2.0), tokens()
    clip = torch.zeros(1) - 1 if symmetric else torch.tensor([0.5, -0.5])
    assert activations(x, clip).isfinite().all()
    of_x, of_clip = activations.gradients(torch.ones_like(x), x, clip)
    assert of_x.isfinite().all()
    assert of_clip.isfinite().all()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"bits": 6}, "bits: expected 8 or 4, got 6"),
        ({"clip": 0}, "above 0, got 0"),
        ({"clip": float("inf")}, "above 0, got inf"),
    ],
)
def test_bits_and_clip_that_do_not_fit_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        Activations(**given)
