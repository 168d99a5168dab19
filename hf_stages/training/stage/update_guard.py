"""Judges each update on the device, after its backward pass and before the optimizer's step, and leaves out bad ones.

Nothing here waits for the device. How an update was judged crosses to the host with the counts of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_stages.gates.detectors.on_spike import OnSpike
from hf_stages.gates.judged import WATCHED, JudgedUpdate
from hf_stages.training.stage.spike_windows import SpikeWindows


class UpdateGuard:
    """Judges updates by an ``OnSpike`` gate, and holds the newest judgement until the host hears it.

    All ranks hold the same: the loss is summed over them, and the gradients that are judged are those they share.

    Args:
        gate: What counts as a spike.
        device: Where updates are judged.
    """

    def __init__(self, gate: OnSpike, device: torch.device | str = "cpu") -> None:
        self.gate = gate
        watched = [name in gate.watch for name in WATCHED]
        self.windows = SpikeWindows(watched, size=gate.window, sigma=gate.sigma, device=device)
        self.skip = torch.zeros((), device=device)
        """1 where the update at hand is left out, else 0; what torch's fused optimizers take as ``found_inf``."""
        self.unheard = self._nothing()
        """[bad, skipped, values, limits, means] of the newest update, until the host takes it."""
        self._running: list[tuple[torch.Tensor, torch.Tensor]] = []

    # ---- on the device ----------------------------------------------------------------------------------------------

    def open_update(self, model: nn.Module) -> None:
        """Keep what a forward in training mode changes and no optimizer does: running statistics of batch norms."""
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
        self._running = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]

    def judge(self, loss: torch.Tensor, grad_norm: Any) -> None:
        """Judge the update at hand.

        Args:
            loss: Its loss over all ranks.
            grad_norm: The norm of its gradient before clipping.
        """
        norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else torch.as_tensor(grad_norm)
        windows = self.windows
        values = torch.stack([one.detach().reshape(()).to(windows.device, windows.exact) for one in (loss, norm)])
        means, limits = windows.means_and_limits()
        finite, spikes = torch.isfinite(values), values > limits
        not_finite = ~finite.all() if self.gate.non_finite else torch.zeros_like(finite[0])
        bad = (spikes & finite).any() | not_finite
        skipped = bad if self.gate.skip else not_finite
        windows.take_in(values, finite & ~bad)
        self.skip = skipped.to(torch.float32)
        self.unheard = torch.cat([torch.stack([bad, skipped]).to(values), values, limits, means])
        for buffer, before in self._running:
            buffer.copy_(torch.where(skipped, before, buffer))
        self._running = []

    def leave_out(self, optimizer: Any, *, sharded: bool) -> None:
        """Let the optimizer's next step change nothing where the update was judged bad.

        torch's fused optimizers take the factor on the device, and spare weights, moments and counts of steps. Any
        other is left without gradients, which it passes over; for that the host must know, so it waits here.
        """
        own = getattr(optimizer, "optimizer", optimizer)  # accelerate's is wrapped around it
        if getattr(own, "_step_supports_amp_scaling", False) and not sharded:
            own.grad_scale, own.found_inf = None, self.skip
        elif bool(self.skip):
            own.zero_grad(set_to_none=True)

    # ---- on the host ------------------------------------------------------------------------------------------------

    def hear(self, numbers: Sequence[float]) -> JudgedUpdate:
        """Read what was ``unheard``, as it came to the host."""
        self.unheard = self._nothing()
        bad, skipped, *rest = numbers
        count = len(WATCHED)
        parts = (rest[:count], rest[count : 2 * count], rest[2 * count :])
        values, limits, means = (dict(zip(WATCHED, part, strict=True)) for part in parts)
        typical = None if math.isnan(means["loss"]) else means["loss"]
        return JudgedUpdate(bad > 0, values, limits, skipped > 0, typical)

    def state_dict(self) -> dict[str, Any]:
        return {**self.windows.state_dict(), "unheard": self.unheard.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.windows.load_state_dict(state)
        self.unheard = torch.tensor(state["unheard"], dtype=self.windows.exact, device=self.windows.device)

    def _nothing(self) -> torch.Tensor:
        return torch.zeros(2 + 3 * len(WATCHED), dtype=self.windows.exact, device=self.windows.device)
