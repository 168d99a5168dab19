"""The windows that an update's loss and gradient norm are compared with, kept where the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_stages.gates.spike_window import LEAST, NARROWEST

_JUMP = 0.1
"""Weights of the loss's terms jump where they change by more than this share, all together, between two updates."""


class SpikeWindows:
    """Holds the newest values of several series, and says from where on a next one is a spike.

    What it computes is what ``spike_limit`` does for one series, on the device and without waiting for it.

    >>> windows = SpikeWindows([True], size=128, sigma=6.0)
    >>> for value in [1.0, 3.0] * 32:
    ...     windows.take_in(torch.tensor([value]), torch.tensor([True]))
    >>> windows.limits().tolist()
    [8.0]

    Args:
        watched: For each series, whether it has a limit at all.
        size: How many values of each are held.
        sigma: How many standard deviations above their mean the limit lies.
        device: Where they are kept.
    """

    def __init__(self, watched: Sequence[bool], *, size: int, sigma: float, device: torch.device | str = "cpu") -> None:
        self.size, self.sigma, self.device = size, sigma, torch.device(device)
        self.exact = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64
        self.watched = torch.tensor(list(watched), device=self.device)
        self.values = torch.zeros(len(watched), size, dtype=self.exact, device=self.device)
        self.counts = torch.zeros(len(watched), 1, dtype=torch.long, device=self.device)
        """How many values each has taken in since it began; the oldest are overwritten."""
        self.weights: list[float] | None = None
        """The weights of the loss's terms in the newest update."""

    def limits(self) -> torch.Tensor:
        """Compute what a next value must not exceed; infinite where too few are known."""
        return self.means_and_limits()[1]

    def means_and_limits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the mean of each series, and what a next value must not exceed."""
        held = torch.arange(self.size, device=self.device) < self.counts
        count = held.sum(1).clamp(min=1)
        mean = torch.where(held, self.values, 0.0).sum(1) / count
        variance = torch.where(held, self.values - mean[:, None], 0.0).square().sum(1) / count
        limit = mean + self.sigma * torch.maximum(variance.sqrt(), NARROWEST * mean.abs())
        known = (self.counts[:, 0] >= min(LEAST, self.size)) & self.watched
        return torch.where(self.counts[:, 0] > 0, mean, torch.nan), torch.where(known, limit, torch.inf)

    def take_in(self, values: torch.Tensor, wanted: torch.Tensor) -> None:
        """Add a value to each series where it is ``wanted``."""
        place = self.counts % self.size
        taken = torch.where(wanted[:, None], values[:, None].to(self.exact), self.values.gather(1, place))
        self.values = self.values.scatter(1, place, taken)
        self.counts = self.counts + wanted[:, None]

    def weigh(self, weights: Sequence[float]) -> None:
        """Take in the weights of the next update's terms. Where they jump, a loss of before is no measure of it.

        >>> windows = SpikeWindows([True], size=4, sigma=6.0)
        >>> for weights in ([1.0, 0.5], [1.0, 0.52], [1.0, 2.0]):
        ...     windows.weigh(weights)
        ...     windows.take_in(torch.tensor([1.0]), torch.tensor([True]))
        >>> windows.counts.tolist()
        [[1]]
        """
        before, self.weights = self.weights, list(weights)
        if before is None or len(before) != len(self.weights):
            return
        change = sum(abs(now - old) for now, old in zip(self.weights, before, strict=True))
        if change > _JUMP * sum(map(abs, before)):
            self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.counts = torch.zeros_like(self.counts)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values.tolist(), "counts": self.counts.tolist(), "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = torch.tensor(state["values"], dtype=self.exact, device=self.device)
        self.counts = torch.tensor(state["counts"], device=self.device)
        self.weights = state.get("weights")
