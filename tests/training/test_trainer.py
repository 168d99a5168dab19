"""One run of several stages, as callbacks, trackers, monitors and exporters see it, and what it leaves behind."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.losses import TaskLoss
from tests.support import tiny
from tests.support.runs import Agree, StopAt, staged, summary


class Watch(TrainerCallback):
    def __init__(self):
        self.events: list[str] = []
        self.steps: list[int] = []
        self.totals: set[int] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("begin")

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("end")

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)
        self.totals.add(state.max_steps)


def test_callbacks_see_one_run_whose_steps_go_on_over_stages(tmp_path):
    watch = Watch()
    trainer = staged(tmp_path, [Stage("a", "3 steps"), Stage("b", "1 epochs")], callbacks=[watch])
    out = trainer.train()
    assert watch.events == ["begin", "end"]
    assert watch.steps == list(range(1, 3 + 8 + 1))
    assert watch.totals == {11}
    assert out.global_step == 11
    steps = [log["step"] for log in trainer.state.log_history]
    assert steps == sorted(steps)
    assert {log["stage"] for log in trainer.state.log_history if "loss" in log} == {1, 2}


def test_trackers_get_steps_that_never_restart(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers.integrations import TensorBoardCallback

    trainer = staged(tmp_path, [Stage("a", "3 steps"), Stage("b", "3 steps")], callbacks=[TensorBoardCallback()])
    trainer.train()
    logs = list(tmp_path.rglob("events.out.tfevents.*"))
    assert len(logs) == 1
    events = EventAccumulator(str(logs[0]))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert {(event.step, event.value) for event in events.Scalars("train/stage")} >= {(1, 1), (3, 1), (4, 2), (6, 2)}


def test_each_stage_folder_is_a_whole_model_that_evaluates_as_the_run_did(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "2 steps"), Stage("b", "2 steps")], eval_dataset=tiny.lm_data(8))
    trainer.train()
    found = summary(tmp_path, "02-b")
    assert found["steps"] == 2
    assert found["global_step"] == 4
    assert found["tokens"] == 2 * 4 * 16
    assert found["parents"][0]["name"] == "a"
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "done"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "02-b")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    again = StagedTrainer.from_stage(tmp_path / "02-b", trainer.args, eval_dataset=tiny.lm_data(8))
    assert again.evaluate()["eval_loss"] == found["metrics"]["eval_loss"]


def test_a_hub_token_is_in_no_file(tmp_path):
    stages = [Stage("a", "2 steps")]
    args = {"hub_token": "hf_secret", "save_strategy": "steps", "save_steps": 1}
    staged(tmp_path, stages, args=args).train()
    holders = [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_secret" in p.read_bytes()]
    assert (tmp_path / "checkpoint-1" / "training_args.bin").is_file()
    assert holders == []


def test_a_boundary_without_a_change_has_no_shock(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "4 steps"), Stage("b", "2 steps")], eval_dataset=tiny.lm_data(8))
    trainer.train()
    boundary = summary(tmp_path, "02-b")["boundary"]
    assert boundary["before"]["loss"] == summary(tmp_path, "01-a")["metrics"]["eval_loss"]
    assert boundary["start"]["loss"] == boundary["before"]["loss"]
    assert boundary["shock"]["loss"] == 0
    assert any("start_loss" in log for log in trainer.state.log_history)


def test_a_stages_own_evaluation_sets_replace_those_of_the_run(tmp_path):
    sets = {"one": tiny.lm_data(8), "two": tiny.lm_data(8, seed=1)}
    trainer = staged(
        tmp_path, [Stage("a", "2 steps"), Stage("b", "2 steps", eval_dataset={"three": sets["one"]})], eval_dataset=sets
    )
    trainer.train()
    assert {"eval_one_loss", "eval_two_loss"} <= summary(tmp_path, "01-a")["metrics"].keys()
    assert "eval_three_loss" in summary(tmp_path, "02-b")["metrics"]


class Counter:
    """A monitor with a memory."""

    def __init__(self):
        self.count = 0

    def __call__(self, view):
        self.count += 1
        return {"count": self.count}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_a_monitor_is_logged_and_remembers_over_a_cut(tmp_path):
    args = {"save_strategy": "steps", "save_steps": 2}
    staged(tmp_path, [Stage("a", "6 steps", monitors=[Counter()])], args=args, callbacks=[StopAt(3)]).train()
    again = staged(tmp_path, [Stage("a", "6 steps", monitors=[Counter()])], args=args)
    again.train(resume_from_checkpoint=True)
    assert [log["count"] for log in again.state.log_history if "count" in log] == [1, 2, 3, 4, 5, 6]


class Export:
    fails = 0

    def __call__(self, folder, out):
        if Export.fails:
            Export.fails -= 1
            raise RuntimeError("the exporter broke")
        (out / "name.txt").write_text(folder.name)


def test_an_export_is_whole_and_made_up_for_on_resume(tmp_path):
    Export.fails = 1
    stages = [Stage("a", "1 steps", exporters=[Export()]), Stage("b", "1 steps")]
    with pytest.raises(RuntimeError, match="the exporter broke"):
        staged(tmp_path, stages).train()
    assert not (tmp_path / "01-a-exports").exists()
    staged(tmp_path, stages).train(resume_from_checkpoint=True)
    assert (tmp_path / "01-a-exports" / "name.txt").read_text() == "01-a"


def test_callbacks_do_not_take_the_boundary_for_their_evaluation(tmp_path):
    class Reads(TrainerCallback):
        seen = 0

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            Reads.seen += metrics["eval_loss"] > 0

    staged(tmp_path, [Stage("a", "1 steps")], eval_dataset=tiny.lm_data(4), callbacks=[Reads()]).train()
    assert Reads.seen == 1


def test_every_update_is_in_some_log(tmp_path):
    stages = [Stage("a", "3 steps"), Stage("b", "3 steps")]
    trainer = staged(tmp_path, stages, args={"logging_steps": 4})
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [3, 4, 6]


def test_fractions_of_steps_count_the_steps_of_the_stage(tmp_path):
    args = {"logging_steps": 0.25, "save_strategy": "steps", "save_steps": 0.5}
    trainer = staged(tmp_path, [Stage("a", "512 tokens")], args=args)
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [2, 4, 6, 8]
    assert (tmp_path / "checkpoint-4").is_dir()


def test_evaluating_in_half_precision_leaves_the_model_alone(tmp_path):
    trainer = staged(
        tmp_path,
        [Stage("a", "1 steps"), Stage("b", "1 steps")],
        eval_dataset=tiny.lm_data(4),
        args={"bf16_full_eval": True},
    )
    trainer.train()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "02-b").dtype == torch.float32


def test_a_loss_function_that_divides_by_the_items_is_given_them(tmp_path):
    def divided(outputs, labels, num_items_in_batch=None):
        logits = outputs.logits[:, :-1].reshape(-1, outputs.logits.shape[-1])
        return (
            torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum") / num_items_in_batch
        )

    own = staged(tmp_path / "own", [Stage("a", "3 steps")], compute_loss_func=divided)
    models = staged(tmp_path / "models", [Stage("a", "3 steps")])
    own.train()
    models.train()
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (own, models)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_losses_add_up_scaled_and_are_logged_apart(tmp_path):
    stages = [Stage("a", "4 steps", loss=TaskLoss() + Linear(1, 0) * Agree())]
    trainer = staged(tmp_path, stages, teacher=tiny.llama(seed=7))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for step, log in enumerate(logs):
        assert log["loss"] == pytest.approx(log["loss_TaskLoss"] + (1 - step / 4) * log["loss_Agree"], rel=1e-5)


def test_a_stage_may_teach_another(tmp_path):
    stages = [Stage("a", "2 steps"), Stage("b", "2 steps", parents=[], loss=1.0 * Agree(), teacher="stage:a")]
    trainer = staged(tmp_path, stages)
    trainer.train()
    first = next(log for log in trainer.state.log_history if log.get("stage") == 2 and "loss" in log)
    assert first["loss"] > 0
    assert summary(tmp_path, "02-b")["stage"]["teacher"] == "stage:a"
