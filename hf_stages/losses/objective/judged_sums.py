"""What an update is judged by before it is stepped, and sums for the log that hold nothing but finite numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class JudgedSums:
    """Keeps the loss of the update at hand, and keeps what is not finite out of the log.

    Args:
        device: Where sums are kept.
        world: How many ranks train.
        forgives: Whether an update that is not finite is left to whoever judges it.
    """

    def __init__(self, device: torch.device, world: int, forgives: bool) -> None:
        self.world, self.forgives = world, forgives
        self.loss = torch.zeros((), device=device)
        """The weighted loss of the update, over all ranks once the update is closed; NaN on one rank is NaN on all."""
        self.left_out = torch.zeros(1, device=device)
        """How many updates since the last log were not finite."""
        self._logged: dict[int, torch.Tensor] = {}

    def open_update(self, logged: Mapping[int, torch.Tensor]) -> None:
        """Begin an update. ``logged`` are sums that its forward passes will add to."""
        self.loss = torch.zeros_like(self.loss)
        self._logged = {i: sums.clone() for i, sums in logged.items()} if self.forgives else {}

    def add(self, share: torch.Tensor) -> None:
        """Add a micro-batch's share of the loss."""
        self.loss += share.detach().to(self.loss)

    def close_update(self) -> None:
        """Sum the loss over the ranks."""
        if self.world > 1:
            torch.distributed.all_reduce(self.loss)

    @property
    def is_finite(self) -> torch.Tensor:
        """Whether the update's loss is finite on all ranks, once it is closed."""
        return torch.isfinite(self.loss)

    def finite_sums(
        self, sums: torch.Tensor, update: torch.Tensor, logged: Mapping[int, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Return the sums with the update's added and ``logged`` as it is, or both as before where it is not finite."""
        finite = self.is_finite
        self.left_out = self.left_out + (~finite).to(self.left_out)
        return (
            torch.where(finite, sums + update, sums),
            {i: torch.where(finite, now, self._logged[i]) for i, now in logged.items()},
        )
