"""What ends a stage or the whole run: gates, expectations, callbacks, the best checkpoint."""

from __future__ import annotations

import json

import pytest
from transformers import (
    EarlyStoppingCallback,
)

from hf_stages import Stage
from hf_stages.core.curves import Const
from hf_stages.core.stops import StageStopped
from hf_stages.gates import Above, Below, Budget, Expect, Plateau
from hf_stages.models.optimizer_moments import load
from hf_stages.schedules import Fresh
from tests.support import tiny
from tests.support.runs import StopAt, staged, summary


def test_gates_end_a_stage_and_say_why(tmp_path):
    stages = [
        Stage("a", "20 steps", gates=[Above("loss", 99.0), Budget("200 tokens")]),
        Stage("b", "20 steps", gates=[Below("eval_loss", 99.0)]),
        Stage("c", "20 steps", gates=[Plateau("eval_loss", patience=1)], args={"learning_rate": 0.0}),
    ]
    args = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = staged(tmp_path, stages, eval_dataset=tiny.lm_data(8), args=args)
    trainer.train()
    found = [summary(tmp_path, folder) for folder in ("01-a", "02-b", "03-c")]
    assert [(s["steps"], s["ended_by"]) for s in found] == [(4, "Budget"), (2, "Below"), (4, "Plateau")]
    assert found[0]["ended_because"] == "the budget of 200 tokens is used up (256 tokens)"
    assert [e["stage"] for e in found[2]["ledger"] if e["kind"] == "end"] == ["a", "b", "c"]


def test_expect_stops_before_the_next_stage(tmp_path):
    stages = [Stage("a", "2 steps", gates=[Expect("eval_loss", 0.1, 0.2)]), Stage("b", "2 steps")]
    with pytest.raises(StageStopped, match=r"stage 'a': eval_loss: expected 0.1-0.2, got 4\."):
        staged(tmp_path, stages, eval_dataset=tiny.lm_data(8)).train()
    assert (tmp_path / "01-a" / "stage.json").is_file()
    assert not (tmp_path / "02-b").exists()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "stopped"


def test_an_expectation_that_only_warns_lets_the_run_go_on(tmp_path):
    stages = [Stage("a", "2 steps", gates=[Expect("eval_loss", 0.1, 0.2, action="warn")]), Stage("b", "2 steps")]
    staged(tmp_path, stages, eval_dataset=tiny.lm_data(8)).train()
    alerts = [e for e in summary(tmp_path, "02-b")["ledger"] if e["kind"] == "alert"]
    assert "expected 0.1-0.2" in alerts[0]["reason"]


def test_a_callback_that_stops_ends_the_run_and_leaves_the_stage_open(tmp_path):
    """As a scheduler's preemption does: a checkpoint is saved, and a resume trains the rest of the stage."""
    stages = [Stage("a", "3 steps"), Stage("b", "3 steps")]
    staged(tmp_path, stages, callbacks=[StopAt(2)]).train()
    assert (tmp_path / "checkpoint-2").is_dir()
    assert not (tmp_path / "01-a").exists()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "stopped"
    again = staged(tmp_path, stages)
    assert again.train(resume_from_checkpoint=True).global_step == 6


def test_a_callback_that_stops_at_a_stages_end_ends_the_run_there(tmp_path):
    staged(tmp_path, [Stage("a", "3 steps"), Stage("b", "3 steps")], callbacks=[StopAt(3)]).train()
    assert summary(tmp_path, "01-a")["ended_by"] == "until"
    assert not (tmp_path / "02-b").exists()


def test_early_stopping_works_as_in_trainer(tmp_path):
    args = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss", "learning_rate": 0.0}
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = staged(
        tmp_path,
        [Stage("a", "9 steps"), Stage("b", "2 steps")],
        args=args,
        callbacks=[stopping],
        eval_dataset=tiny.lm_data(8),
    )
    trainer.train()
    assert summary(tmp_path, "01-a")["steps"] == 3
    assert not (tmp_path / "02-b").exists()


def test_the_best_checkpoint_is_handed_over_with_its_moments(tmp_path):
    """With a rate that ruins the model, the best one is the first; its weights and moments go on."""
    best = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    stages = [Stage("a", "4 steps", schedule=Fresh(peak=10.0, shape=Const(1)), args=best), Stage("b", "1 steps")]
    trainer = staged(tmp_path, stages, eval_dataset=tiny.lm_data(8))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_loss" in log and log["stage"] == 1]
    lowest = min(log["eval_loss"] for log in logs)
    assert summary(tmp_path, "01-a")["metrics"]["eval_loss"] == pytest.approx(lowest)
    steps = {float(state["step"]) for state in load(tmp_path / "01-a" / "training_state").state.values()}
    assert steps == {min(logs, key=lambda log: log["eval_loss"])["step"]}
    assert trainer.state.best_model_checkpoint is None  # a stage's best is its own
