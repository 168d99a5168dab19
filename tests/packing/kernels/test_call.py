"""Calls that are checked once, against calls that are checked each time."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from hf_stages.layers import Activations
from hf_stages.packing.kernels import library
from tests.packing.kernels.random_layers import packed, run

pytestmark = pytest.mark.skipif(library.library_path() is None, reason="the kernels' library is not built, or left out")
ROUNDED = Activations()


def remembered(p, bias=None, rows=2):
    cache: dict = {}
    run(torch.randn(rows, p.columns), p, bias, ROUNDED, cache=cache)
    assert "call" in cache
    return cache


@pytest.mark.parametrize("levels", ["ternary", "binary", "split"])
@pytest.mark.parametrize("shape", [(3, 20), (1, 2, 20), (20,), (0, 20), (2, 40, 20)])
def test_a_prepared_call_equals_a_checked_call(levels, shape):
    p, bias = packed(levels, 7, 20, groups=1), torch.randn(7)
    cache, x = remembered(p, bias), torch.randn(shape)
    assert cache["call"].fits(x, p.weight, p.scale, bias)
    got = run(x, p, bias, ROUNDED, cache=cache)
    assert torch.equal(got, run(x, p, bias, ROUNDED))


def test_other_inputs_take_the_checked_way():
    p, bias = packed("ternary", 7, 20), torch.randn(7)
    cache = remembered(p, bias)
    call = cache["call"]
    others = [
        torch.randn(3, 20, dtype=torch.bfloat16),
        torch.randn(20, 3).t(),
        torch.randn(3, 20, requires_grad=True),
        torch.nn.Parameter(torch.randn(3, 20), requires_grad=False),
    ]
    for x in others:
        assert not call.fits(x, p.weight, p.scale, bias)
        assert torch.equal(run(x, p, bias, ROUNDED, cache=cache), run(x, p, bias, ROUNDED))
    assert cache["call"] is call
    with pytest.raises(ValueError, match="expected"):
        run(torch.randn(3, 16), p, bias, ROUNDED, cache=cache)
    with pytest.raises(ValueError, match="expected"):
        run(torch.tensor(1.0), p, bias, ROUNDED, cache=cache)


def test_gradients_are_kept_after_a_call_without_them():
    p, bias = packed("binary", 7, 20), torch.randn(7, requires_grad=True)
    with torch.no_grad():
        cache = remembered(p, bias)
        assert cache["call"].fits(torch.randn(2, 20), p.weight, p.scale, bias)
    x = torch.randn(2, 20)
    (found,) = torch.autograd.grad(run(x, p, bias, ROUNDED, cache=cache).sum(), bias)
    assert torch.equal(found, torch.full((7,), 2.0))


def test_replaced_tensors_are_noticed():
    p, x = packed("ternary", 7, 20), torch.randn(2, 20)
    cache = remembered(p)
    for other in (packed("ternary", 7, 20, seed=1), packed("ternary", 5, 20, seed=2)):
        assert torch.equal(run(x, other, None, ROUNDED, cache=cache), run(x, other, None, ROUNDED))
    p.weight.fill_(0b10101010)  # in place: zeros
    assert torch.equal(run(x, p, None, ROUNDED, cache=cache), torch.zeros(2, 7))
    p.weight.data, p.scale.data = p.weight.data[:3], p.scale.data[:3]  # the same address, less of it
    assert run(x, p, None, ROUNDED, cache=cache).shape == (2, 3)


def test_a_layer_is_copied_without_its_prepared_calls():
    from hf_stages.packing import PackedLinear, PackedSpec

    p = packed("ternary", 7, 20)
    layer = PackedLinear(
        20, 7, PackedSpec("ternary", activations=ROUNDED), bias=False, weight=p.weight.view(torch.int8), scale=p.scale
    )
    x = torch.randn(2, 20)
    wanted = layer(x)
    assert "call" in layer._cache
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert not twin._cache
        assert torch.equal(twin(x), wanted)
    layer.double()
    assert not layer._cache  # nor does it hold on to memory that the layer has left
    assert torch.equal(layer(x), wanted)
