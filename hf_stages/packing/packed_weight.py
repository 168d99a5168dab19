"""The base of packed layers: bytes and scales that are never converted, and the effective weight made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_stages.layers.packed_levels import unpack_levels
from hf_stages.layers.storage import StoredBits
from hf_stages.packing._spec import PackedSpec

# Not weight_scale: transformers uses tied names as patterns, and "...weight" would match that too.
SCALE, CLIP = "scale", "activation_clip"


class PackedWeight(nn.Module):
    """A module whose ``weight`` holds bytes.

    They are int8, because T5 asks for the dtype and knows int8 as quantized.
    """

    spec: PackedSpec
    """How the weight is packed."""
    weight: Any
    """The bytes."""
    scale: Any
    """The scales, in float32."""

    def _take_over(self, spec: PackedSpec, rows: int, columns: int, weight: Any, scale: Any, device: Any) -> None:
        """Register bytes and scales, or empty tensors for them."""
        self.spec, self.columns = spec, columns
        weight_shape, scale_shape = spec.shapes(rows, columns)
        if weight is None:
            weight = torch.empty(weight_shape, dtype=torch.int8, device=device)
            scale = torch.empty(scale_shape, dtype=torch.float32, device=device)
        assert (tuple(weight.shape), tuple(scale.shape)) == (weight_shape, scale_shape)
        self.weight, self.scale = _frozen_parameter(weight), _frozen_parameter(scale)

    @property
    def levels(self) -> torch.Tensor:
        """The levels: -1, 0 and 1, or whole numbers up to 127.

        Those of a split weight are the levels of both halves.
        """
        return (
            self.weight.data
            if self.spec.levels == "int8"
            else unpack_levels(self.weight.data, self.spec.bits, self.columns)
        )

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Compute the effective weight; in float32 it is exactly the trained one."""
        found = apply_scales(self.levels, self.scale.data)
        return (found[0] + found[1] if self.spec.levels == "split" else found).to(dtype)

    def stored_bits(self) -> tuple[StoredBits, ...]:
        """Say what is stored of the weight."""
        halves = 2 if self.spec.levels == "split" else 1
        weights = self.scale.shape[-2] * self.columns
        return (StoredBits(("weight", SCALE), weights, self.spec.bits, self.scale.numel(), halves),)

    def problem(self) -> str | None:
        """Say which values are impossible, if any; shapes cannot show it."""
        if not bool(self.scale.isfinite().all()):
            return f"{SCALE}: expected finite scales, got {_first_not_finite(self.scale)}"
        if self.spec.levels == "ternary":
            codes = self.weight.data.view(torch.uint8)
            if not bool((((codes >> 1) | codes) & 0x55).eq(0x55).all()):
                return "weight: expected ternary codes 1, 2 and 3, got 0"
        clip = getattr(self, CLIP, None)
        if clip is not None and not bool(clip.isfinite().all()):
            return f"{CLIP}: expected a finite range, got {_first_not_finite(clip)}"
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .to(bfloat16) must not round scales: that would be another model.
        unrounded = {name: p.data for name, p in self._parameters.items() if p is not None and name in (SCALE, CLIP)}
        super()._apply(fn, recurse)
        getattr(self, "_cache", {}).clear()  # it would hold the old memory
        for name, data in unrounded.items():
            parameter: Any = self._parameters[name]
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        return self

    def _describe(self) -> str:
        text = self.spec.levels + ("" if self.spec.group is None else f", groups of {self.spec.group}")
        activations = self.spec.activations
        return text + ("" if activations is None else f", activations={activations.bits}bit")


def apply_scales(levels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply levels (..., rows, columns) with the scales of their groups (..., rows, groups)."""
    return (levels.unflatten(-1, (scale.shape[-1], -1)).to(scale.dtype) * scale.unsqueeze(-1)).flatten(-2)


def apply_embed_scale(rows: torch.Tensor, factor: float | None, rounded: bool) -> torch.Tensor:
    """Scale the output of an embedding, as some models do."""
    if factor is None:
        return rows
    return rows * (torch.tensor(factor, dtype=rows.dtype, device=rows.device) if rounded else factor)


def _frozen_parameter(tensor: torch.Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _first_not_finite(tensor: torch.Tensor) -> str:
    flat = tensor.detach().flatten()
    return str(float(flat[~flat.isfinite()][0]))
