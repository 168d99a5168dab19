"""Pack levels into GGUF's blocks TQ2_0 and Q1_0. Each block has one scale in fp16.

TQ2_0 has 256 weights in 64 bytes, then the scale. Codes are level + 1; a byte holds the weights i, i + 32, i + 64 and i
+ 96 of 128 weights, the first of them in its lowest bits. Q1_0 has the scale, then 128 weights in 16 bytes, the first
of them in the lowest bit; 1 is +scale.
"""

from __future__ import annotations

import numpy as np

from hf_stages.packing.formats.model_weights import Array, Levels

BLOCK = {"TQ2_0": 256, "Q1_0": 128}
_LARGEST = 65504


def block_type(weight: Levels) -> str:
    """Return the type whose blocks hold a weight's levels exactly; ValueError says why there is none."""
    name = "Q1_0" if weight.kind == "binary" else "TQ2_0"
    block, columns = BLOCK[name], weight.shape[1]
    if weight.kind == "split" and as_ternary(weight) is None:
        raise ValueError("the halves of a split weight have scales of their own, and their sum takes four values")
    if columns % block:
        raise ValueError(f"{name} has blocks of {block}, which do not fill rows of {columns}")
    if weight.group % block:
        raise ValueError(f"{name} has blocks of {block}, and groups of {weight.group} have scales of their own")
    return name


def as_ternary(weight: Levels) -> Levels | None:
    """Merge two binary halves with equal scales into a ternary weight of twice the scale; None where they differ."""
    (one, scale), (two, other) = weight.halves
    if not np.array_equal(scale, other):
        return None
    return Levels("ternary", (((one + two) // 2, 2 * scale),))


def to_blocks(weight: Levels, name: str) -> Array:
    """Pack a weight into blocks: bytes of shape (rows, bytes of a row)."""
    if weight.kind == "split":
        ternary = as_ternary(weight)
        assert ternary is not None
        weight = ternary
    levels, scale = weight.halves[0]
    rows, columns = levels.shape
    count = columns // BLOCK[name]
    scales = np.repeat(to_float16(scale), count // scale.shape[1], axis=1).reshape(rows, count, 1).view(np.uint8)
    codes = ternary_codes(levels) if name == "TQ2_0" else binary_codes(levels)
    codes = codes.reshape(rows, count, -1)
    parts = [codes, scales] if name == "TQ2_0" else [scales, codes]
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def ternary_codes(levels: Array) -> Array:
    """Pack ternary levels into the bytes of TQ2_0."""
    codes = (levels + 1).astype(np.uint8).reshape(-1, 4, 32)
    return codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6


def binary_codes(levels: Array) -> Array:
    """Pack binary levels into the bytes of Q1_0."""
    return np.packbits(levels > 0, axis=-1, bitorder="little")


def to_float16(values: Array) -> Array:
    """Round to fp16: by at most 2^-11 of a value, or 2^-25 below 2^-14. Too large values are refused."""
    if np.abs(values).max(initial=0) > _LARGEST:
        raise ValueError(f"expected values up to {_LARGEST}, float16's largest, got {np.abs(values).max():g}")
    return values.astype("<f2")
