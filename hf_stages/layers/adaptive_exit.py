"""When a token has thought long enough: rules by which it leaves a recurrent core before its last cycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hf_stages.layers.cycle_cache import PeekingCache

THRESHOLDS = {"kl": 5e-4, "change": 0.03, "gate": 0.5}
"""Where each rule lets a token go: a divergence in nats, a share of the state's size, a probability."""


@dataclass(frozen=True)
class ExitRule:
    """A rule and its threshold.

    ``"kl"``: the next token's distribution moved by less than the threshold in the last cycle. ``"change"``: the state
    did, against its size; this reads no logits. ``"gate"``: a learned gate has opened with at least that probability.
    """

    kind: str
    threshold: float

    def __post_init__(self) -> None:
        if self.kind not in THRESHOLDS:
            raise ValueError(f"exit: expected {', '.join(map(repr, THRESHOLDS))} or None, got {self.kind!r}")
        if not self.threshold > 0:
            raise ValueError(f"exit_threshold: expected more than 0, got {self.threshold!r}")


@dataclass(frozen=True)
class Cycles:
    """What the cycles of one forward give a loss: those with gradients, or all where there are none."""

    states: tuple[torch.Tensor, ...]
    """After each cycle, what enters the head, as (batch, tokens, width)."""
    leaving: tuple[torch.Tensor, ...]
    """After each cycle, the probability that a token leaves there, if not before, as (batch, tokens)."""
    head: nn.Module | None = None
    """Makes logits of what enters it; None where the model changes these logits (by a scale, a soft cap)."""


@dataclass(frozen=True)
class CycleWatch:
    """Takes the cycles of those forwards that somebody wants."""

    is_wanted: Callable[[], bool]
    take: Callable[[Cycles], None]


class Settling:
    """Which tokens of one forward have left the loop, and after how many cycles.

    Args:
        rule: When a token leaves.
        core: The recurrent core, which has the gate and knows how to read a state out.
        start: The state before the first cycle.
        cache: The model's cache.
        kwargs: What the model's blocks are called with (mask, positions).
    """

    def __init__(self, rule: ExitRule, core: Any, start: torch.Tensor, cache: Any, kwargs: dict[str, Any]) -> None:
        self.rule, self.core, self._cache, self._kwargs = rule, core, cache, kwargs
        self.settled = torch.zeros(start.shape[:2], dtype=torch.bool, device=start.device)
        self.cycles = torch.zeros(start.shape[:2], dtype=torch.long, device=start.device)
        self.slots: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Keys and values of the newest cycle, by layer."""
        self._stays = torch.ones(start.shape[:2], device=start.device)
        """Probability that the gate has not opened yet."""
        self._log_probs: torch.Tensor | None = None

    def step(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Take a cycle's result, except where a token has left; then see which tokens leave now."""
        state = torch.where(self.settled[..., None], before, after)
        self.cycles += (~self.settled).long()
        self.settled = self.settled | self._leaves(before, state)
        return state

    def _leaves(self, before: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        if self.rule.kind == "change":
            moved = torch.linalg.vector_norm((state - before).float(), dim=-1)
            return moved < self.rule.threshold * torch.linalg.vector_norm(state.float(), dim=-1)
        if self.rule.kind == "gate":
            self._stays = self._stays * (1 - self.core.gate_probability(state))
            return 1 - self._stays >= self.rule.threshold
        logits = self.core.read_out(state, PeekingCache(self._cache), self._kwargs)
        last, self._log_probs = self._log_probs, functional.log_softmax(logits.float(), dim=-1)
        if last is None:
            return torch.zeros_like(self.settled)
        moved = functional.kl_div(last, self._log_probs, reduction="none", log_target=True).sum(-1)
        return moved < self.rule.threshold


def exit_shares(leaving: torch.Tensor) -> torch.Tensor:
    """Return with which probability a token leaves after each cycle; whoever is left leaves after the last.

    Args:
        leaving: The probability of leaving after each cycle, if not before, as (cycles, tokens).

    >>> exit_shares(torch.tensor([[0.5], [0.5], [0.1]])).flatten().tolist()
    [0.5, 0.25, 0.25]
    """
    stays = torch.cumprod(1 - leaving, dim=0)
    before = torch.cat((torch.ones_like(stays[:1]), stays[:-1]))
    # The last cycle's gate says nothing, but keeps a place in the graph: DDP waits for a gradient of the gate.
    return torch.cat((before[:-1] * leaving[:-1], before[-1:] + 0 * leaving[-1:]))


class ReadOut:
    """Makes logits of a state: the blocks after the core, the last norm, the head.

    Args:
        model: The whole model. The core keeps it in a way that registers no module.
        stack: The name of the module that holds the blocks and the last norm.
        first: How many blocks come before the core.
    """

    def __init__(self, model: nn.Module, stack: str, first: int) -> None:
        self.model, self.stack, self.first = model, stack, first

    def __call__(self, state: torch.Tensor, cache: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        model: Any = self.model
        return model.get_output_embeddings()(self.before_head(state, cache, kwargs))

    def before_head(self, state: torch.Tensor, cache: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        model: Any = self.model
        inner = model.get_submodule(self.stack)
        for layer in inner.layers[self.first + 1 :]:
            state = layer(state, past_key_values=cache, **kwargs)
        return inner.norm(state)

    def problem(self) -> str | None:
        """Say what it lacks; None where it can read a state out."""
        model: Any = self.model
        inner = model.get_submodule(self.stack)
        if model.get_output_embeddings() is None:
            return "has no output head, by which a state could be read out"
        return None if hasattr(inner, "layers") and hasattr(inner, "norm") else "has no last norm after its blocks"


def check_growing(cache: Any) -> None:
    """Refuse a cache that cannot be looked into without writing to it."""
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    if kinds - {"DynamicLayer"}:
        raise ValueError(
            f"past_key_values: exit='kl' reads each state out beside a growing cache of full attention, got "
            f"{', '.join(sorted(kinds))}; generate without cache_implementation, or use exit='change'"
        )
