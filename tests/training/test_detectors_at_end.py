"""Detectors are asked about a stage's last log and its final evaluation, before its folder is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from hf_stages import Resume, Stage, StagedTrainer
from hf_stages.core.stops import StageStopped
from hf_stages.gates import CutRate, Detector, Divergence, EndStage, Finding, NonFinite, Rollback, StopRun
from tests.support import tiny
from tests.support.runs import StopAt, staged, summary


class LastGradientBad(StagedTrainer):
    """The loss of the tenth update is finite, and its gradient is not."""

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.state.global_step == 9:
            for weight in model.parameters():
                weight.grad *= math.nan
        return loss


def run(out, gates, *, resume=None, callbacks=()):
    stages = [Stage("a", "10 steps", gates=gates)]
    data = {"train_dataset": tiny.lm_data(), "eval_dataset": tiny.lm_data(8)}
    made = staged(out, stages, args={"logging_steps": 3, "save_strategy": "steps", "save_steps": 4})
    trainer = LastGradientBad(made.model, made.args, stages=stages, callbacks=list(callbacks), **data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def noted(out, folder="01-a"):
    found = summary(out, folder)["ledger"]
    return [(e["step"], e["kind"], e["by"]) for e in found if e["kind"] not in ("begin", "notice")]


def test_a_gradient_that_is_not_finite_at_the_last_update_is_told(tmp_path):
    run(tmp_path, [NonFinite()])
    assert noted(tmp_path) == [(10, "end", "until"), (10, "alert", "NonFinite")]
    reason = summary(tmp_path, "01-a")["ledger"][-1]["reason"]
    assert "grad_norm nan" in reason


def test_a_way_back_leaves_the_state_that_it_went_to_in_the_folder(tmp_path):
    trainer = run(tmp_path, [NonFinite(then=Rollback(4, factor=1))])
    assert noted(tmp_path) == [(10, "end", "until"), (10, "rollback", "NonFinite")]
    assert "after 6 updates" in summary(tmp_path, "01-a")["ledger"][-1]["reason"]
    held = load_file(tmp_path / "01-a" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in held.values())
    assert all(torch.equal(weight, held[name]) for name, weight in trainer.model.named_parameters() if name in held)
    assert summary(tmp_path, "01-a")["metrics"]["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])


def test_a_run_that_was_cut_decides_the_same_at_the_end(tmp_path):
    gates = [NonFinite(then=Rollback(4, factor=1))]
    run(tmp_path / "whole", gates)
    run(tmp_path / "cut", gates, callbacks=[StopAt(5)])
    run(tmp_path / "cut", gates, resume=True)
    ledgers = [summary(tmp_path / name, "01-a")["ledger"] for name in ("whole", "cut")]
    assert ledgers[0] == ledgers[1]
    ends = [load_file(tmp_path / name / "01-a" / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


@dataclass(frozen=True)
class EvaluationAt(Detector):
    """Finds something in an evaluation at one step."""

    step: int = 0

    def find(self, history):
        newest = history.logs[-1]
        return Finding("it is time") if newest["step"] == self.step and "eval_loss" in newest else None


@pytest.mark.parametrize(("action", "kind"), [((), "alert"), (EndStage(), "alert"), (CutRate(0.5), "cut_lr")])
def test_the_final_evaluation_is_judged_too(tmp_path, action, kind):
    stages = [
        Stage("a", "4 steps", gates=[EvaluationAt(step=4, then=action)]),
        Stage("b", "4 steps", schedule=Resume()),
    ]
    trainer = staged(tmp_path, stages, args={"lr_scheduler_type": "constant"}, eval_dataset=tiny.lm_data(8))
    trainer.train()
    assert noted(tmp_path) == [(4, "end", "until"), (4, kind, "EvaluationAt")]
    assert summary(tmp_path, "01-a")["ended_by"] == "until"
    rates = [log["learning_rate"] for log in trainer.state.log_history if log.get("stage") == 2 and "loss" in log]
    assert rates == [5e-4 if action == CutRate(0.5) else 1e-3] * 4  # a later stage of the same schedule


@pytest.mark.parametrize("more", [True, False])
def test_stop_run_stops_before_the_next_stage_and_a_resumed_run_goes_on_without_a_second_stop(tmp_path, more):
    def made():
        stages = [Stage("a", "4 steps", gates=[EvaluationAt(step=4, then=StopRun())]), Stage("b", "2 steps")]
        return staged(tmp_path, stages[: 1 + more], eval_dataset=tiny.lm_data(8))

    advice = "; resume to go on with the next stage" if more else ""
    with pytest.raises(StageStopped, match=rf"stage 'a': it is time; the run stops here; 01-a is whole{advice}$"):
        made().train()
    assert not (tmp_path / "02-b").exists()
    stopped = [(4, "end", "until"), (4, "stop", "EvaluationAt")]
    assert noted(tmp_path) == stopped
    made().train(resume_from_checkpoint=True)
    assert noted(tmp_path) == stopped
    assert not more or noted(tmp_path, "02-b") == [*stopped, (6, "end", "until")]


def test_a_detector_that_no_log_reached_before_the_end_leaves_a_notice(tmp_path):
    stages = [Stage("a", "6 steps", gates=[Divergence()]), Stage("b", "1 steps", gates=[NonFinite()])]
    staged(tmp_path, stages, args={"logging_steps": 1000}).train()
    notices = [e for e in summary(tmp_path, "02-b")["ledger"] if e["kind"] == "notice" and e["by"] == "Divergence"]
    assert [e["stage"] for e in notices] == ["a"]
    assert "within the 6 updates before; set logging_steps" in notices[0]["reason"]
    staged(tmp_path / "often", [Stage("a", "6 steps", gates=[Divergence()])], args={"logging_steps": 3}).train()
    assert not [e for e in summary(tmp_path / "often", "01-a")["ledger"] if e["by"] == "Divergence"]
