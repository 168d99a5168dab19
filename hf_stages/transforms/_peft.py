"""What the transforms know of PEFT: whether a model has adapters, and how PEFT renames parameters."""

from __future__ import annotations

import re
import sys
from typing import Any

from torch import nn

_WRAPPER = re.compile(r"\.(?:base_layer|modules_to_save\.[^.]+)(?=\.)")


def base_name(name: str) -> str | None:
    """Return a parameter's name before PEFT renamed it; None for the unused original in ``modules_to_save``.

    >>> base_name("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
    'model.layers.0.self_attn.q_proj.weight'
    >>> base_name("base_model.model.score.modules_to_save.default.weight")
    'score.weight'
    """
    if "original_module" in name.split("."):
        return None
    return _WRAPPER.sub("", name.removeprefix("base_model.model."))


def has_adapters(model: nn.Module) -> bool:
    """Tell whether a model is a PeftModel or has injected adapters. Without an import of peft there can be none."""
    peft: Any = sys.modules.get("peft")
    if peft is None:
        return False
    layer = peft.tuners.tuners_utils.BaseTunerLayer
    return isinstance(model, peft.PeftModel) or any(isinstance(module, layer) for module in model.modules())


def refuse_adapters(model: nn.Module, *, where: str) -> None:
    if has_adapters(model):
        raise ValueError(
            f"{where}: expected a model without adapters, got a {type(model).__name__} that has some; "
            "merge it first: MergeLora()"
        )


def import_peft(where: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(f'{where} needs PEFT: pip install "hf_stages[lora]"') from error
    return peft
