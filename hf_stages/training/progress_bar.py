"""What the console shows: one bar for the whole run, and a line for each evaluation of a set."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging as hf_logging

from hf_stages.reports.text import duration

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


class _AboveTheBar(logging.Filter):
    """Takes the bar away before a message is written over it; its next update brings it back."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self.bar = bar
        self.handlers = [*logging.getLogger().handlers, *logging.getLogger("transformers").handlers, logging.lastResort]

    def filter(self, record: logging.LogRecord) -> bool:
        self.bar.clear()
        return True

    def attach(self) -> None:
        for handler in self.handlers:
            if handler is not None:
                handler.addFilter(self)

    def detach(self) -> None:
        for handler in self.handlers:
            if handler is not None:
                handler.removeFilter(self)


class StageProgress(ProgressCallback):
    """Trainer's progress bar, over all stages: ``2/4 logits  31%|###   | 620/2000 [03:10, stage 120/500, ...]``.

    The trainer calls ``enter`` where a stage starts. Without that call this is Trainer's own bar.
    """

    def __init__(self, max_str_len: int = 100):
        super().__init__(max_str_len)
        self.prediction_bar: Any
        self._at: _Position | None = None
        self._messages: _AboveTheBar | None = None

    def enter(self, name: str, index: int, count: int, first_step: int, steps: int) -> None:
        """Show that a stage starts: its name, its place among ``count``, from 1, its first global step, its steps."""
        self._at = _Position(name, index, count, first_step, steps)
        self._describe()

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            # Steps done before a resume must not count as done just now: they would make the rate absurd.
            self.training_bar.n = self.training_bar.initial = self.training_bar.last_print_n = state.global_step
            self._messages = _AboveTheBar(self.training_bar)
            self._messages.attach()
        self.current_step = state.global_step
        self._describe()

    def on_train_end(self, args, state, control, **kwargs):
        if self._messages is not None:
            self._messages.detach()
            self._messages = None
        super().on_train_end(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None and self._at is not None:
            self.training_bar.total = state.max_steps
            self.training_bar.set_postfix_str(self._outlook(state), refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.training_bar is None or self.prediction_bar is not None or not has_length(eval_dataloader):
            super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
            return
        # disable=None: not where the output is no terminal, which could not take it back.
        self.prediction_bar = tqdm(total=len(eval_dataloader), leave=False, dynamic_ncols=True, disable=None)
        self.prediction_bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = evaluation_line(logs or {}, state.global_step)
        if self.training_bar is None or line is None:
            super().on_log(args, state, control, logs=logs, **kwargs)
        elif state.is_world_process_zero:
            self.training_bar.write(line)

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


_EVALUATIONS = ("eval_", "start_")
_PLACES = ("step", "stage", "epoch")
_UNSHOWN = ("runtime", "per_second", "items", "model_preparation_time")


def evaluation_line(logs: Mapping[str, Any], step: int) -> str | None:
    """Write the log of one evaluation as a line; None where it is another log.

    >>> evaluation_line({"eval_code_loss": 2.34567, "eval_code_items": 900, "eval_code_runtime": 1.5, "epoch": 1.0}, 40)
    'step 40: eval code: loss 2.346 (1.5 s)'
    >>> evaluation_line({"start_loss": 2.0, "epoch": 0}, 20)
    'step 20: start: loss 2, as the stage before ended'
    """
    found = {key: value for key, value in logs.items() if key not in _PLACES}
    if not found or not all(key.startswith(_EVALUATIONS) for key in found):
        return None
    prefix = _common_start(min(found), max(found)).rpartition("_")[0]
    metrics = {key.removeprefix(f"{prefix}_"): value for key, value in found.items()}
    shown = {key: value for key, value in metrics.items() if not key.endswith(_UNSHOWN)}
    told = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
    )
    if "runtime" in metrics:
        told += f" ({duration(metrics['runtime'])})"
    elif prefix.startswith("start"):
        told += ", as the stage before ended"
    return f"step {step}: {prefix.replace('_', ' ', 1)}: {told}"


def _common_start(one: str, other: str) -> str:
    return one[: next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))]


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide transformers' progress bars while a folder is written: each would leave a bar of its own."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
