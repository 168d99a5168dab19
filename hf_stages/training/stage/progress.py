"""How far a stage is: in updates, tokens and seconds, and as a share of its length."""

from __future__ import annotations

import time

from transformers.trainer_callback import TrainerState

from hf_stages.core.micro_batch import MicroBatch
from hf_stages.core.randomness import seed_of
from hf_stages.planning.plan import PlannedStage
from hf_stages.training.stage.epoch_position import EpochPosition


class Progress:
    """Counts what a stage has done. All of it is the same on all ranks.

    Args:
        planned: The stage, whose cap says when it is done.
        first_step: Updates that the run had done before the stage.
        run_steps: Updates of the whole run as planned from here: what progress bars count up to.
        accumulation: Micro-batches of one update.
    """

    def __init__(self, planned: PlannedStage, first_step: int, run_steps: int, accumulation: int) -> None:
        self.planned, self.first_step, self.run_steps = planned, first_step, run_steps
        self.steps = 0
        self.micro_batches = 0
        """Micro-batches of the update in progress that have begun."""
        self.tokens = 0.0
        self.seconds = 0.0
        self.seconds_before = 0.0
        """Seconds of the stage that earlier processes trained."""
        self.epoch = EpochPosition(accumulation)
        self._began = time.monotonic()

    @property
    def t(self) -> float:
        """The share of the stage that is done, from 0 to 1; what curves are read at."""
        until = self.planned.stage.until
        if until.unit == "tokens":  # type: ignore[union-attr]
            return min(self.tokens / until.amount, 1.0)  # type: ignore[union-attr]
        return min(self.steps / self.planned.steps, 1.0)

    @property
    def global_step(self) -> int:
        return self.first_step + self.steps

    def start_clock(self) -> None:
        self._began = time.monotonic()

    def seconds_now(self) -> float:
        """Seconds by this rank's clock; ``seconds`` are rank 0's, after each update."""
        return self.seconds_before + time.monotonic() - self._began

    def cap_reached(self) -> str | None:
        """Say why the stage is over, where it has reached its cap."""
        over = self.steps >= self.planned.steps if self.planned.exact else self.t >= 1.0
        return f"{self.planned.stage.until} done" if over else None

    def next_micro_batch(self, seed: int) -> MicroBatch:
        """Begin a micro-batch, and say which it is."""
        place = MicroBatch(seed_of(seed, self.planned.name), self.steps, self.micro_batches)
        self.micro_batches += 1
        return place

    def count_update(self, state: TrainerState) -> None:
        """Count an update that has just been made."""
        self.steps += 1
        self.epoch.done += 1
        state.epoch = self.epoch.passed
        if self.cap_reached() is None and state.global_step >= state.max_steps:
            state.max_steps = state.global_step + 1  # a token budget took more updates than estimated

    def t_of_example(self, epoch: int, position: int) -> float:
        """Find the progress of the update that takes the example at ``position`` of an epoch.

        A stage whose length is in tokens goes by its planned updates here.
        """
        size = self.planned.size
        update = epoch * (size.updates_per_epoch or 0) + position // size.global_batch
        return min(update / self.planned.steps, 1.0)
