"""Add the trained low-rank parts to the weights and drop them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_stages.transforms._peft import base_name, import_peft
from hf_stages.transforms.base import Transform


@dataclass(frozen=True)
class MergeLora(Transform):
    """``W`` becomes ``W + alpha / r * B A``: the plain model again, as fast as before AddLora.

    What was trainable before ``AddLora`` is trainable again; in a PeftModel made elsewhere all floating-point
    parameters are. The function is kept up to rounding in the weights' dtype. Adapters with NaN are refused.

    >>> MergeLora().moves(["base_model.model.q.base_layer.weight", "base_model.model.q.lora_A.w"], ["q.weight"])
    {'base_model.model.q.base_layer.weight': ['q.weight']}
    """

    keeps_function = True

    def __call__(self, model: nn.Module) -> nn.Module:
        peft = import_peft("MergeLora")
        if not isinstance(model, peft.PeftModel):
            raise ValueError(f"MergeLora: expected a PeftModel, got {type(model).__name__}; AddLora() makes one")
        if not isinstance(model.base_model, peft.tuners.tuners_utils.BaseTuner):
            raise ValueError(
                f"MergeLora: expected an adapter inside the weights, such as LoRA, got {model.peft_type}, which PEFT "
                "cannot merge; start this stage from the one before the adapter"
            )
        _refuse_quantized(model, peft)
        before = getattr(model, "_trainable_before_lora", None)
        # The check for NaN reads values, which a skeleton on the meta device does not have.
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        merged = model.merge_and_unload(safe_merge=not on_meta)
        for name, parameter in merged.named_parameters(remove_duplicate=False):
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(before is None or name in before)
        return merged

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """Moments go back to the names of the base model; those of the low-rank parts are dropped."""
        known = set(after)
        return {name: [base] for name in before if (base := base_name(name)) is not None and base in known}


def _refuse_quantized(model: nn.Module, peft: Any) -> None:
    """Refuse quantized layers of ours: they would quantize what is merged into their weight as well."""
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            base = module.get_base_layer()
            if type(base).__module__.startswith("hf_stages."):
                raise ValueError(
                    f"MergeLora: {base_name(name)}: expected a plain layer, got a {type(base).__name__}, which would "
                    "quantize the merged weight and change the function; keep the adapter, or merge before quantizing"
                )
