"""All kinds of quantized linear layers, with inputs to try them on."""

from __future__ import annotations

import pytest
import torch

from hf_stages.layers import Activations, BinaryLinear, SplitLinear, TernaryLinear

KINDS = [
    (BinaryLinear, "mean"),
    (BinaryLinear, "learned"),
    (TernaryLinear, "twn"),
    (TernaryLinear, "absmean"),
    (TernaryLinear, "learned"),
    (SplitLinear, "mean"),
    (SplitLinear, "learned"),
]
ACTIVATIONS = [None, 8, Activations(4, symmetric=False), Activations(8, clip=1.5), Activations(4, False, 1.0)]
each_kind = pytest.mark.parametrize(("kind", "method"), KINDS)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(*(shape or (3, 5, 16)), generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_()


def built(kind, method="mean", activations=None, per=4, **more):
    torch.manual_seed(0)
    return kind(16, 6, method=method, per=per, activations=activations, **more)
