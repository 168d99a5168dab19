"""Levels of one or two bits packed into bytes: the layout on disk, in memory and in the kernels.

Neighbours in a row share a byte, the first of them in its lowest bits. Ternary levels -1, 0, 1 have the two-bit codes
1, 2, 3 (as in Gemma's layout and in ONNX's MatMulNBits). Binary levels -1, 1 are the bits 0, 1 (as in GGUF's Q1_0). A
row is filled up to whole bytes, with level 0 or with -1, which are never read.
"""

from __future__ import annotations

import torch

BITS = {"ternary": 2, "binary": 1, "split": 1}
"""Bits of one stored level, by the kind of weight. A split weight is two binary ones."""


def pack_levels(levels: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack levels into bytes (uint8). With one bit levels are -1 and 1; with two bits 0 as well.

    >>> pack_levels(torch.tensor([[1, -1, 0, 1, -1]]), 2)
    tensor([[231, 169]], dtype=torch.uint8)
    """
    each = 8 // bits
    codes = (levels > 0).to(torch.uint8) if bits == 1 else (levels + 2).to(torch.uint8)
    if missing := -codes.shape[-1] % each:
        codes = torch.nn.functional.pad(codes, (0, missing), value=0 if bits == 1 else 2)
    codes = codes.unflatten(-1, (-1, each))
    packed = codes[..., 0].clone()
    for place in range(1, each):
        packed |= codes[..., place] << (bits * place)
    return packed


def unpack_levels(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Unpack bytes into levels (int8).

    >>> unpack_levels(torch.tensor([[231, 169]], dtype=torch.uint8), 2, 5)
    tensor([[ 1, -1,  0,  1, -1]], dtype=torch.int8)
    """
    packed = packed.view(torch.uint8)
    each, mask = 8 // bits, 2**bits - 1
    codes = torch.stack([(packed >> (bits * place)) & mask for place in range(each)], -1).flatten(-2)
    levels = codes[..., :columns].to(torch.int8)
    return levels.mul_(2).sub_(1) if bits == 1 else levels.sub_(2)


def row_bytes(columns: int, bits: int) -> int:
    """Return the bytes of a packed row.

    >>> row_bytes(9, 1), row_bytes(9, 2), row_bytes(9, 8)
    (2, 3, 9)
    """
    return -(-columns * bits // 8)
