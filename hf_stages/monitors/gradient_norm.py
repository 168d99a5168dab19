"""How large gradients are: of each update, and of each block of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_stages.core.occasions import as_occasions
from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher
from hf_stages.monitors.blocks import WeightsByBlock


@dataclass(frozen=True)
class GradientNorm(Monitor):
    """Logs the mean and the largest gradient norm of the updates since the last log, and that of each block.

    The norms are those before clipping. ``grad_norm_block_1`` is that of the first block in the update that is logged.
    The norm of all gradients is Trainer's own measurement and costs nothing. Gradients are the same on all ranks.

    >>> GradientNorm(blocks=False).logs
    ('grad_norm_mean', 'grad_norm_max', 'grad_norm_block_*')
    """

    blocks: bool = True
    """Whether the norm of each block is measured, which reads all gradients of the updates that are logged."""
    every: Any = None
    """On which updates it is logged. None: at each training log."""

    logs: ClassVar[tuple[str, ...]] = ("grad_norm_mean", "grad_norm_max", "grad_norm_block_*")

    def __post_init__(self) -> None:
        as_occasions(self.every, "GradientNorm")

    def watch(self, run: WatchedRun) -> Watcher:
        return _Gradients(run, self.blocks)


class _Gradients(Watcher):
    def __init__(self, run: WatchedRun, blocks: bool) -> None:
        self.device = run.device
        self.by_block = WeightsByBlock(run.model, sharded=run.sharded) if blocks else None
        self.scaler = run.scaler
        self.reset()

    def reset(self) -> None:
        self.total = torch.zeros((), device=self.device)
        self.largest = torch.zeros((), device=self.device)
        self.count = 0
        self.squares: torch.Tensor | None = None

    def gradient_norm(self, norm: Any) -> None:
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded, it is a sum over the ranks
        norm = torch.as_tensor(norm, device=self.device).detach().float()
        self.total = self.total + norm
        self.largest = torch.maximum(self.largest, norm)
        self.count += 1

    def gradients(self) -> None:
        if self.by_block is not None:
            self.squares = self.by_block.squares([weight.grad for weight in self.by_block.weights])
            if self.scaler is not None:  # gradients of float16 are scaled until Trainer clips them
                self.squares = self.squares / self.scaler.get_scale() ** 2

    def log(self, view: Mapping[str, Any]) -> Readings:
        seen: dict[str, Any] = {}
        if self.count:
            seen |= {"grad_norm_mean": self.total / self.count, "grad_norm_max": self.largest}
        if self.squares is not None:
            assert self.by_block is not None
            norms = self.squares.sqrt().unbind()
            seen |= {f"grad_norm_block_{name}": norm for name, norm in zip(self.by_block.names, norms[1:], strict=True)}
        self.reset()
        return seen

    def state_dict(self) -> dict[str, Any]:
        squares = None if self.squares is None else self.squares.tolist()
        return {"total": float(self.total), "largest": float(self.largest), "count": self.count, "squares": squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total = torch.tensor(state["total"], device=self.device)
        self.largest = torch.tensor(state["largest"], device=self.device)
        self.count = state["count"]
        squares = state["squares"]
        fits = squares is not None and self.by_block is not None and len(squares) == len(self.by_block.names) + 1
        self.squares = torch.tensor(squares, device=self.device) if fits else None
