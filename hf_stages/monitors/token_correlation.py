"""How alike a model's tokens have become: correlation, effective rank and length of hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hf_stages.core.occasions import LogSpaced, as_occasions
from hf_stages.models.signals import key_of
from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher, check_count, check_layers
from hf_stages.monitors.probes import Probe, check_blocks
from hf_stages.monitors.state_statistics import effective_rank, state_change, state_norm, token_correlation


@dataclass(frozen=True)
class TokenCorrelation(Monitor):
    """Logs how alike the hidden states of a sequence's tokens are after the last block, on fixed rows.

    ``token_correlation`` is the mean correlation of two different tokens of a row: 1 where all have collapsed into one,
    near 0 where they are independent. ``effective_rank`` is how many directions they fill, ``state_norm`` their mean
    length. In a model with a recurrent core all three are of the state that leaves the core, at a fixed depth, and
    ``state_change`` is |s_i - s_(i-1)| / |s_i| at its last cycle. Padding does not count.

    >>> TokenCorrelation(layers=(1, 6)).logs[-1]
    'token_correlation_layer_*'
    """

    layers: tuple[int, ...] = ()
    """Further blocks, counted from 1; theirs is logged as ``token_correlation_layer_1`` and so on."""
    probe: Any = None
    """The rows: a dataset, or a batch of tensors. None: the first of the evaluation set, else of the training set."""
    rows: int = 4
    """How many rows of the dataset."""
    stack: str | None = None
    """Which stack of a model of several, such as ``encoder``."""
    depth: int | None = None
    """Cycles of a recurrent core; None: as many as in evaluation."""
    every: Any = field(default_factory=LogSpaced)
    """On which updates: it takes part in the first training log after each of them."""

    logs: ClassVar[tuple[str, ...]] = (
        "token_correlation", "effective_rank", "state_norm", "state_change", "token_correlation_layer_*",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_layers(self)
        as_occasions(self.every, "TokenCorrelation")
        check_count(self, "rows")
        if self.depth is not None:
            check_count(self, "depth")

    def check(self, run: WatchedRun) -> None:
        check_blocks(run, self, self.layers, self.stack, self.depth)

    def watch(self, run: WatchedRun) -> Watcher:
        return _States(self, run)


class _States(Watcher):
    def __init__(self, declared: TokenCorrelation, run: WatchedRun) -> None:
        self.probe = Probe(
            run,
            declared,
            rows=declared.rows,
            dataset=declared.probe,
            stack=declared.stack,
            depth=declared.depth,
        )
        self.last = key_of("hidden", self.probe.blocks, declared.stack)
        self.further = {layer: key_of("hidden", layer, declared.stack) for layer in declared.layers}
        self.padded: bool | None = None
        try:
            self.log({})  # what cannot work fails here, before the first step
        except ValueError as error:
            raise run.error(declared, str(error)) from error

    def log(self, view: Mapping[str, Any]) -> Readings:
        seen: dict[str, torch.Tensor] = {}
        captured = self.probe.look(frozenset({self.last, *self.further.values()}))
        before, states = captured.get("core") or (None, captured[self.last])
        real = self.probe.real(states)
        if self.padded is None:  # asked once, as it begins: its rows are always the same
            self.padded = bool((real == 0).any())
        seen["token_correlation"] = token_correlation(states, real, padded=self.padded)
        seen["effective_rank"] = effective_rank(states, real)
        seen["state_norm"] = state_norm(states, real)
        if before is not None:
            seen["state_change"] = state_change(before, states, real)
        for layer, key in self.further.items():
            seen[f"token_correlation_layer_{layer}"] = token_correlation(captured[key], real, padded=self.padded)
        return seen
