"""Levels as GGUF's blocks: TQ2_0 and Q1_0. Both keep one fp16 scale for each block.

TQ2_0: 256 weights as 64 bytes and the scale. Codes are level + 1; a byte holds the weights i, i + 32, i + 64 and i + 96 of
each half of 128, the first one in its lowest bits. Q1_0: the scale, then 128 weights as 16 bytes, the first one in the
lowest bit, 1 for +scale.
"""

from __future__ import annotations

import numpy as np

from hf_stages.packing.formats.model_weights import Array, Levels

BLOCK = {"TQ2_0": 256, "Q1_0": 128}
_LARGEST = 65504


def type_of(weight: Levels) -> str:
    """The type that holds a weight but for its scales' rounding; ValueError says why there is none."""
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
    """Two binary halves with the same scales are one ternary weight of twice the scale; None where they differ."""
    (one, scale), (two, other) = weight.halves
    if not np.array_equal(scale, other):
        return None
    return Levels("ternary", (((one + two) // 2, 2 * scale),))


def blocks(weight: Levels, name: str) -> Array:
    """Bytes (rows, bytes of a row)."""
    if weight.kind == "split":
        ternary = as_ternary(weight)
        assert ternary is not None
        weight = ternary
    levels, scale = weight.halves[0]
    rows, columns = levels.shape
    count = columns // BLOCK[name]
    scales = np.repeat(half(scale), count // scale.shape[1], axis=1).reshape(rows, count, 1).view(np.uint8)
    made = ternary_codes(levels) if name == "TQ2_0" else binary_codes(levels)
    made = made.reshape(rows, count, -1)
    parts = [made, scales] if name == "TQ2_0" else [scales, made]
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def ternary_codes(levels: Array) -> Array:
    codes = (levels + 1).astype(np.uint8).reshape(-1, 4, 32)
    return codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6


def binary_codes(levels: Array) -> Array:
    return np.packbits(levels > 0, axis=-1, bitorder="little")


def half(values: Array) -> Array:
    """fp16: off by at most 2^-11 of a value, or by 2^-25 below 2^-14."""
    if np.abs(values).max(initial=0) > _LARGEST:
        raise ValueError(f"expected values up to {_LARGEST}, float16's largest, got {np.abs(values).max():g}")
    return values.astype("<f2")
