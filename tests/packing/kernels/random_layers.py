"""Packed layers with random levels, and what computes them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from hf_stages.packing.kernels import linear

BITS = {"ternary": 2, "binary": 1, "split": 1}


def packed(levels: str, rows: int, columns: int, groups: int = 1, seed: int = 0) -> SimpleNamespace:
    """Random levels, packed here bit by bit; bits beyond the last column are random (ternary: code 2)."""
    draw = torch.Generator().manual_seed(seed)
    halves, bits = (2 if levels == "split" else 1), BITS[levels]
    each = 8 // bits
    codes = torch.randint(1 if bits == 2 else 0, 4 if bits == 2 else 2, (halves, rows, columns), generator=draw)
    room = -columns % each
    filling = (
        torch.full((halves, rows, room), 2) if bits == 2 else torch.randint(2, (halves, rows, room), generator=draw)
    )
    filled = torch.cat([codes, filling], -1).reshape(halves, rows, -1, each)
    weight = (filled << torch.arange(0, 8, bits)).sum(-1).to(torch.uint8)
    scale = torch.rand(halves, rows, groups, generator=draw) + 0.1
    values = codes - 2 if bits == 2 else 2 * codes - 1
    dense = (values.reshape(halves, rows, groups, -1) * scale.double().unsqueeze(-1)).flatten(2).sum(0)
    if halves == 1:
        weight, scale = weight[0], scale[0]
    return SimpleNamespace(weight=weight, scale=scale, dense=dense, levels=levels, columns=columns)


def run(x, p, bias=None, activations=None, clip=None, **more):
    return linear(
        x, p.weight, p.scale, bias, levels=p.levels, in_features=p.columns, activations=activations, clip=clip, **more
    )
