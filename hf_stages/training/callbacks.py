"""What callbacks see: one run. Trainer's own training starts and ends once per stage; its callbacks must not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.trainer_callback import CallbackHandler, ProgressCallback

from hf_stages.evaluation.tracker_tags import own_tags


class OneRun(CallbackHandler):
    """Trainer's callback handler, with the stage in progress asked after the user's callbacks.

    ``on_train_begin`` and ``on_train_end`` reach the callbacks once per run, so trackers see one continuous run.
    """

    stage: Any = None
    """The StageRun in progress; None outside a staged run, where this is Trainer's handler and nothing more."""
    callbacks: list[Any]
    has_begun = False
    """Whether callbacks were told that the run begins."""
    _measuring = False

    @classmethod
    def around(cls, handler: CallbackHandler) -> OneRun:
        own = cls.__new__(cls)
        own.__dict__.update(handler.__dict__)
        return own

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hide an evaluation from callbacks, but for its log: its metrics carry another prefix than theirs."""
        self._measuring = True
        try:
            yield
        finally:
            self._measuring = False

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        everyone = self.callbacks
        if self._measuring:
            self.callbacks = [c for c in everyone if isinstance(c, ProgressCallback)]  # it closes its bar here
        try:
            return super().on_evaluate(args, state, control, metrics, **kwargs)
        finally:
            self.callbacks = everyone

    def on_train_begin(self, args, state, control, **kwargs):
        if self.stage is None or not self.has_begun:
            control = super().on_train_begin(args, state, control, **kwargs)
            self.has_begun = self.stage is not None
        control.should_training_stop = False
        if self.stage is not None:
            self.stage.begin()
        return control

    def on_train_end(self, args, state, control, **kwargs):
        return super().on_train_end(args, state, control, **kwargs) if self.stage is None else control

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        control = super().on_pre_optimizer_step(args, state, control, **kwargs)
        if self.stage is not None:
            self.stage.monitors.before_step()
            self.stage.gates.updates.before_step(self.optimizer)
        return control

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.stage is not None:
            self.stage.monitors.after_step()
        return super().on_optimizer_step(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.stage is not None:
            self.stage.progress.count_update(state)
            self.stage.monitors.end_update()
        control = super().on_step_end(args, state, control, **kwargs)
        return self.stage.after_update(state, control) if self.stage is not None else control

    def on_epoch_end(self, args, state, control, **kwargs):
        control = super().on_epoch_end(args, state, control, **kwargs)
        return self.stage.stopping.after_epoch(control) if self.stage is not None else control

    def on_log(self, args, state, control, logs, **kwargs):
        if self.stage is None:
            return super().on_log(args, state, control, logs, **kwargs)
        with own_tags(logs):
            control = super().on_log(args, state, control, logs, **kwargs)
        return self.stage.after_log(state, control)
