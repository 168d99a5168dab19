"""Capture what attention functions are called with.

An attention function of our own is registered with transformers. It records its arguments and calls the model's own
function. Only the captured layers use it, through a copy of the config: the model's config, its masks and all other
layers stay as they are.
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
_STATE = "_hf_stages_state"
_SUPPORTED = ("eager", "sdpa")


def attention_module(block: nn.Module, where: str) -> nn.Module:
    """Find the self-attention of a block: the module that calls transformers' attention interface."""
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
            f"{where}: {type(block).__name__} has no attention that goes through transformers' AttentionInterface; "
            "losses on attention cannot work here, use HiddenMSE"
        )
    return taking[0]


def capture_attention(module: nn.Module, note: Callable[[Attention], None]) -> Callable[[], None]:
    """Call ``note`` with what the attention of ``module`` gets. Return a function that ends this."""
    state = module.__dict__.get(_STATE)
    if state is None:
        own = module.config
        implementation = getattr(own, "_attn_implementation", None) or "eager"
        if implementation not in _SUPPORTED:
            raise ValueError(
                f"attn_implementation={implementation!r}: losses on attention read the masks of "
                f"{' and '.join(_SUPPORTED)} "
                "only; load the model with attn_implementation='sdpa'"
            )
        state = module.__dict__[_STATE] = _CaptureState(_function(module, implementation), own, implementation)
        config: Any = copy.copy(own)
        config._attn_implementation_internal = _NAME  # the setter would reach into configs shared with other layers
        module.config = config
    state.notes.append(note)

    def stop() -> None:
        state.notes.remove(note)
        if not state.notes:
            module.config = state.config
            del module.__dict__[_STATE]

    return stop


class _CaptureState:
    """The functions to call with one module's attention, and what the module had before."""

    def __init__(self, function: Callable[..., Any], config: Any, implementation: str) -> None:
        self.function, self.config = function, config
        self.may_be_causal = implementation == "sdpa"
        """False for eager attention, which hides only what its mask hides."""
        self.notes: list[Callable[[Attention], None]] = []


def _capturing_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    state = getattr(module, _STATE)
    scaling, bias = kwargs.get("scaling"), kwargs.get("position_bias")
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    captured = Attention(
        query,
        key,
        value,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        attention_mask,
        # As in SDPA: the flag counts only without a mask and with more than one query.
        state.may_be_causal and bool(causal) and attention_mask is None and query.shape[2] > 1,
        kwargs.get("softcap"),
        bias,
    )
    for note in state.notes:
        note(captured)
    return state.function(module, query, key, value, attention_mask, *args, **kwargs)


AttentionInterface.register(_NAME, _capturing_attention)


def _interface_of(module: nn.Module) -> Any:
    return getattr(sys.modules.get(type(module).__module__), "ALL_ATTENTION_FUNCTIONS", None)


def _function(module: nn.Module, implementation: str) -> Callable[..., Any]:
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return _interface_of(module).get_interface(implementation, eager)
