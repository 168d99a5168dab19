"""Without the library, and on other devices: the same function in torch's own operations."""

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


def kept(cache: Cache | None, name: str, sources: tuple[torch.Tensor, ...], make: Callable[[], torch.Tensor]) -> Any:
    """``make()``, kept in the cache for as long as what it was made of stays what it is.

    Packed bytes are known by address and version. Scales are compared by value: they are few, and who edits them by hand
    often writes to ``.data``, which counts no version.
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
def _warn() -> None:
    logger.warning(
        "packed layers run on weights unpacked to float32, which take 16 times their packed size and more: the kernels' "
        "library is not built, or left out by %s. To build it: %s",
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
    wide = x.float()
    whole = activations is not None and scale.shape[-1] == 1 and wide.numel() > 0 and _fits(x, weight, levels)
    if activations is not None and whole:
        return _int_mm(wide, weight, scale, bias, levels, in_features, activations, clip, cache).to(x.dtype)
    entered = wide if activations is None else activations(wide, clip)
    if x.device.type == "cpu":
        _warn()
        made = kept(cache, "dense", (weight, scale), lambda: dense(weight, scale, levels, in_features))
    else:
        made = dense(weight, scale, levels, in_features)
    return F.linear(entered, made, None if bias is None else bias.float()).to(x.dtype)


def _fits(x: torch.Tensor, weight: torch.Tensor, levels: str) -> bool:
    """Whether torch._int_mm runs, and fast."""
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
    """Whole dots, as the library computes them, of weights unpacked to bytes."""
    codes, of_row, zero = activations.levels(wide, clip)
    codes, of_row = codes.reshape(-1, in_features), of_row.expand(*wide.shape[:-1], 1).reshape(-1, 1)
    sound = codes.isfinite().all(-1, keepdim=True) & of_row.isfinite()
    shift = 128 if activations.top > 127 else 0
    small = torch.where(sound, codes - shift, 0).to(torch.int8)
    rows = small.shape[0]
    small = _wide_enough(small)
    if wide.device.type == "cuda":  # which wants more than 16 rows, and a multiple of 8
        small = F.pad(small, (0, 0, 0, max(32, -(-rows // 8) * 8) - rows))
    halves = kept(
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
    return _wide_enough(levels_of(weight, levels, in_features).contiguous())


def _wide_enough(matrix: torch.Tensor) -> torch.Tensor:
    """A zero beside a lone column: with one, oneDNN refuses the strides unheard and the product is never written."""
    return F.pad(matrix, (0, 1)) if matrix.shape[-1] == 1 else matrix
