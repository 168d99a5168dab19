"""When a stage is over: at its cap, by a gate, by a callback, or by a request to stop."""

from __future__ import annotations

from transformers import TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_stages.training.stage.progress import Progress
from hf_stages.training.stage.stage_notes import StageNotes


class StopRequest:
    """Why the run was asked to stop, if it was. It outlives a stage that ends before it can obey."""

    reason: str | None = None


class Stopping:
    """Decides after each update whether the stage goes on, and tells Trainer by its control.

    Args:
        args: The stage's arguments.
        progress: How far the stage is.
        notes: The stage's part of the ledger.
        request: The run's, which other ranks and signals set.
    """

    def __init__(self, args: TrainingArguments, progress: Progress, notes: StageNotes, request: StopRequest) -> None:
        self.args, self.progress, self.notes, self.request = args, progress, notes, request
        self.over: str | None = None
        """Why the stage ended; None while it goes on."""
        self.ended_by = ""
        self.interrupted: str | None = None
        """Why the stage stopped before its end, to be resumed."""
        self.stopped: str | None = None
        """Why a gate stopped the run."""
        self._requested = False
        """Whether all ranks know of a request to stop."""
        self._obeys = False
        """Whether such a request is obeyed after this update."""
        self._save_after_epoch = False

    def end(self, reason: str, *, by: str) -> None:
        """End the stage, and write the reason to the ledger."""
        self.over, self.ended_by = reason, by
        self.notes.note("end", reason, by=by)

    def stop(self, reason: str) -> None:
        """Stop the run behind a checkpoint, once the update in progress is done."""
        self.stopped = reason

    @property
    def is_decided(self) -> bool:
        """Whether no gate has anything left to decide: the stage is over, or the run stops."""
        return self.over is not None or self.stopped is not None

    def hear(self, requested: bool) -> None:
        """Take what all ranks say together. A request that comes later is for the next update, when all know of it."""
        self._requested = requested
        if requested and self.request.reason is None:
            self.request.reason = "another rank was asked to stop"

    def after_callbacks(self, state: TrainerState, control: TrainerControl) -> None:
        """End the stage where it has reached its cap. A callback that stops Trainer before that interrupts it."""
        capped = self.progress.cap_reached()
        if control.should_training_stop and state.global_step < state.max_steps and self.over is None:
            self.interrupted = "callback"
            control.should_save = control.should_save or capped is None
        if self.over is None and capped is not None:
            self.end(capped, by="until")
        # Read once: a signal may come at any moment, and is obeyed after the next update then.
        self._obeys = self._requested or (self.args.world_size == 1 and self.request.reason is not None)

    def pauses(self, control: TrainerControl) -> bool:
        """Whether anything but the next update may follow this one: a log, an evaluation, a checkpoint, an end."""
        asked = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        return asked or self._obeys or self.is_decided or self.progress.epoch.is_over

    def conclude(self, control: TrainerControl) -> TrainerControl:
        """Tell Trainer, after the gates were asked: go on, finish, or save and stop."""
        if not self.is_decided and self._obeys:
            self.interrupted = self.request.reason
            control.should_save = control.should_training_stop = True
        return self.obey(control)

    def obey(self, control: TrainerControl) -> TrainerControl:
        """Tell Trainer what the gates decided: finish the stage, or save and stop the run."""
        if self.over is not None:
            self.finish(control)
        elif self.stopped is not None:
            self.interrupted = self.stopped
            control.should_save = control.should_training_stop = True
        if control.should_save and self.progress.epoch.is_over and self.over is None:
            # Saved after the epoch's own events, so that a resume need not repeat them.
            control.should_save, self._save_after_epoch = False, True
        return control

    def after_epoch(self, control: TrainerControl) -> TrainerControl:
        """Save what was to be saved after the epoch's last update."""
        control.should_save = control.should_save or self._save_after_epoch
        self._save_after_epoch = False
        if self.over is not None and not self.args.load_best_model_at_end:
            control.should_save = False
        return control

    def finish(self, control: TrainerControl) -> None:
        """Let Trainer end. The stage folder comes next; only the choice of a best model needs a checkpoint, too."""
        control.should_training_stop = True
        control.should_log = control.should_log or self.args.logging_strategy != "no"  # the updates since the last log
        best = self.args.load_best_model_at_end
        control.should_save = best and self.args.save_strategy != "no"
        control.should_evaluate = control.should_evaluate or best
