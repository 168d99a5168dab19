"""Decoder blocks with a norm on each sum: the sandwich norms that keep a state steady over many cycles."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def is_pre_norm_block(block: nn.Module) -> bool:
    """Tell whether a block is as Llama's: two norms, attention, a feed-forward part, and nothing between them."""
    numbers = [value for name, value in vars(block).items() if isinstance(value, float)]
    return {name for name, _ in block.named_children()} == _CHILDREN and not numbers


def add_sandwich_norms(block: Any) -> None:
    """Put a norm on the sum after attention, and on the sum after the feed-forward part: ``n2(x + Attn(n1(x)))``."""
    width, eps = block.input_layernorm.weight.shape[0], norm_eps(block.input_layernorm)
    like = {"device": block.input_layernorm.weight.device, "dtype": block.input_layernorm.weight.dtype}
    kind: Any = type(block)
    block.__class__ = _sandwich_class(kind)
    # Names in which no rule of transformers for renaming weights on disk (".mlp.", ".block_sparse_moe.") matches.
    block.attention_sum_norm = nn.RMSNorm(width, eps=eps, **like)
    block.block_sum_norm = nn.RMSNorm(width, eps=eps, **like)


def norms_have_gains(block: Any) -> bool:
    """Tell whether a block's two norms have weights; OLMo's first version has none."""
    norms = block.input_layernorm, block.post_attention_layernorm
    return all(torch.is_tensor(getattr(norm, "weight", None)) for norm in norms)


def remove_gains(block: nn.Module) -> None:
    """Let a block's norms have no parameters."""
    for path, norm in list(block.named_modules()):
        name = type(norm).__name__
        if ("RMSNorm" in name or "LayerNorm" in name) and getattr(norm, "weight", None) is not None:
            block.set_submodule(path, GainlessNorm(norm.weight.shape[0], norm_eps(norm), centred="LayerNorm" in name))


class GainlessNorm(nn.Module):
    """A norm without weights. Its name tells no model's ``_init_weights`` that there are some to set.

    >>> GainlessNorm(2, 0.0, centred=False)(torch.tensor([3.0, 3.0])).tolist()
    [1.0, 1.0]
    """

    def __init__(self, width: int, eps: float, *, centred: bool) -> None:
        super().__init__()
        self.width, self.eps, self.centred = width, eps, centred

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        norm = functional.layer_norm if self.centred else functional.rms_norm
        return norm(hidden_states, (self.width,), eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps:g}, centred={self.centred}"


def norm_eps(norm: Any) -> float:
    """Return what a norm adds to the mean square, under either of its names."""
    return float(getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or 1e-6)


class _Sandwich:
    """The forward of a block with sandwich norms. Its other parts and its class stay those of the block it was."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        mixed, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = self.attention_sum_norm(hidden_states + mixed)
        return self.block_sum_norm(hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)))

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _empty_block, (type(self).__mro__[2],), self.__getstate__()


@functools.cache
def _sandwich_class(kind: Any) -> Any:
    """Make the subclass of a block's class. It has the same name, by which FSDP and output capturing find blocks."""
    return type(kind.__name__, (_Sandwich, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _empty_block(kind: type) -> Any:
    own = _sandwich_class(kind)
    return own.__new__(own)
