"""Find a language model's loss that is too low to be true."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector, Finding


@dataclass(frozen=True)
class UnshiftedLabels(Detector):
    """Finds a loss that falls almost to nothing early on, as where a model learns to repeat its own input.

    Some models do not shift labels themselves; with a collator that sets ``labels = input_ids`` they learn to copy.

    >>> logs = [{"step": 10, "loss": 6.0}, {"step": 20, "loss": 1.0}, {"step": 30, "loss": 0.1}]
    >>> UnshiftedLabels()(History(step=30, logs=logs)).reason[:45]
    'the loss is implausibly low so early (loss 0.'
    """

    below: float = 0.3
    """The loss in nats that no language model reaches so early."""
    within: int = 300
    """It looks at this many updates from the start of the stage."""
    share: float = 0.1
    """The loss must also have fallen below this share of the first one that was logged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"UnshiftedLabels: share: expected above 0 and at most 1, got {self.share}")

    @property
    def metric_read(self) -> str:
        return "loss"

    def find(self, history: History) -> Finding | None:
        losses = [loss for _, loss in history.series("loss")] if history.step <= self.within else []
        if len(losses) < 2:
            return None
        # Below 0 it is no language model's cross-entropy, but a reward's or a margin's. Exactly 0 is what Trainer's
        # filter leaves of updates that were all NaN; no model learns it.
        if min(losses) < 0 or losses[-1] == 0:
            return None
        if not (losses[-1] < self.below and losses[-1] < self.share * losses[0]):
            return None
        return Finding(
            "the loss is implausibly low so early",
            {"loss": losses[-1], "first": losses[0]},
            "look whether the model shifts its labels: it may be learning to repeat its input; look for examples that "
            "stand in the data many times",
        )
