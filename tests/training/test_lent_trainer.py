"""A run sets a trainer to its stages, and gives it back with all that it was made with."""

from __future__ import annotations

import shutil

import pytest
from transformers import TrainerCallback

from hf_stages import Stage
from hf_stages.core.stops import StageStopped
from hf_stages.gates import Expect
from hf_stages.losses import LogitKL
from hf_stages.reports.finished_stage import FinishedStage
from hf_stages.training.lent_trainer import OwnSettings
from hf_stages.training.manifest import Manifest
from tests.support import tiny
from tests.support.runs import staged

WORK = ("_stage", "stage_teacher", "_signature_columns", "_train_batch_size", "loss_is_scaled_for_ga")
"""What a stage sets besides the settings."""


class Events(TrainerCallback):
    """Counts beginnings and ends, and fails where it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.fails_at = fails_at

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append("begin")

    def on_train_end(self, args, state, control, **kwargs):
        self.seen.append("end")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.fails_at:
            raise RuntimeError("a callback fails")


def own(trainer) -> dict:
    return {name: getattr(trainer, name, None) for name in (*OwnSettings.__dataclass_fields__, *WORK)}


def stages(**last) -> list[Stage]:
    sets = {"x": tiny.lm_data(8), "y": tiny.lm_data(8, seed=1)}
    return [
        Stage("a", "1 steps", args={"per_device_train_batch_size": 2, "learning_rate": 1e-4}, eval_dataset=sets),
        Stage("b", "1 steps", train_dataset=sets, loss=LogitKL(), teacher=tiny.llama(1), **last),
    ]


@pytest.mark.parametrize("ends", ["well", "by a failing callback", "by a gate"])
def test_a_trainer_gets_back_what_it_was_made_with(ends, tmp_path):
    events = Events(fails_at=2 if ends == "by a failing callback" else None)
    gates = {"gates": [Expect("train_loss", 90.0, 99.0)]} if ends == "by a gate" else {}
    trainer = staged(tmp_path, stages(**gates), callbacks=[events])
    before = own(trainer)
    error = {"by a failing callback": RuntimeError, "by a gate": StageStopped}.get(ends)
    if error is None:
        trainer.train()
    else:
        with pytest.raises(error):
            trainer.train()
    after = own(trainer)
    assert {name for name in before if after[name] is not before[name]} <= {"_train_batch_size"}
    assert after["_train_batch_size"] == before["_train_batch_size"]
    assert events.seen == ["begin", "end"]


def test_a_finished_stage_is_the_same_value_in_the_next_process(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "2 steps"), Stage("b", "1 steps")], eval_dataset=tiny.lm_data(8))
    plan = trainer.plan()
    trainer.train()
    first, second = (FinishedStage.read(tmp_path / planned.folder, planned) for planned in plan.stages)
    assert (first.name, first.global_step, second.global_step) == ("a", 2, 3)
    assert (first.history.step, first.history.logs) == (2, [first.metrics])
    assert first.metrics["eval_loss"] == second.summary["boundary"]["before"]["loss"]
    assert [entry.stage for entry in second.ledger.select(kind="end")] == ["a", "b"]
    assert first.schedule_position == 2
    assert 0 <= first.learning_rate <= trainer.args.learning_rate


class AsksLate(TrainerCallback):
    """Asks to stop once, when the run has ended."""

    trainer = None

    def on_train_end(self, args, state, control, **kwargs):
        if self.trainer is not None:
            self.trainer.request_stop("too late")
            self.trainer = None


def test_a_request_to_stop_at_the_very_end_is_not_for_the_next_run(tmp_path):
    asks = AsksLate()
    trainer = asks.trainer = staged(tmp_path, [Stage("a", "1 steps"), Stage("b", "3 steps")], callbacks=[asks])
    trainer.train()
    assert asks.trainer is None
    shutil.rmtree(tmp_path / "02-b")
    trainer.train(resume_from_checkpoint=True)
    assert (tmp_path / "02-b" / "stage.json").is_file()


def test_a_request_to_stop_ends_with_a_run_that_cannot_begin(tmp_path, monkeypatch):
    trainer = staged(tmp_path, [Stage("a", "3 steps")])

    def fails(*args, **kwargs):
        trainer.request_stop("while the folder is opened")
        raise OSError("no such disk")

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "open", fails)
        with pytest.raises(OSError, match="no such disk"):
            trainer.train()
    trainer.train()
    assert trainer.state.global_step == 3
