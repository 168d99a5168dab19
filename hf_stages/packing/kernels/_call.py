"""A layer's call with everything checked once: a small layer's product takes less time than the checks."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from hf_stages.layers.packed_levels import BITS
from hf_stages.packing.kernels import library


class _Layer(ctypes.Structure):
    """What does not change from call to call: lb_layer of lowbit.c."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        *((field, ctypes.c_void_p) for field in ("weight", "scale", "bias")),
        *((field, ctypes.c_int64) for field in ("rows", "columns", "groups")),
        *((field, ctypes.c_int) for field in ("bits", "halves", "top")),
    ]


class Call:
    """For symmetric ranges of each row, on the CPU, in float32: what packed layers mostly are.

    It keeps the tensors that it was made of, so that their memory is not given to others; ``fits`` says whether they are
    still what the layer has, and whether this call is one of these.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        levels: str,
        in_features: int,
        top: int,
    ) -> None:
        name = library.native()
        assert name is not None
        self.kept = weight, scale, bias
        self.stamp = _stamp(weight, scale, bias)
        self.rows, self.columns = weight.shape[-2], in_features
        self.layer = _Layer(
            name,
            *(None if tensor is None else tensor.data_ptr() for tensor in self.kept),
            self.rows,
            in_features,
            scale.shape[-1],
            BITS[levels],
            2 if levels == "split" else 1,
            top,
        )
        self.address = ctypes.addressof(self.layer)
        self.run = library.library().lb_call

    def fits(self, x: torch.Tensor, weight: Any, scale: Any, bias: Any) -> bool:
        if type(x) is not torch.Tensor or x.dtype is not torch.float32 or not x.is_contiguous() or not x.is_cpu:
            return False
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return False
        return x.dim() > 0 and x.shape[-1] == self.columns and self.stamp == _stamp(weight, scale, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty((*x.shape[:-1], self.rows), dtype=torch.float32)
        count = x.numel() // self.columns
        if self.run(self.address, torch.get_num_threads(), x.data_ptr(), y.data_ptr(), count):
            raise no_memory(count, self.columns)
        return y


def remember(
    cache: dict[str, Any],
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    levels: str,
    in_features: int,
    top: int,
) -> None:
    """Keep a call of what was checked, where calls like this one can be made without more ado."""
    known = cache.get("call")
    floats = (x, scale) if bias is None else (x, scale, bias)
    if known is not None and known.stamp == _stamp(weight, scale, bias):
        return
    if weight.is_contiguous() and all(t.dtype is torch.float32 and t.is_contiguous() for t in floats):
        cache["call"] = Call(weight, scale, bias, levels, in_features, top)


def no_memory(rows: int, columns: int) -> MemoryError:
    return MemoryError(f"packed linear layer: no memory for {rows} rounded rows of {columns} activations")


def _stamp(weight: Any, scale: Any, bias: Any) -> tuple[int, ...]:
    found = weight.data_ptr(), weight.numel(), scale.data_ptr(), scale.numel()
    return found if bias is None else (*found, bias.data_ptr(), bias.numel())
