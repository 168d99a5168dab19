"""Unpack weights, for backward passes, for other devices, and for machines without the library."""

from __future__ import annotations

import torch

from hf_stages.layers.packed_levels import BITS, unpack_levels
from hf_stages.packing.kernels import library

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def halves_of(weight: torch.Tensor, levels: str) -> torch.Tensor:
    """Return the bytes as [halves, out, bytes], whatever the levels are."""
    return weight if levels == "split" else weight.unsqueeze(0)


def levels_of(weight: torch.Tensor, levels: str, in_features: int) -> torch.Tensor:
    """Return the levels -1, 0 and 1 as int8, [halves, out, in]."""
    return unpack_levels(halves_of(weight, levels), BITS[levels], in_features)


def dense(
    weight: torch.Tensor, scale: torch.Tensor, levels: str, in_features: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Compute the effective weight, [out, in]."""
    # Not while a compiler traces: its tensors have no memory.
    if (
        dtype is torch.float32
        and type(weight) in _PLAIN
        and weight.device.type == "cpu"
        and library.library_path() is not None
    ):
        return unpacked_rows(weight.contiguous(), scale.float().contiguous(), levels, in_features, 0, weight.shape[-2])
    found = levels_of(weight, levels, in_features)
    scales = halves_of(scale, levels).to(dtype).unsqueeze(-1)
    grouped = found.reshape(*scales.shape[:3], -1).to(dtype).mul_(scales).flatten(2)
    return grouped[0] if len(grouped) == 1 else grouped[0].add_(grouped[1])


def unpacked_rows(
    weight: torch.Tensor, scale: torch.Tensor, levels: str, in_features: int, row: int, stop: int
) -> torch.Tensor:
    """Compute rows [row, stop) of the effective weight with the library, from contiguous tensors and float32 scales."""
    found = torch.empty(stop - row, in_features)
    sizes = weight.shape[-2], row, stop - row, in_features, scale.shape[-1], BITS[levels], 2 if levels == "split" else 1
    library.library().lb_dense(torch.get_num_threads(), weight.data_ptr(), scale.data_ptr(), found.data_ptr(), *sizes)
    return found
