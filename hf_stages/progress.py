"""One progress bar for the whole run that says which stage it is in and when stage and run will be done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from transformers import ProgressCallback

_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


@dataclass
class _Position:
    name: str
    index: int
    count: int
    first_step: int
    steps: int
    clock_step: int | None = None
    """The first step this process saw in the stage: a resumed stage is timed from there."""
    clock: float = field(default_factory=lambda: time.monotonic())


class StageProgress(ProgressCallback):
    """Trainer's progress bar, over all stages: ``2/4 logits  31%|###   | 620/2000 [03:10, stage 120/500, ...]``.

    The trainer calls ``enter`` where a stage starts. Without that call this is Trainer's own bar.
    """

    def __init__(self, max_str_len: int = 100):
        super().__init__(max_str_len)
        self._at: _Position | None = None

    def enter(self, name: str, index: int, count: int, first_step: int, steps: int) -> None:
        """A stage starts: its name, its place (1-based) among ``count``, its first global step, its planned steps."""
        self._at = _Position(name, index, count, first_step, steps)
        self._describe()

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            # Steps done before a resume must not count as done just now: they would make the rate absurd.
            self.training_bar.n = self.training_bar.initial = self.training_bar.last_print_n = state.global_step
        self.current_step = state.global_step
        self._describe()

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None and self._at is not None:
            self.training_bar.total = state.max_steps
            self.training_bar.set_postfix_str(self._outlook(state), refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def _describe(self) -> None:
        if self.training_bar is not None and self._at is not None:
            self.training_bar.bar_format = _BAR
            self.training_bar.set_postfix_str("", refresh=False)
            self.training_bar.set_description_str(f"{self._at.index}/{self._at.count} {self._at.name}")

    def _outlook(self, state) -> str:
        at, bar = self._at, self.training_bar
        assert at is not None
        if at.clock_step is None:
            at.clock_step = state.global_step - 1
        seconds = (time.monotonic() - at.clock) / max(state.global_step - at.clock_step, 1)
        done = state.global_step - at.first_step
        left, left_run = max(at.steps - done, 0), max(state.max_steps - state.global_step, 0)
        return (
            f"stage {done}/{at.steps}, left {bar.format_interval(left * seconds)}, "
            f"run left {bar.format_interval(left_run * seconds)}"
        )
