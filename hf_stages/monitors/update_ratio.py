"""How far an update moves the weights, against their size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hf_stages.core.occasions import LogSpaced, as_occasions
from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher, check_count
from hf_stages.monitors.blocks import WeightsByBlock, local


@dataclass(frozen=True)
class UpdateRatio(Monitor):
    """Logs |update| / |weight| of the update that is logged: of all weights, and of each block.

    Around 1e-3 is usual; far less trains slowly, far more is near to diverging. What is measured is what the optimizer
    did, weight decay included. Large tensors are measured on ``sample`` weights, spread evenly.

    >>> UpdateRatio(sample=None).logs
    ('update_ratio', 'update_ratio_block_*')
    """

    blocks: bool = True
    """Whether each block's ratio is logged."""
    sample: int | None = 65536
    """The most weights of a tensor that are looked at; they are copied before the step. None: all."""
    every: Any = field(default_factory=LogSpaced)
    """On which updates: it takes part in the first training log after each of them."""

    logs: ClassVar[tuple[str, ...]] = ("update_ratio", "update_ratio_block_*")

    def __post_init__(self) -> None:
        as_occasions(self.every, "UpdateRatio")
        if self.sample is not None:
            check_count(self, "sample")

    def watch(self, run: WatchedRun) -> Watcher:
        return _Moves(self, run)


class _Moves(Watcher):
    def __init__(self, declared: UpdateRatio, run: WatchedRun) -> None:
        self.declared = declared
        self.by_block = WeightsByBlock(run.model, sharded=run.sharded)
        self.reset()

    def reset(self) -> None:
        self.before: list[torch.Tensor] | None = None
        self.squares: torch.Tensor | None = None
        """Of the update and of the weights, by block."""

    def before_step(self) -> None:
        self.before = [part.clone() for part in self._parts()]

    def after_step(self) -> None:
        assert self.before is not None
        moves = torch._foreach_sub(self._parts(), self.before)
        # Both are taken of the same weights, so that a sample's share cancels.
        self.squares = torch.stack([self._squares(moves), self._squares(self.before)])
        self.before = None

    def _squares(self, parts: list[torch.Tensor]) -> torch.Tensor:
        scaled = []
        for part, weight in zip(parts, self.by_block.weights, strict=True):
            share = local(weight).numel() / max(part.numel(), 1)
            scaled.append(part.float() * share**0.5 if share > 1 else part)
        return self.by_block.squares(scaled)

    def _parts(self) -> list[torch.Tensor]:
        """Return the weights that are looked at, as views."""
        most = self.declared.sample
        held = [local(weight.detach()).flatten() for weight in self.by_block.weights]
        return [part if most is None else part[:: max(-(-part.numel() // most), 1)] for part in held]

    def log(self, view: Mapping[str, Any]) -> Readings:
        if self.squares is None:
            return {}
        moved, size = self.squares
        seen = {"update_ratio": (moved.sum() / size.sum()).sqrt()}
        if self.declared.blocks:
            ratios = (moved / size).sqrt().unbind()[1:]
            seen |= {f"update_ratio_block_{name}": r for name, r in zip(self.by_block.names, ratios, strict=True)}
        self.reset()
        return seen

    def state_dict(self) -> dict[str, Any]:
        return {"squares": None if self.squares is None else self.squares.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reset()
        squares = state["squares"]
        if squares is not None and len(squares[0]) == len(self.by_block.names) + 1:
            self.squares = torch.tensor(squares, device=self.by_block.groups.device)
