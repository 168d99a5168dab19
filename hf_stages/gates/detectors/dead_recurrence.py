"""Find that a recurrent model does not use its recurrence."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Finding
from hf_stages.gates.detectors.depth_curves import DepthDetector, depth_curves


@dataclass(frozen=True)
class DeadRecurrence(DepthDetector):
    """Finds that perplexity is the same at all depths, though the model has learned something.

    It reads an evaluation set at several depths (``eval_ppl_at_<depth>``). A model that has learned nothing yet is as
    good at any depth, so the loss must have fallen by ``fallen`` nats before.

    >>> same = {f"eval_ppl_at_{depth}": 20.0 for depth in (1, 8, 32)}
    >>> logs = [{"step": 1, "loss": 6.0}, *({"step": s, "loss": 3.0, **same} for s in (10, 20, 30))]
    >>> DeadRecurrence()(History(step=30, logs=logs)).reason[:45]
    'depth makes no difference to the perplexity ('
    """

    below: float = 0.01
    """The largest difference in ln(perplexity) between depths that counts as none."""
    evaluations: int = field(default=3, kw_only=True)
    """How many evaluations in a row must find so."""
    fallen: float = 1.0
    """By how many nats the training loss must have fallen in the stage; 0 for a model that was trained before."""

    def find(self, history: History) -> Finding | None:
        curves = depth_curves(history, self.of, last=self.evaluations)
        spans = [max(curve.values()) - min(curve.values()) for _, curve in curves]
        if len(spans) < self.evaluations or not max(spans) < self.below:
            return None
        if not self._had_learned(history, at=curves[0][0]):
            return None
        depths = curves[-1][1]
        return Finding(
            "depth makes no difference to the perplexity",
            {"difference in ln(perplexity)": max(spans), "shallowest": min(depths), "deepest": max(depths)},
            "norms around the core's layers (norm='sandwich'), a concatenated input (adapter='concat'), a random "
            "initial state, a larger mean depth",
        )

    def _had_learned(self, history: History, at: int) -> bool:
        losses = [log["loss"] for log in history.logs if "loss" in log and log["step"] <= at]
        return self.fallen <= 0 or (len(losses) > 1 and losses[0] - losses[-1] >= self.fallen)
