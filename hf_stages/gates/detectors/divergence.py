"""Find that the loss has risen far above its best and does not come back."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector, Finding
from hf_stages.gates.detectors.stretches import is_flat, last_stretch, length_of, lowest_level


@dataclass(frozen=True)
class Divergence(Detector):
    """Finds a loss that stays at ``ratio`` times its best level for ``patience`` updates without falling.

    A curriculum that turns to harder data makes the loss jump as well, but then it falls again.

    >>> losses = [3.0] * 10 + [7.0] * 12
    >>> logs = [{"step": 10 * (n + 1), "loss": loss} for n, loss in enumerate(losses)]
    >>> Divergence()(History(step=220, logs=logs)).reason
    'the loss is far above its best and does not come back (loss 7, best 3, for updates 110); to try: a lower learning \
rate, a longer warmup, a smaller max_grad_norm'
    """

    ratio: float = 2.0
    """How many times its best level the loss must be."""
    patience: int = 100
    """For how many updates it must stay there."""
    metric: str = "loss"
    """The loss to read."""
    cooldown: int = field(default=500, kw_only=True)
    """After this many updates without an alert, ``then`` begins with its first action again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratio > 1:
            raise ValueError(f"Divergence: ratio: expected a number above 1, got {self.ratio}")
        if self.patience < 1:
            raise ValueError(f"Divergence: patience: expected at least 1, got {self.patience}")

    def find(self, history: History) -> Finding | None:
        series = history.series(self.metric)
        values = [value for _, value in series]
        if not values or values[-1] < self.ratio * min(values):
            return None
        best = lowest_level(values)
        high = last_stretch(reversed(series), lambda value: not value < self.ratio * best)
        losses = [value for _, value in high]
        if best <= 0 or len(high) < 4 or length_of(high) < self.patience or not is_flat(losses, least_fall=0.02):
            return None
        return Finding(
            "the loss is far above its best and does not come back",
            {self.metric: losses[-1], "best": best, "for updates": length_of(high)},
            "a lower learning rate, a longer warmup, a smaller max_grad_norm",
        )
