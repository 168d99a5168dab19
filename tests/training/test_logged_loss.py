"""The log's loss is the mean of the updates that are finite; detectors and incidents read no other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from hf_stages import Stage
from hf_stages.core.micro_batch import current_micro_batch
from hf_stages.gates import EndStage, OnSpike, UnshiftedLabels
from hf_stages.losses import TaskLoss
from tests.support.runs import StopAt, staged, summary

BAD = (3, 6, 7, 8, 9, 10, 12)
"""Updates, from 1, with a loss that is not finite in one of their two micro-batches. Logs fall on every fifth."""


@dataclass(frozen=True)
class SpoiltLoss(TaskLoss):
    """The model's own, but for the second micro-batch of updates that are BAD."""

    def __call__(self, student, teacher, batch, t):
        place = current_micro_batch()
        bad = place is not None and place.step + 1 in BAD and place.number == 1
        return super().__call__(student, teacher, batch, t) * (math.nan if bad else 1.0)


def run(out, *more, logging_steps=5, resume=None, callbacks=(), loss=None, **args):
    gates = [OnSpike(skip=9, rows=args.pop("rows", False)), *more]
    stages = [Stage("a", "15 steps", loss=loss or SpoiltLoss(), gates=gates)]
    given = {"gradient_accumulation_steps": 2, "logging_steps": logging_steps, **args}
    trainer = staged(out, stages, args=given, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return {log["step"]: log["loss"] for log in trainer.state.log_history if "loss" in log}


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    """The loss of each update that is finite, as Trainer logs it."""
    found = losses(run(tmp_path_factory.mktemp("each"), logging_steps=1))
    assert sorted(found) == [step for step in range(1, 16) if step not in BAD]
    return found


def windows(each):
    return {
        end: sum(held) / len(held)
        for end in (5, 10, 15)
        if (held := [each[step] for step in range(end - 4, end + 1) if step in each])
    }


@pytest.mark.parametrize("filtered", [True, False])
def test_the_logs_loss_is_the_mean_of_finite_updates_or_there_is_none(tmp_path, each, filtered):
    trainer = run(tmp_path, logging_nan_inf_filter=filtered)
    assert sorted(losses(trainer)) == [5, 15]  # none of 6 to 10 is finite
    assert losses(trainer) == pytest.approx(windows(each), rel=1e-5)
    whole = sum(each.values()) / len(each)
    assert summary(tmp_path, "01-a")["metrics"]["train_loss"] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("cut", [4, 8])
def test_a_resumed_run_logs_the_same_losses(tmp_path, cut):
    saved = {"save_strategy": "steps", "save_steps": 2}
    whole = run(tmp_path / "whole", **saved)
    run(tmp_path / "cut", callbacks=[StopAt(cut)], **saved)
    resumed = run(tmp_path / "cut", resume=True, **saved)
    assert losses(resumed) == losses(whole)
    ends = [summary(tmp_path / name, "01-a")["metrics"]["train_loss"] for name in ("whole", "cut")]
    assert ends[0] == ends[1]


def test_where_all_is_finite_the_gate_changes_no_bit_of_the_log(tmp_path):
    plain = staged(
        tmp_path / "plain", [Stage("a", "15 steps")], args={"gradient_accumulation_steps": 2, "logging_steps": 5}
    )
    plain.train()
    assert losses(run(tmp_path / "gate", loss=TaskLoss())) == losses(plain)


def test_a_loss_that_is_too_low_by_skipped_updates_alone_ends_no_stage_and_accuses_no_rows(tmp_path):
    trainer = run(tmp_path, UnshiftedLabels(then=EndStage()), rows=True)
    assert trainer.state.global_step == 15
    reasons = [entry["reason"] for entry in summary(tmp_path, "01-a")["ledger"] if entry["kind"] == "incident"]
    assert len(reasons) == len(BAD)
    assert all(": 0 of 8 rows stand out" in reason for reason in reasons), reasons


def test_a_stage_without_a_finite_update_has_no_mean(tmp_path):
    class NaN(TaskLoss):
        def __call__(self, student, teacher, batch, t):
            return super().__call__(student, teacher, batch, t) * math.nan

    trainer = staged(tmp_path, [Stage("a", "3 steps", loss=NaN(), gates=[OnSpike(skip=9)])])
    trainer.train()
    assert losses(trainer) == {}
    assert math.isnan(summary(tmp_path, "01-a")["metrics"]["train_loss"])
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
