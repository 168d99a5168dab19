"""What packed layers share: bytes and scales that stay as they are, and the weight that they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_stages.layers.packed_levels import unpack_levels
from hf_stages.layers.storage import StoredBits
from hf_stages.packing._spec import PackedSpec

# Not weight_scale: transformers searches for tied names as patterns, and "...weight" would find that too.
SCALE, CLIP = "scale", "activation_clip"


class PackedWeight(nn.Module):
    """``weight`` holds bytes (as int8: models that ask for a weight's dtype, as T5 does, know that one as quantized)."""

    spec: PackedSpec
    weight: Any
    scale: Any

    def _own(self, spec: PackedSpec, rows: int, columns: int, weight: Any, scale: Any, device: Any) -> None:
        """Take over bytes and scales, or make room for them."""
        self.spec, self.columns = spec, columns
        of_weight, of_scale = spec.shapes(rows, columns)
        if weight is None:
            weight = torch.empty(of_weight, dtype=torch.int8, device=device)
            scale = torch.empty(of_scale, dtype=torch.float32, device=device)
        assert (tuple(weight.shape), tuple(scale.shape)) == (of_weight, of_scale)
        self.weight, self.scale = _kept(weight), _kept(scale)

    @property
    def levels(self) -> torch.Tensor:
        """-1, 0 and 1, or whole numbers up to 127, in the weight's shape; of a split weight both halves'."""
        return (
            self.weight.data
            if self.spec.levels == "int8"
            else unpack_levels(self.weight.data, self.spec.bits, self.columns)
        )

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight that the bytes stand for, exactly as it was trained where ``dtype`` is float32."""
        found = scaled(self.levels, self.scale.data)
        return (found[0] + found[1] if self.spec.levels == "split" else found).to(dtype)

    def stored_bits(self) -> tuple[StoredBits, ...]:
        halves = 2 if self.spec.levels == "split" else 1
        weights = self.scale.shape[-2] * self.columns
        return (StoredBits(("weight", SCALE), weights, self.spec.bits, self.scale.numel(), halves),)

    def problem(self) -> str | None:
        """What is wrong with the values, if anything: no shape can tell."""
        if not bool(self.scale.isfinite().all()):
            return f"{SCALE}: expected finite scales, got {_odd(self.scale)}"
        if self.spec.levels == "ternary":
            codes = self.weight.data.view(torch.uint8)
            if not bool((((codes >> 1) | codes) & 0x55).eq(0x55).all()):
                return "weight: expected ternary codes 1, 2 and 3, got 0"
        clip = getattr(self, CLIP, None)
        if clip is not None and not bool(clip.isfinite().all()):
            return f"{CLIP}: expected a finite range, got {_odd(clip)}"
        return None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .to(bfloat16) is meant for what computes; rounded scales would be another model.
        kept = {name: p.data for name, p in self._parameters.items() if p is not None and name in (SCALE, CLIP)}
        super()._apply(fn, recurse)
        getattr(self, "_cache", {}).clear()  # it would keep the memory that was left
        for name, data in kept.items():
            parameter: Any = self._parameters[name]
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        return self

    def _words(self) -> str:
        about = self.spec.levels + ("" if self.spec.group is None else f", groups of {self.spec.group}")
        activations = self.spec.activations
        return about + ("" if activations is None else f", activations={activations.bits}bit")


def scaled(levels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Levels times the scale of their group: (..., rows, columns) and (..., rows, groups)."""
    return (levels.unflatten(-1, (scale.shape[-1], -1)).to(scale.dtype) * scale.unsqueeze(-1)).flatten(-2)


def times(rows: torch.Tensor, factor: float | None, rounded: bool) -> torch.Tensor:
    """What some models' tables do to what they give out."""
    if factor is None:
        return rows
    return rows * (torch.tensor(factor, dtype=rows.dtype, device=rows.device) if rounded else factor)


def _kept(tensor: torch.Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _odd(tensor: torch.Tensor) -> str:
    flat = tensor.detach().flatten()
    return str(float(flat[~flat.isfinite()][0]))
