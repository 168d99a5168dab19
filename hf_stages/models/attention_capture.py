"""An attention function that notes what it was given and hands on to the model's own.

It goes by its own name in transformers' registry. Only the attention modules of mapped layers are told to use it, by a
config of their own; the model's config, and with it masks and every other layer, stay as they are.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import AttentionInterface

from hf_stages.models.signals import Attention

_NAME = "hf_stages_tap"
_MARK = "_hf_stages_taps"
_SUPPORTED = ("eager", "sdpa")


def attention_module(block: nn.Module, where: str) -> nn.Module:
    """The self-attention of a block: what calls transformers' attention interface."""
    found = []
    for name, module in block.named_modules():
        path = name.lower()
        if "cross" in path or "encdec" in path or "encoder_attn" in path:
            continue
        if "attention" in type(module).__name__.lower() and hasattr(module, "config"):
            found.append(module)
    taking = [m for m in found if _interface_of(m) is not None]
    if not taking:
        raise ValueError(
            f"{where}: {type(block).__name__} has no attention that goes through transformers' AttentionInterface; losses on "
            "attention cannot work here, use HiddenMSE"
        )
    return taking[0]


def capture_attention(module: nn.Module, note: Callable[[Attention], None]) -> Callable[[], None]:
    """Have ``note`` called with what ``module``'s attention gets. Returns what takes it off again."""
    taps = module.__dict__.get(_MARK)
    if taps is None:
        own = module.config
        implementation = getattr(own, "_attn_implementation", None) or "eager"
        if implementation not in _SUPPORTED:
            raise ValueError(
                f"attn_implementation={implementation!r}: losses on attention read the masks of {' and '.join(_SUPPORTED)} only; load "
                "the model with attn_implementation='sdpa'"
            )
        taps = module.__dict__[_MARK] = _Taps(_function(module, implementation), own, implementation)
        config: Any = copy.copy(own)
        config._attn_implementation_internal = _NAME  # the setter would reach into configs shared with other layers
        module.config = config
    taps.notes.append(note)

    def off() -> None:
        taps.notes.remove(note)
        if not taps.notes:
            module.config = taps.config
            del module.__dict__[_MARK]

    return off


class _Taps:
    def __init__(self, function: Callable[..., Any], config: Any, implementation: str) -> None:
        self.function, self.config = function, config
        self.may_be_causal = implementation == "sdpa"
        """Eager attention hides what its mask hides, and nothing else."""
        self.notes: list[Callable[[Attention], None]] = []


def _noting(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    taps = getattr(module, _MARK)
    scaling, bias = kwargs.get("scaling"), kwargs.get("position_bias")
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    seen = Attention(
        query,
        key,
        value,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        attention_mask,
        # As SDPA has it: the flag counts where there is no mask, and for more than one query.
        taps.may_be_causal and bool(causal) and attention_mask is None and query.shape[2] > 1,
        kwargs.get("softcap"),
        bias,
    )
    for note in taps.notes:
        note(seen)
    return taps.function(module, query, key, value, attention_mask, *args, **kwargs)


AttentionInterface.register(_NAME, _noting)


def _interface_of(module: nn.Module) -> Any:
    return getattr(sys.modules.get(type(module).__module__), "ALL_ATTENTION_FUNCTIONS", None)


def _function(module: nn.Module, implementation: str) -> Callable[..., Any]:
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return _interface_of(module).get_interface(implementation, eager)
