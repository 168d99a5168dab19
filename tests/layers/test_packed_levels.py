"""Levels as bytes and back, against loops over bits."""

from __future__ import annotations

import pytest
import torch

from hf_stages.layers.packed_levels import pack_levels, row_bytes, unpack_levels


@pytest.mark.parametrize("columns", [1, 3, 4, 5, 8, 9, 31])
@pytest.mark.parametrize("bits", [1, 2])
def test_bits_are_laid_out_as_documented(bits, columns):
    choices = torch.tensor([-1, 1] if bits == 1 else [-1, 0, 1])
    levels = choices[torch.randint(len(choices), (3, columns))]
    packed = pack_levels(levels, bits)
    assert packed.shape == (3, row_bytes(columns, bits))
    for row in range(3):
        word = sum(int(byte) << (8 * place) for place, byte in enumerate(packed[row]))
        for column in range(columns):
            code = word >> (bits * column) & (2**bits - 1)
            assert (2 * code - 1 if bits == 1 else code - 2) == levels[row, column]
    assert torch.equal(unpack_levels(packed, bits, columns), levels.to(torch.int8))


def test_levels_of_any_number_of_dimensions_are_packed():
    levels = torch.randint(-1, 2, (2, 3, 4, 7))
    assert torch.equal(unpack_levels(pack_levels(levels, 2), 2, 7), levels.to(torch.int8))
