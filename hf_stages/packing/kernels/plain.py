"""The same function in torch's own operations, for other devices and without the library."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from hf_stages.layers.activations import Activations
from hf_stages.packing.kernels import library
from hf_stages.packing.kernels._unpack import dense, levels_of

logger = logging.getLogger(__name__)

Cache = dict[str, Any]


def cached(cache: Cache | None, name: str, sources: tuple[torch.Tensor, ...], make: Callable[[], torch.Tensor]) -> Any:
    """Return ``make()``, cached as long as the tensors that it was made of stay the same.

    Packed bytes are compared by address and version. Scales are compared by value: they are few, and edits often go
    through ``.data``, which does not change the version.
    """
    if cache is None:
        return make()
    stamp = tuple((t.data_ptr(), -1 if t.is_inference() else t._version, t.device) for t in sources)
    scales = [t.detach() for t in sources if t.is_floating_point()]
    known = cache.get(name)
    if known is None or known[0] != stamp or not all(map(torch.equal, known[1], scales)):
        known = cache[name] = stamp, [scale.clone() for scale in scales], make()
    return known[2]


@functools.cache
def warn_once() -> None:
    logger.warning(
        "packed layers run on weights unpacked to float32, which take 16 times their packed size and more: the "
        "kernels' library is not built, or left out by %s. To build it: %s",
        library.VARIABLE,
        library.HOW,
    )


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    levels: str,
    in_features: int,
    activations: Activations | None,
    clip: torch.Tensor | None,
    cache: Cache | None,
) -> torch.Tensor:
    """Compute the linear layer as ``kernels.linear`` does; the arguments are checked already."""
    wide = x.float()
    in_integers = (
        activations is not None and scale.shape[-1] == 1 and wide.numel() > 0 and _int_mm_is_fast(x, weight, levels)
    )
    if activations is not None and in_integers:
        return _int_mm(wide, weight, scale, bias, levels, in_features, activations, clip, cache).to(x.dtype)
    entered = wide if activations is None else activations(wide, clip)
    if x.device.type == "cpu":
        warn_once()
        made = cached(cache, "dense", (weight, scale), lambda: dense(weight, scale, levels, in_features))
    else:
        made = dense(weight, scale, levels, in_features)
    return F.linear(entered, made, None if bias is None else bias.float()).to(x.dtype)


def _int_mm_is_fast(x: torch.Tensor, weight: torch.Tensor, levels: str) -> bool:
    """Whether torch._int_mm runs here, and is fast."""
    if x.device.type == "cpu":
        return library.which() == "int_mm"
    return x.device.type == "cuda" and x.shape[-1] % 8 == 0 and weight.shape[-2] % 8 == 0


def _int_mm(
    wide: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    levels: str,
    in_features: int,
    activations: Activations,
    clip: torch.Tensor | None,
    cache: Cache | None,
) -> torch.Tensor:
    """Compute dot products in integers, as the library does, on weights unpacked to bytes."""
    codes, of_row, zero = activations.levels(wide, clip)
    codes, of_row = codes.reshape(-1, in_features), of_row.expand(*wide.shape[:-1], 1).reshape(-1, 1)
    sound = codes.isfinite().all(-1, keepdim=True) & of_row.isfinite()
    shift = 128 if activations.top > 127 else 0
    small = torch.where(sound, codes - shift, 0).to(torch.int8)
    rows = small.shape[0]
    small = _at_least_two_columns(small)
    if wide.device.type == "cuda":  # CUDA needs more than 16 rows, and a multiple of 8
        small = F.pad(small, (0, 0, 0, max(32, -(-rows // 8) * 8) - rows))
    halves = cached(
        cache if wide.device.type == "cpu" else None, "int8", (weight,), lambda: _bytes(weight, levels, in_features)
    )
    found: Any = 0
    for half, of_column in zip(halves, scale.reshape(len(halves), -1), strict=True):
        dots = torch._int_mm(small, half.t())[:rows]
        if zero is not None:
            point = (shift - zero.expand(*wide.shape[:-1], 1).reshape(-1, 1)).nan_to_num(0.0).to(torch.int32)
            dots = dots + point * half.sum(-1, dtype=torch.int32)
        found = found + dots.float() * of_column.float()
    found = found * torch.where(sound, of_row, torch.nan)
    return (found if bias is None else found + bias.float()).reshape(*wide.shape[:-1], -1)


def _bytes(weight: torch.Tensor, levels: str, in_features: int) -> torch.Tensor:
    return _at_least_two_columns(levels_of(weight, levels, in_features).contiguous())


def _at_least_two_columns(matrix: torch.Tensor) -> torch.Tensor:
    """Add a column of zeros to a single column, whose product oneDNN would silently not compute."""
    return F.pad(matrix, (0, 1)) if matrix.shape[-1] == 1 else matrix
