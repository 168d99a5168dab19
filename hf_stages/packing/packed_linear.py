"""A linear layer whose weight stays packed in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_stages.packing import kernels
from hf_stages.packing._spec import PackedSpec
from hf_stages.packing.packed_weight import CLIP, PackedWeight, apply_scales

_ROWS_AT_ONCE = 2**20
"""How many int8 weights are turned into fp32 at a time: they fit into a core's cache."""


class PackedLinear(PackedWeight, nn.Linear):
    """``y = Q(x) wᵀ + b`` on packed weights, which are not trained. PEFT takes it for the ``nn.Linear`` that it is.

    Args:
        in_features: The number of inputs. out_features: The number of outputs. spec: How the weight is packed. bias: A
        bias, or whether to make one. weight: The packed bytes; None leaves them empty. scale: The scales of the rows.
        clip: The learned range of activations. transposed: Whether it replaces a Conv1D (GPT-2), which stores (inputs,
        outputs). The bytes here are not transposed. device: Where an empty weight is made. dtype: The dtype of a bias
        that is made.

    >>> PackedLinear(64, 8, PackedSpec("ternary")).weight.shape
    torch.Size([8, 16])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spec: PackedSpec,
        *,
        bias: nn.Parameter | bool = True,
        weight: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        clip: torch.Tensor | None = None,
        transposed: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.transposed = transposed
        self._take_over(spec, out_features, in_features, weight, scale, device)
        if bias is True:
            bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype), requires_grad=False)
        self.register_parameter("bias", bias if isinstance(bias, nn.Parameter) else None)
        activations = spec.activations
        if activations is not None and activations.clip is not None:
            clip = activations.initial_range().to(device) if clip is None else clip.detach().float()
            self.register_parameter(CLIP, nn.Parameter(clip, requires_grad=False))
        else:
            self.register_parameter(CLIP, None)
        self._cache: dict[str, Any] = {}

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.spec.levels == "int8":
            return self._multiply_int8(input)
        own, spec = self._parameters, self.spec  # each attribute would cost a microsecond, and small layers take few
        weight: Any = own["weight"]
        scale: Any = own["scale"]
        return kernels.linear(
            input,
            weight,
            scale,
            own["bias"],
            levels=spec.levels,
            in_features=self.in_features,
            activations=spec.activations,
            clip=own[CLIP],
            cache=self._cache,
        )

    def _multiply_int8(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply an int8 output embedding in full precision, some rows at a time, so that it stays int8 in memory."""
        rows = max(1, _ROWS_AT_ONCE // self.in_features)
        parts = []
        for levels, scale in zip(self.weight.split(rows), self.scale.split(rows), strict=True):
            parts.append(F.linear(input, apply_scales(levels, scale).to(input.dtype)))
        found = torch.cat(parts, -1)
        return found if self.bias is None else found + self.bias.to(found.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # copies and pickles make it again

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self._describe()}"
