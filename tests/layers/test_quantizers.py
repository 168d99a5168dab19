"""Weights in one or two bits, against references of a few lines."""

from __future__ import annotations

import pytest
import torch

from hf_stages.layers import Quantizer

ALL = [("binary", "mean"), ("binary", "learned"), ("ternary", "twn"), ("ternary", "absmean"), ("ternary", "learned")]
PERS = ["tensor", "row", 4]


def weights(rows: int = 6, columns: int = 8, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=dtype, generator=torch.Generator().manual_seed(0))


def grouped(w: torch.Tensor, per: str | int) -> list[torch.Tensor]:
    """The groups as a list of vectors, rows first."""
    if per == "tensor":
        return [w.flatten()]
    return list(w) if per == "row" else [piece for row in w for piece in row.split(per)]


def reference(group: torch.Tensor, method: str, levels: str, scale: float | None = None) -> torch.Tensor:
    """One group by the papers' formulas, a weight at a time."""
    mean = sum(abs(v) for v in group.tolist()) / len(group)
    found = []
    if method == "twn":
        kept = [abs(v) for v in group.tolist() if abs(v) > 0.7 * mean]
        scale = sum(kept) / len(kept)
    for v in group.tolist():
        if method == "mean":
            found.append(mean if v >= 0 else -mean)
        elif method == "twn":
            found.append(0.0 if abs(v) <= 0.7 * mean else scale if v > 0 else -scale)
        elif method == "absmean":  # BitNet b1.58
            found.append(mean * max(-1, min(1, round(v / mean))))
        elif levels == "binary":
            found.append(scale if v >= 0 else -scale)
        else:  # ParetoQ, whose alpha is 1.5 of our scale
            alpha = 1.5 * scale
            found.append(round(1.5 * max(-0.99, min(0.99, v / alpha))) / 1.5 * alpha)
    return torch.tensor(found, dtype=group.dtype)


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize(("levels", "method"), ALL)
def test_each_method_equals_its_reference(levels, method, per):
    w, quantizer = weights(), Quantizer(levels, method, per)
    groups = grouped(w, per)
    scales = quantizer.initial_scales(w) * 0.7 if quantizer.learned else None
    each = scales.tolist() if quantizer.learned else [None] * len(groups)
    expected = torch.cat([reference(g, method, levels, s) for g, s in zip(groups, each, strict=True)]).reshape(w.shape)
    torch.testing.assert_close(quantizer(w, scales), expected, rtol=1e-12, atol=1e-12)
    codes, found = quantizer.codes(w, scales)
    assert codes.dtype == torch.int8
    assert found.shape == (len(groups),)
    spread = found.repeat_interleave(w.numel() // len(groups)).reshape(w.shape)
    torch.testing.assert_close(codes * spread, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("levels", "method", "error"),
    [("binary", "mean", 0.364), ("ternary", "absmean", 0.264), ("ternary", "twn", 0.192)],
)
def test_the_error_on_gaussian_weights_is_the_known_one(levels, method, error):
    w = weights(768, 768, torch.float32)
    found = Quantizer(levels, method, "tensor")(w)
    assert float((w - found).square().mean() / w.square().mean()) == pytest.approx(error, abs=2e-3)
    if method == "twn":
        assert float((found == 0).float().mean()) == pytest.approx(0.42, abs=5e-3)


@pytest.mark.parametrize("levels", ["binary", "ternary"])
def test_learned_scales_begin_where_paretoq_begins(levels):
    w = weights()
    expected = w.abs().mean(-1) if levels == "binary" else w.abs().amax(-1) / 1.5
    torch.testing.assert_close(Quantizer(levels, "learned").initial_scales(w), expected)


def soft(w: torch.Tensor, scale: torch.Tensor, levels: str) -> torch.Tensor:
    """LSQ with autograd: rounding and clipping as such, their gradients by detaching."""
    ratio = w / scale[:, None]
    if levels == "binary":
        return (torch.sign(w) - w).detach() * scale[:, None] + w  # identity for w
    inside = (ratio.abs() <= 1.5).to(w.dtype)
    clipped = ratio * inside + (1 - inside) * ratio.sign()
    return ((clipped.round().clamp(-1, 1) - clipped).detach() + clipped) * scale[:, None]


@pytest.mark.parametrize("levels", ["binary", "ternary"])
def test_gradients_of_learned_scales_equal_autograd(levels):
    quantizer = Quantizer(levels, "learned")
    w, scale = weights().requires_grad_(), (quantizer.initial_scales(weights()) * 0.5).requires_grad_()
    grad = weights(6, 8).flip(0)
    if levels == "ternary":
        soft(w, scale, levels).backward(grad)
        of_w, of_scale = w.grad, scale.grad
    else:
        of_w, of_scale = grad, (grad * w.sign()).sum(-1)
    found = quantizer.gradients(grad, w, scale)
    torch.testing.assert_close(found[0], of_w.detach())
    torch.testing.assert_close(found[1], of_scale.detach() / 8**0.5)


@pytest.mark.parametrize(("levels", "method"), ALL)
def test_zeros_stay_finite_and_nan_and_infinity_show(levels, method):
    quantizer = Quantizer(levels, method)
    w = weights(4, 8, torch.float32)
    scale = quantizer.initial_scales(w) if quantizer.learned else None
    w[0] = 0
    assert quantizer(w, scale).isfinite().all()
    if not quantizer.learned:
        assert (quantizer(w)[0] == 0).all()
        w[1, 3], w[2, 3] = torch.nan, torch.inf
        found = quantizer(w)
        assert found[1].isnan().all()
        assert not found[2].isfinite().any()
        assert found[[0, 3]].isfinite().all()


def test_sixteen_bits_are_summed_in_float32():
    w = torch.full((1, 4096), 30.0, dtype=torch.float16)  # the sum is beyond float16
    for levels, method in ALL:
        quantizer = Quantizer(levels, method)
        found = quantizer(w, quantizer.initial_scales(w).half() if quantizer.learned else None)
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, torch.full_like(w, 20 if quantizer.learned and levels == "ternary" else 30))


def test_a_scale_driven_to_zero_stays_usable():
    for dtype in (torch.float32, torch.float16):
        for levels in ("binary", "ternary"):
            quantizer, w = Quantizer(levels, "learned"), weights(2, 4, dtype)
            for value in (0.0, -1.0):
                parts = quantizer.gradients(torch.ones_like(w), w, torch.full((2,), value, dtype=dtype))
                assert all(part.isfinite().all() for part in parts)


def test_transposed_and_strided_weights_give_the_same_values():
    w = weights()
    for per in PERS:
        for levels, method in ALL:
            quantizer = Quantizer(levels, method, per)
            scale = quantizer.initial_scales(w) if quantizer.learned else None
            assert torch.equal(quantizer(w.t().contiguous().t(), scale), quantizer(w, scale))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("octal", "mean"), "levels: expected one of binary, ternary, got 'octal'"),
        (("binary", "twn"), "method: expected one of 'mean', 'learned' for binary weights, got 'twn'"),
        (("binary", "mean", 0), "per: expected 'tensor', 'row' or the size of a group"),
        (("binary", "mean", True), "per: expected"),
    ],
)
def test_levels_methods_and_groups_that_do_not_fit_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        Quantizer(*given)
    with pytest.raises(ValueError, match="groups of 3 do not fill rows of 8 weights"):
        Quantizer("binary", "mean", 3)(weights())
