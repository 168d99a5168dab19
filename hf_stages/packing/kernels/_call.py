"""A layer's call whose arguments were checked once. For a small layer the checks take longer than the product."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from hf_stages.layers.packed_levels import BITS
from hf_stages.packing.kernels import library


class _Layer(ctypes.Structure):
    """What does not change from call to call: the struct lb_layer of lowbit.c."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        *((field, ctypes.c_void_p) for field in ("weight", "scale", "bias")),
        *((field, ctypes.c_int64) for field in ("rows", "columns", "groups")),
        *((field, ctypes.c_int) for field in ("bits", "halves", "top")),
    ]


class PreparedCall:
    """A prepared call of one layer: on a CPU, in float32, with symmetric ranges, which is the usual case.

    It keeps references to the layer's tensors, so that their memory stays theirs. ``fits`` says whether the layer still
    has these tensors, and whether an input can be computed in this way.

    Args:
        weight: The packed bytes.
        scale: The scales.
        bias: The bias, or None.
        levels: ``binary``, ``ternary`` or ``split``.
        in_features: The number of inputs.
        top: The largest code of an activation.
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
        name = library.library_path()
        assert name is not None
        self.tensors = weight, scale, bias
        self.identity = _identity(weight, scale, bias)
        self.rows, self.columns = weight.shape[-2], in_features
        self.layer = _Layer(
            name,
            *(None if tensor is None else tensor.data_ptr() for tensor in self.tensors),
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
        """Whether this call computes the layer with these tensors for the input ``x``."""
        if type(x) is not torch.Tensor or x.dtype is not torch.float32 or not x.is_contiguous() or not x.is_cpu:
            return False
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return False
        return x.dim() > 0 and x.shape[-1] == self.columns and self.identity == _identity(weight, scale, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty((*x.shape[:-1], self.rows), dtype=torch.float32)
        count = x.numel() // self.columns
        if self.run(self.address, torch.get_num_threads(), x.data_ptr(), y.data_ptr(), count):
            raise out_of_memory(count, self.columns)
        return y


def prepare_call(
    cache: dict[str, Any],
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    levels: str,
    in_features: int,
    top: int,
) -> None:
    """Store a prepared call for tensors that were checked, where their dtypes and strides allow it."""
    known = cache.get("call")
    floats = (x, scale) if bias is None else (x, scale, bias)
    if known is not None and known.identity == _identity(weight, scale, bias):
        return
    if weight.is_contiguous() and all(t.dtype is torch.float32 and t.is_contiguous() for t in floats):
        cache["call"] = PreparedCall(weight, scale, bias, levels, in_features, top)


def out_of_memory(rows: int, columns: int) -> MemoryError:
    """Make the error for a call that could not get memory."""
    return MemoryError(f"packed linear layer: no memory for {rows} rounded rows of {columns} activations")


def _identity(weight: Any, scale: Any, bias: Any) -> tuple[int, ...]:
    found = weight.data_ptr(), weight.numel(), scale.data_ptr(), scale.numel()
    return found if bias is None else (*found, bias.data_ptr(), bias.numel())
