"""Ternary weight splitting: two binary halves that add up to the ternary weight, for any weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.layers import (
    Activations,
    BinaryLinear,
    Quantizer,
    SplitEmbedding,
    SplitLinear,
    TernaryEmbedding,
    TernaryLinear,
)
from hf_stages.layers.splitting import equal_means, split_ternary

METHODS = ["twn", "absmean", "learned"]
PERS = ["tensor", "row", 4]
ULPS = {torch.float64: 1e-12, torch.float32: 1e-6}


def weights(kind: str, dtype: torch.dtype) -> torch.Tensor:
    w = 0.02 * torch.randn(12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if kind == "zero rows":
        w[3:6] = 0
    if kind == "constant rows":
        w[1], w[2], w[4] = 0.3, -0.3, w[4].sign()
    if kind == "skewed":  # many of one sign just below the threshold under one that is huge
        w[:] = 0.12 + 1e-2 * w
        w[:, 0] = torch.where(torch.arange(12) % 2 == 0, 1.0, -1.0)
        w[6:] = -w[6:]
    if kind == "signed zeros":
        w[:, ::3], w[:, 1::3] = -0.0, 0.0
    if kind == "one column":
        w = w[:, :1]
    return w.to(dtype)


KINDS = ["gaussian", "zero rows", "constant rows", "skewed", "signed zeros"]


def deviation(w: torch.Tensor, quantizer: Quantizer) -> tuple[float, float]:
    """Relative to the largest scale:

    of the halves' quantized sum from the ternary weight, and of their sum from ``w``.
    """
    scale = quantizer.initial_scales(w) * 0.6 if quantizer.learned else None
    wanted = quantizer(w, scale)
    first, second, half = split_ternary(w, quantizer, scale)
    binary = Quantizer("binary", "mean" if half is None else "learned", quantizer.per)
    found = binary(first, half) + binary(second, half)
    size = float(torch.maximum(wanted.abs(), w.abs()).max()) or 1.0
    return float((found - wanted).abs().max()) / size, float((first + second - w).abs().max()) / size


@pytest.mark.parametrize("dtype", list(ULPS))
@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_halves_add_up(method, per, dtype):
    for kind in KINDS:
        assert max(deviation(weights(kind, dtype), Quantizer("ternary", method, per))) <= ULPS[dtype], kind
    if per != 4:
        assert max(deviation(weights("one column", dtype), Quantizer("ternary", method, per))) <= ULPS[dtype]


# Weights below the least scale of 1e-8 are nothing to any quantizer; relative to them, a scale is a large deviation.
values = st.floats(-1, 1, width=32, allow_subnormal=False).map(lambda value: value if abs(value) > 1e-6 else 0.0)
rows = st.lists(values, min_size=2, max_size=24)


@settings(max_examples=150, deadline=None)
@given(row=rows, huge=st.sampled_from([0.0, 1.0, 30.0, -1e3]), method=st.sampled_from(METHODS))
def test_the_halves_add_up_for_any_row(row, huge, method):
    w = torch.tensor([[*row, huge]], dtype=torch.float64)
    assert max(deviation(w, Quantizer("ternary", method))) <= 1e-12
    # Where float32 decides which weights are zero, it does so for ternary weight and halves alike.
    assert max(deviation(w.float(), Quantizer("ternary", method))) <= 1e-6


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 200), below=st.floats(0.5, 0.999), sign=st.sampled_from([-1.0, 1.0]), huge=st.floats(1e-3, 1e4)
)
def test_rows_of_mostly_one_sign_are_split_without_flipped_signs(count, below, sign, huge):
    """The closed form's a leaves (0, 1) in many of these."""
    threshold = 0.7 * huge / (count - 0.7 * (count - 1))  # of the row when all others are at it
    w = torch.full((1, count), sign * below * threshold, dtype=torch.float64)
    w[0, 0] = huge
    assert max(deviation(w, Quantizer("ternary", "twn"))) <= 1e-12


def closed_form(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """BinaryBERT's split of one row, as its paper writes it."""
    ternary = Quantizer("ternary", "twn")(w[None])[0]
    alpha, i = ternary.abs().max(), ternary != 0
    j, k = ~i & (w > 0), ~i & (w <= 0)
    s_i, s_j, s_k = (w.abs()[part].sum() for part in (i, j, k))
    b = (alpha * len(w) - w.abs().sum()) / (2 * (j.sum() + k.sum()))
    a = (s_i + s_k - s_j) / (2 * s_i)
    return torch.where(i, a * w, torch.where(j, w + b, b)), torch.where(i, (1 - a) * w, torch.where(j, -b, w - b)), a


def test_it_is_binarybert_s_formula_where_that_holds():
    for w in weights("gaussian", torch.float64):
        first, second, a = closed_form(w)
        assert 0.02 < a < 0.98
        found = split_ternary(w[None], Quantizer("ternary", "twn"))
        torch.testing.assert_close(found[0][0], first)
        torch.testing.assert_close(found[1][0], second)
        assert found[2] is None


def test_binarybert_s_formula_fails_on_skewed_rows():
    """What the fallback is for: without it signs flip."""
    w = weights("skewed", torch.float64)
    broken = [closed_form(row) for row in w]
    assert all(not 0 < a < 1 for *_, a in broken)
    binary, wanted = Quantizer("binary", "mean"), Quantizer("ternary", "twn")(w)
    halves = [torch.stack(parts) for parts in zip(*((first, second) for first, second, _ in broken), strict=True)]
    assert not torch.allclose(binary(halves[0]) + binary(halves[1]), wanted)
    first, second = equal_means(w, wanted == 0)
    torch.testing.assert_close(binary(first) + binary(second), wanted)


def test_both_halves_have_half_the_scale():
    for kind in KINDS:
        w = weights(kind, torch.float64)
        first, second, _ = split_ternary(w, Quantizer("ternary", "twn"))
        wanted = Quantizer("ternary", "twn").scales(w)[0][:, 0] / 2
        torch.testing.assert_close(first.abs().mean(-1), wanted)
        torch.testing.assert_close(second.abs().mean(-1), wanted)


@pytest.mark.parametrize(("dtype", "off"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_sixteen_bit_latents_keep_signs_and_nearly_the_scale(dtype, off):
    """Stored scales are exact. Means of rounded halves are not: off by a rounding step, zeros included."""
    w = weights("gaussian", dtype)
    assert deviation(w, Quantizer("ternary", "absmean"))[0] == 0
    assert deviation(w, Quantizer("ternary", "twn"))[0] <= off
    first, second, _ = split_ternary(w, Quantizer("ternary", "twn"))
    wanted = Quantizer("ternary", "twn")(w)
    assert torch.equal(first.sign() + second.sign(), 2 * wanted.sign())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", [nn.Linear(16, 12), Conv1D(12, 16)], ids=["linear", "conv1d"])
def test_a_split_layer_computes_the_same(method, source):
    with torch.no_grad():
        source.bias.uniform_()
    ternary = TernaryLinear.from_layer(source, Quantizer("ternary", method, 4), Activations(8, clip=2.0))
    ternary.activation_clip.data.fill_(1.3)  # as trained
    split = SplitLinear.from_ternary(ternary)
    assert split.activation_clip is ternary.activation_clip
    assert split.bias is ternary.bias
    x = torch.randn(5, 16)
    torch.testing.assert_close(split(x), ternary(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sum(split.latents), ternary.weight_latent)
    torch.testing.assert_close(split.weight, ternary.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_split_embedding_computes_the_same(method):
    ternary = TernaryEmbedding(10, 16, padding_idx=2, method=method)
    split = SplitEmbedding.from_ternary(ternary)
    ids = torch.tensor([[1, 2, 9], [1, 1, 0]])
    torch.testing.assert_close(split(ids), ternary(ids), rtol=1e-6, atol=1e-6)
    assert split.padding_idx == 2


def test_frozen_layers_split_into_frozen_halves():
    ternary = TernaryLinear(8, 4, method="learned").requires_grad_(False)
    assert not any(p.requires_grad for p in SplitLinear.from_ternary(ternary).parameters())


def test_only_ternary_weights_are_split():
    with pytest.raises(ValueError, match="expected a ternary layer, got a BinaryLinear"):
        SplitLinear.from_ternary(BinaryLinear(4, 4))
    with pytest.raises(ValueError, match="expected ternary weights, got binary ones"):
        split_ternary(torch.ones(2, 2), Quantizer("binary", "mean"))
