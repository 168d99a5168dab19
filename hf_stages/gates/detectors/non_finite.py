"""Find a loss or a gradient that is NaN or infinite."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector, Finding

_TRAINING = ("raw_loss", "raw_loss_max", "loss", "grad_norm", "grad_norm_mean", "grad_norm_max")


@dataclass(frozen=True)
class NonFinite(Detector):
    """Finds a loss or a gradient norm in the newest log that is NaN or infinite, those of evaluations too.

    The Trainer's own ``loss`` passes over values that are not finite; ``raw_loss``, which a monitor logs, does not.
    To catch such an update before it is made, see ``OnSpike``.

    >>> NonFinite()(History(step=20, logs=[{"step": 20, "loss": 2.5, "grad_norm": float("nan")}])).reason[:51]
    'a loss or a gradient is not finite (grad_norm nan);'
    """

    @property
    def metric_read(self) -> str:
        return "loss"

    def find(self, history: History) -> Finding | None:
        newest = {key: value for log in history.logs[-1:] if log["step"] > history.since for key, value in log.items()}
        bad = {key: value for key, value in newest.items() if _is_watched(key) and not math.isfinite(value)}
        if not bad:
            return None
        advice = "OnSpike, which skips such updates and writes down their rows; a lower learning rate, bf16 for fp16"
        return Finding("a loss or a gradient is not finite", bad, advice)


def _is_watched(key: str) -> bool:
    return key in _TRAINING or (key.startswith("eval_") and "loss" in key)
