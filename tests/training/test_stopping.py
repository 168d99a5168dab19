"""How far a stage is, and when it is over: its cap, a callback, a request to stop; no model is needed to tell."""

from __future__ import annotations

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_stages import Stage
from hf_stages.core.ledger import Ledger
from hf_stages.planning.plan import PlannedStage, Size
from hf_stages.training.stage.epoch_position import EpochPosition
from hf_stages.training.stage.progress import Progress
from hf_stages.training.stage.stage_notes import StageNotes
from hf_stages.training.stage.stopping import Stopping, StopRequest


def planned(until: str, steps: int) -> PlannedStage:
    size, exact = Size(examples=16, batch=2, accumulation=2), not until.endswith("tokens")
    return PlannedStage(2, Stage("b", until), "a", size, steps, exact, 10, "b", 0.0, float(steps), 1e-3, 1e-3)


@pytest.fixture
def running(tmp_path):
    def make(until: str = "8 steps", steps: int = 8, **args) -> Stopping:
        args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **args)
        progress = Progress(planned(until, steps), first_step=10, run_steps=steps, accumulation=2)
        progress.epoch.enter({"epoch": 0, "steps_in_epoch": 8, "num_update_steps_per_epoch": 4})
        return Stopping(args, progress, StageNotes(Ledger(), "b", progress), StopRequest())

    return make


def update(stopping: Stopping, state: TrainerState, control: TrainerControl | None = None) -> TrainerControl:
    control = control if control is not None else TrainerControl()
    state.global_step += 1
    stopping.progress.count_update(state)
    stopping.after_callbacks(state, control)
    return stopping.conclude(control)


def test_a_resumed_epoch_is_as_much_shorter_as_it_was_trained_already():
    epoch = EpochPosition(accumulation=2, done_before=3)
    left = epoch.enter({"epoch": 1, "steps_in_epoch": 9, "num_update_steps_per_epoch": 5, "other": "kept"})
    assert left == {"epoch": 1, "steps_in_epoch": 3, "num_update_steps_per_epoch": 2, "other": "kept"}
    assert epoch.passed == pytest.approx(1 + 6 / 9)
    epoch.done += 2
    assert epoch.is_over
    assert epoch.passed == 2.0, "the last update has one micro-batch"


def test_a_stage_is_over_at_its_cap_and_the_ledger_says_so(running):
    stopping, state = running(), TrainerState(global_step=10, max_steps=18)
    for _ in range(7):
        assert not update(stopping, state).should_training_stop
    assert (stopping.over, stopping.progress.t) == (None, 7 / 8)
    control = update(stopping, state)
    assert control.should_training_stop
    assert control.should_log
    assert not control.should_save, "the stage's folder is written, so no checkpoint is needed"
    assert (stopping.over, stopping.ended_by) == ("8 steps done", "until")
    assert [(entry.step, entry.kind, entry.by) for entry in stopping.notes.entries()] == [(18, "end", "until")]


def test_a_budget_in_tokens_may_take_more_updates_than_planned(running):
    stopping, state = running("100 tokens", 2), TrainerState(global_step=10, max_steps=12)
    for tokens in (40, 80):
        stopping.progress.tokens = tokens
        assert not update(stopping, state).should_training_stop
    assert state.max_steps == 13
    stopping.progress.tokens = 100
    assert update(stopping, state).should_training_stop
    assert stopping.over == "100 tokens done"


def test_a_callback_that_stops_training_interrupts_the_stage_and_saves(running):
    stopping, state = running(), TrainerState(global_step=10, max_steps=18)
    control = update(stopping, state, TrainerControl(should_training_stop=True))
    assert (stopping.interrupted, stopping.over) == ("callback", None)
    assert control.should_save


def test_all_ranks_obey_a_request_once_all_know_of_it(running):
    stopping, state = running(), TrainerState(global_step=10, max_steps=18)
    stopping.hear(False)
    assert not update(stopping, state).should_training_stop
    stopping.hear(True)  # as it was asked for on another rank
    control = update(stopping, state)
    assert control.should_training_stop
    assert control.should_save
    assert stopping.interrupted == "another rank was asked to stop"


def test_a_save_at_the_end_of_an_epoch_waits_for_the_epochs_own_events(running):
    stopping, state = running(), TrainerState(global_step=10, max_steps=18)
    for _ in range(3):
        assert update(stopping, state, TrainerControl(should_save=True)).should_save
    control = update(stopping, state, TrainerControl(should_save=True))
    assert not control.should_save
    assert stopping.after_epoch(control).should_save
    assert not stopping.after_epoch(TrainerControl()).should_save, "once"
