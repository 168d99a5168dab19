"""Detectors in a plain Trainer: they warn, tell and stop; a resumed run repeats none of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_stages import Stage
from hf_stages.data import AtDepths
from hf_stages.gates import (
    CutRate,
    DeadHeads,
    DeadRecurrence,
    Detector,
    DetectorCallback,
    Finding,
    OnSpike,
    Overthinking,
    StopRun,
    TokenCollapse,
    UnshiftedLabels,
    Webhook,
)
from hf_stages.monitors import AttentionEntropy, Monitor, MonitorCallback, RawLoss
from tests.support import tiny
from tests.support.runs import staged


@dataclass(frozen=True)
class From(Detector):
    """Finds trouble at each log from some step on."""

    step: int = 3

    def find(self, history):
        return Finding("late") if history.step >= self.step else None


def plain(out, callbacks, *, resume=None, trainer=Trainer, eval_dataset=None, **changes):
    given = {"per_device_train_batch_size": 4, "logging_steps": 1, "max_steps": 8, "save_strategy": "no"}
    given |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3}
    args = TrainingArguments(str(out), optim="adamw_torch_fused", **{**given, **changes})
    sets = {"train_dataset": tiny.lm_data(), "eval_dataset": eval_dataset or tiny.lm_data(8)}
    trainer = trainer(tiny.llama(), args, **sets, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_an_incident_is_told_once_and_training_goes_on(tmp_path):
    told = []
    trainer = plain(tmp_path, [DetectorCallback([From()], notify=told.append)])
    assert [(alert.step, alert.kind, alert.by, alert.run) for alert in told] == [(3, "alert", "From", tmp_path.name)]
    assert trainer.state.global_step == 8


class Alike(Monitor):
    """Says that hidden states are alike."""

    def __call__(self, view):
        return {"token_correlation": 0.97}


def test_it_reads_what_monitors_log(tmp_path):
    callback = DetectorCallback([TokenCollapse(warn_for=2)])
    plain(tmp_path, [MonitorCallback([Alike()]), callback])
    assert [(entry.step, entry.kind) for entry in callback.ledger] == [(3, "alert")]


class TaughtNothing(Trainer):
    """Its updates are NaN from the fourth on, as where no row has a label."""

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        return loss * math.nan if self.state.global_step >= 3 else loss


@pytest.mark.parametrize("monitors", [(), (RawLoss(),)])
def test_a_loss_of_0_that_trainers_filter_made_of_nan_is_no_suspect(tmp_path, monitors):
    callback = DetectorCallback([UnshiftedLabels()])
    trainer = plain(tmp_path, [MonitorCallback(list(monitors)), callback], trainer=TaughtNothing)
    assert trainer.state.log_history[-2]["loss"] == 0
    assert len(callback.ledger) == 0


def test_a_loss_that_trainers_filter_made_smaller_is_not_read_where_the_raw_one_is_known(tmp_path):
    seen = []

    class Reads(Detector):
        def find(self, history):
            seen.append([step for step, _ in history.series("loss")])

    callbacks = [MonitorCallback([RawLoss()]), DetectorCallback([Reads()])]
    plain(tmp_path, callbacks, trainer=TaughtNothing, logging_steps=2)
    assert seen[-1] == [2]


def test_an_action_may_end_the_training(tmp_path):
    callback = DetectorCallback(From(then=StopRun()))
    assert plain(tmp_path, [callback]).state.global_step == 3
    assert [entry.kind for entry in callback.ledger] == ["stop"]


def test_a_resumed_run_repeats_no_alert(tmp_path):
    told = []
    saving = {"save_strategy": "steps", "save_steps": 4}
    plain(tmp_path, [DetectorCallback([From()], notify=[told.append])], **saving)
    assert [alert.step for alert in told] == [3]
    again = DetectorCallback([From()], notify=[told.append])
    plain(tmp_path, [again], resume=str(tmp_path / "checkpoint-4"), **saving)
    assert [alert.step for alert in told] == [3]
    assert [entry.step for entry in again.ledger] == [3]


@pytest.mark.parametrize(
    ("detectors", "message"),
    [
        ([UnshiftedLabels], "expected detectors such as Divergence\\(\\), got <class"),
        ([OnSpike()], "OnSpike judges updates before they are made, which needs stages"),
        ([UnshiftedLabels(then=CutRate())], "UnshiftedLabels: then: CutRate needs stages"),
    ],
)
def test_what_needs_stages_is_refused(detectors, message):
    with pytest.raises(ValueError, match=message):
        DetectorCallback(detectors)


def test_a_variable_that_is_not_set_is_refused_as_training_begins(tmp_path, monkeypatch):
    monkeypatch.delenv("TEAM_WEBHOOK", raising=False)
    with pytest.raises(ValueError, match="the environment variable TEAM_WEBHOOK is not set"):
        plain(tmp_path, [DetectorCallback([From()], notify=Webhook("TEAM_WEBHOOK"))])


@pytest.mark.parametrize(
    ("detector", "monitors", "message"),
    [
        (
            TokenCollapse(),
            None,
            r"reads token_correlation, which no monitor of this trainer logs; add .*\[RunHealth\(\) or",
        ),
        (
            TokenCollapse(),
            RawLoss(),
            r"no monitor of this trainer logs; add MonitorCallback\(\[.*TokenCorrelation\(\)\]\)",
        ),
        (
            DeadHeads(),
            RawLoss(),
            r"reads dead_heads, .*; add MonitorCallback\(\[AttentionEntropy\(\)\]\) to its callbacks",
        ),
        (
            DeadRecurrence(),
            RawLoss(),
            r"compares depths .*\(eval_ppl_at_<depth>\), which a plain Trainer does not measure",
        ),
        (Overthinking(), None, r"use it in a stage: Stage\(gates=\[...\], eval_dataset=AtDepths\(dataset\)\)"),
    ],
)
def test_a_detector_that_could_find_nothing_is_refused_before_the_first_step(tmp_path, detector, monitors, message):
    watching = [] if monitors is None else [MonitorCallback([monitors])]
    steps = Steps()
    with pytest.raises(ValueError, match=rf"DetectorCallback: {type(detector).__name__}: it .*{message}"):
        plain(tmp_path, [DetectorCallback([UnshiftedLabels(), detector]), *watching, steps])
    assert steps.begun == 0


@pytest.mark.parametrize("callback", [MonitorCallback([RawLoss()]), DetectorCallback([UnshiftedLabels()])])
@pytest.mark.parametrize("name", [None, "prose"])
def test_an_evaluation_set_at_depths_is_refused_before_the_first_step(tmp_path, callback, name):
    deep, steps = AtDepths(tiny.lm_data(8), [1, 2]), Steps()
    with pytest.raises(ValueError, match="eval_dataset: AtDepths is measured by a StagedTrainer with stages alone"):
        plain(tmp_path, [callback, steps], eval_dataset=deep if name is None else {name: deep})
    assert steps.begun == 0


class Steps(TrainerCallback):
    begun = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun += 1


def test_monitors_are_found_before_and_behind_it_and_those_that_say_no_names_are_trusted(tmp_path):
    heads, detectors = MonitorCallback(AttentionEntropy()), DetectorCallback([DeadHeads()])
    for callbacks in ([heads, detectors], [detectors, heads], [MonitorCallback([Alike()]), detectors]):
        assert plain(tmp_path, callbacks, max_steps=1).state.global_step == 1


def test_a_trainer_that_measures_depths_by_itself_may_compare_them(tmp_path):
    class Measures(Trainer):
        def evaluate(self, *args, **kwargs):
            metrics = {f"eval_ppl_at_{depth}": 20.0 for depth in (1, 8)}
            self.log(metrics)
            return metrics

    callback = DetectorCallback([DeadRecurrence(fallen=0)])
    plain(tmp_path, [callback], trainer=Measures, max_steps=3, eval_strategy="steps", eval_steps=1)
    assert [entry.kind for entry in callback.ledger] == ["alert"]


def test_a_training_log_that_is_never_written_is_told(tmp_path):
    with pytest.raises(ValueError, match=r'UnshiftedLabels: it reads loss from .*, but logging_strategy is "no"'):
        plain(tmp_path, [DetectorCallback([UnshiftedLabels()])], logging_strategy="no")


def test_a_trainer_of_stages_is_told_where_detectors_go(tmp_path):
    with pytest.raises(ValueError, match=r"this trainer runs stages; give detectors to them: Stage\(gates="):
        staged(tmp_path, [Stage("a", "2 steps")], callbacks=[DetectorCallback([UnshiftedLabels()])]).train()
