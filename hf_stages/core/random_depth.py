"""How many times a recurrent core runs in one micro-batch: a random number with a long tail."""

from __future__ import annotations

import math

import torch

SPREAD = 0.5
"""Standard deviation of the logarithm of the rate."""


def draw_depths(
    mean: float, count: int = 1, *, spread: float = SPREAD, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw depths from the log-normal Poisson distribution of Huginn (https://arxiv.org/abs/2502.05171).

    A rate is drawn from a log-normal distribution of mean ``mean``; the depth is one more than a Poisson number of
    that rate, so that the mean depth is ``mean + 1``. Most depths lie below the mean, and a few far above it.

    >>> depths = draw_depths(32, 20_000, generator=torch.Generator().manual_seed(0))
    >>> depths.min().item() >= 1, round(depths.float().mean().item()), depths.median().item()
    (True, 33, 29)
    >>> draw_depths(0).tolist()
    [1]
    """
    if mean <= 0:
        return torch.ones(count, dtype=torch.long)
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    rates = torch.exp(math.log(mean) - spread**2 / 2 + spread * normal)
    return torch.poisson(rates, generator=generator).long() + 1
