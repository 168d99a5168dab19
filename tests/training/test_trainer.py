"""What a staged run does: transitions, schedules, gates, folders, callbacks. Equalities wherever there is one."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Const, Linear
from hf_stages.core.stops import StageStopped
from hf_stages.gates import Above, Below, Budget, Expect, Plateau
from hf_stages.losses import Loss, TaskLoss
from hf_stages.models.optimizer_moments import load
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.transforms import AddLora, Freeze, MergeLora, ResizeVocab, SetTask, Unfreeze
from tests.support import tiny


def staged(out: Path, stages: list[Stage], *, model=None, args: dict | None = None, **options) -> StagedTrainer:
    given = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}
    given |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "optim": "adamw_torch_fused", **(args or {})}
    options.setdefault("train_dataset", tiny.lm_data())
    return StagedTrainer(model or tiny.llama(), TrainingArguments(str(out), **given), stages=stages, **options)


def summary(out: Path, folder: str) -> dict:
    return json.loads((out / folder / "stage.json").read_text())


def rates(trainer: StagedTrainer, stage: int | None = None) -> list[float]:
    logs = [log for log in trainer.state.log_history if "learning_rate" in log]
    return [log["learning_rate"] for log in logs if stage in (None, log["stage"])]


# ---- steps, folders, callbacks -------------------------------------------------------------------------------------


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


def test_callbacks_see_one_run(tmp_path):
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


def test_folders_are_whole_models(tmp_path):
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


def test_stage_folder_keeps_no_token(tmp_path):
    stages = [Stage("a", "2 steps")]
    args = {"hub_token": "hf_secret", "save_strategy": "steps", "save_steps": 1}
    staged(tmp_path, stages, args=args).train()
    holders = [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_secret" in p.read_bytes()]
    assert (tmp_path / "checkpoint-1" / "training_args.bin").is_file()
    assert holders == []


def test_the_boundary_is_measured(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "4 steps"), Stage("b", "2 steps")], eval_dataset=tiny.lm_data(8))
    trainer.train()
    boundary = summary(tmp_path, "02-b")["boundary"]
    assert boundary["before"]["loss"] == summary(tmp_path, "01-a")["metrics"]["eval_loss"]
    assert boundary["start"]["loss"] == boundary["before"]["loss"]
    assert boundary["shock"]["loss"] == 0
    assert any("start_loss" in log for log in trainer.state.log_history)


def test_named_evaluation_sets(tmp_path):
    sets = {"one": tiny.lm_data(8), "two": tiny.lm_data(8, seed=1)}
    trainer = staged(
        tmp_path, [Stage("a", "2 steps"), Stage("b", "2 steps", eval_dataset={"three": sets["one"]})], eval_dataset=sets
    )
    trainer.train()
    assert {"eval_one_loss", "eval_two_loss"} <= summary(tmp_path, "01-a")["metrics"].keys()
    assert "eval_three_loss" in summary(tmp_path, "02-b")["metrics"]


# ---- learning rates and moments -------------------------------------------------------------------------------------


def test_fresh_is_trainers_own_schedule(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "8 steps")], args={"warmup_steps": 2})
    trainer.train()
    # The rate logged at update k is the one it was made with: k - 1 steps into a linear warmup and decay.
    expected = [1e-3 * (k / 2 if k < 2 else (8 - k) / 6) for k in range(8)]
    assert rates(trainer) == pytest.approx(expected)


def test_resume_goes_on_along_one_shape(tmp_path):
    whole = staged(tmp_path / "whole", [Stage("x", "8 steps", schedule=Fresh(shape="cosine"))])
    whole.train()
    parts = [Stage("a", "3 steps", schedule=Fresh(shape="cosine")), Stage("b", "5 steps", schedule=Resume())]
    cut = staged(tmp_path / "cut", parts)
    cut.train()
    assert rates(cut) == rates(whole)


def test_resume_continues_from_the_rate_a_gate_left(tmp_path):
    stages = [
        Stage("a", "6 steps", schedule=Fresh(shape=Linear(1, 0)), gates=[Budget("2 steps")]),
        Stage("b", "6 steps", schedule=Resume()),
    ]
    trainer = staged(tmp_path, stages)
    trainer.train()
    assert summary(tmp_path, "01-a")["steps"] == 2
    reached = summary(tmp_path, "01-a")["lr_end"]
    assert reached == pytest.approx(1e-3 * 10 / 12)
    assert rates(trainer, 2)[0] == pytest.approx(reached)
    assert summary(tmp_path, "02-b")["lr_end"] == pytest.approx(0)


def test_rewarm_starts_at_the_rate_reached(tmp_path):
    stages = [
        Stage("a", "4 steps", schedule=Fresh(shape=Linear(1, 0.5))),
        Stage("b", "6 steps", schedule=Rewarm(2e-3, warmup=2)),
    ]
    trainer = staged(tmp_path, stages)
    trainer.train()
    second = rates(trainer, 2)
    assert second[:3] == pytest.approx([5e-4, 1.25e-3, 2e-3])
    assert summary(tmp_path, "02-b")["lr_end"] == pytest.approx(0)


@pytest.mark.parametrize("carry", [True, False])
def test_optimizer_is_carried_or_reset(tmp_path, carry):
    """A carried optimizer over two halves of one constant schedule trains as one stage does, but for the data's order."""
    seen: dict = {}

    class First(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 3:
                seen["state"] = {id(p): dict(s) for p, s in optimizer.state.items()}

    schedule = Fresh(optimizer="carry" if carry else "reset")
    trainer = staged(tmp_path, [Stage("a", "3 steps"), Stage("b", "1 steps", schedule=schedule)], callbacks=[First()])
    trainer.train()
    before = load(tmp_path / "01-a" / "training_state")
    if not carry:
        assert seen["state"] == {}
        return
    assert len(seen["state"]) == len(before.state)
    for name, parameter in trainer.model.named_parameters():
        assert float(before.state[name]["step"]) == 3
        assert name in before.shapes
        assert before.shapes[name] == tuple(parameter.shape)


def test_carried_moments_equal_the_parents(tmp_path):
    taken: dict = {}

    class Take(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, model=None, **kwargs):
            if state.global_step == 3:
                for name, parameter in model.named_parameters():
                    taken[name] = optimizer.state[parameter]["exp_avg"].clone()

    stages = [Stage("a", "3 steps"), Stage("b", "1 steps", schedule=Resume())]
    staged(tmp_path, stages, callbacks=[Take()]).train()
    saved = load(tmp_path / "01-a" / "training_state")
    assert taken.keys() == saved.state.keys()
    assert all(torch.equal(taken[name], saved.state[name]["exp_avg"]) for name in taken)
    assert any(tensor.abs().max() > 0 for tensor in taken.values())


# ---- transforms ------------------------------------------------------------------------------------------------------


class Changed(TrainerCallback):
    """Which parameters a stage moved."""

    def __init__(self):
        self.moved: dict[int, set[str]] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        now = {name: p.detach().clone() for name, p in model.named_parameters()}
        old = getattr(self, "now", {})
        changed = {name for name in now if name in old and not torch.equal(now[name], old[name])}
        self.moved[state.global_step] = changed
        self.now = now


def test_freeze_and_unfreeze_take_effect(tmp_path):
    watch = Changed()
    stages = [
        Stage("all", "2 steps"),
        Stage("head", "2 steps", transforms=[Freeze("*", but="lm_head")]),
        Stage("again", "2 steps", transforms=[Unfreeze("layers.1")]),
    ]
    trainer = staged(tmp_path, stages, callbacks=[watch])
    trainer.train()
    names = {name for name, _ in trainer.model.named_parameters()}
    assert watch.moved[2] == names
    assert watch.moved[4] == {"lm_head.weight"}
    assert watch.moved[6] == {n for n in names if ".layers.1." in n or n == "lm_head.weight"}


def test_lora_is_added_trained_and_merged(tmp_path):
    pytest.importorskip("peft")
    watch = Changed()
    stages = [
        Stage("base", "2 steps"),
        Stage("lora", "3 steps", transforms=[AddLora(r=4, target_modules=["q_proj", "v_proj"])]),
        Stage("full", "2 steps", transforms=[MergeLora()], schedule=Resume()),
    ]
    trainer = staged(tmp_path, stages, callbacks=[watch], eval_dataset=tiny.lm_data(8))
    trainer.train()
    assert watch.moved[5]
    assert all("lora_" in name for name in watch.moved[5])
    assert watch.moved[7] == {name for name, _ in trainer.model.named_parameters()}
    for folder in ("02-lora", "03-full"):
        boundary = summary(tmp_path, folder)["boundary"]
        assert abs(boundary["shock"]["loss"]) < 1e-5
        assert max(boundary["deviations"].values()) < 1e-5
    # Stock transformers finds the full base and the adapter in one folder.
    stock = StagedTrainer(
        AutoModelForCausalLM.from_pretrained(tmp_path / "02-lora"), trainer.args, eval_dataset=tiny.lm_data(8)
    )
    ours = StagedTrainer.from_stage(tmp_path / "02-lora", trainer.args, eval_dataset=tiny.lm_data(8))
    expected = summary(tmp_path, "02-lora")["metrics"]["eval_loss"]
    assert stock.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert ours.evaluate()["eval_loss"] == expected


def test_language_model_becomes_a_classifier(tmp_path):
    stages = [
        Stage("language", "2 steps"),
        Stage(
            "classes",
            "2 steps",
            transforms=[SetTask("AutoModelForSequenceClassification", num_labels=3)],
            train_dataset=tiny.class_data(),
            eval_dataset=tiny.class_data(8),
        ),
    ]
    trainer = staged(tmp_path, stages, eval_dataset=tiny.lm_data(8))
    trainer.train()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "02-classes")
    assert loaded.config.num_labels == 3
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert trainer.label_names == ["labels"]


def test_vocabulary_grows(tmp_path):
    wide = tiny.lm_data(seed=3).map(
        lambda row: {"input_ids": [i + 8 for i in row["input_ids"]], "labels": row["labels"]}
    )
    stages = [
        Stage("a", "2 steps"),
        Stage("b", "2 steps", transforms=[ResizeVocab(80)], train_dataset=wide, schedule=Resume()),
    ]
    trainer = staged(tmp_path, stages)
    trainer.train()
    assert trainer.model.get_input_embeddings().weight.shape[0] == 80
    notice = [entry for entry in summary(tmp_path, "02-b")["ledger"] if entry["by"] == "optimizer"]
    assert "its shape changed from [64, 32] to [80, 32]" in notice[0]["reason"]


def test_branches_start_from_their_parent(tmp_path):
    stages = [
        Stage("a", "2 steps"),
        Stage("b", "2 steps"),
        Stage("c", "1 steps", parents="a", args={"learning_rate": 0.0}),
        Stage("d", "1 steps", parents=[], args={"learning_rate": 0.0}),
    ]
    staged(tmp_path, stages).train()

    def weights(folder):
        return AutoModelForCausalLM.from_pretrained(tmp_path / folder).state_dict()

    initial = tiny.llama().state_dict()
    assert all(torch.equal(weights("01-a")[n], t) for n, t in weights("03-c").items())
    assert not all(torch.equal(weights("02-b")[n], t) for n, t in weights("03-c").items())
    assert all(torch.equal(initial[n], t) for n, t in weights("04-d").items())


# ---- gates ---------------------------------------------------------------------------------------------------------------


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


def test_expect_may_only_warn(tmp_path):
    stages = [Stage("a", "2 steps", gates=[Expect("eval_loss", 0.1, 0.2, action="warn")]), Stage("b", "2 steps")]
    staged(tmp_path, stages, eval_dataset=tiny.lm_data(8)).train()
    alerts = [e for e in summary(tmp_path, "02-b")["ledger"] if e["kind"] == "alert"]
    assert "expected 0.1-0.2" in alerts[0]["reason"]


class StopAt(TrainerCallback):
    def __init__(self, at: int):
        self.at = at

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.at


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


def test_best_checkpoint_is_handed_over(tmp_path):
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


# ---- what watches a run ---------------------------------------------------------------------------------------------


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


def test_fractions_of_steps_are_of_the_stage(tmp_path):
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


def test_a_branch_keeps_every_weights_precision(tmp_path):
    model = tiny.llama().to(torch.bfloat16)
    model.lm_head.float()
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps")]
    trainer = staged(tmp_path, stages, model=model)
    trainer.train()
    dtypes = {name: p.dtype for name, p in trainer.blueprint.build().named_parameters()}
    assert dtypes == {name: p.dtype for name, p in model.named_parameters()}
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16}


def test_a_peft_model_may_branch_and_load(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    stages = [
        Stage("a", "2 steps"),
        Stage("b", "2 steps"),
        Stage("c", "1 steps", parents="a", args={"learning_rate": 0.0}),
    ]
    model = peft.get_peft_model(tiny.llama(), config)
    trainer = staged(tmp_path, stages, model=model, eval_dataset=tiny.lm_data(4))
    trainer.train()
    losses = [summary(tmp_path, folder)["metrics"]["eval_loss"] for folder in ("01-a", "02-b", "03-c")]
    assert losses[2] == losses[0] != losses[1]
    loaded = StagedTrainer.from_stage(tmp_path / "02-b", trainer.args, eval_dataset=tiny.lm_data(4))
    assert loaded.evaluate()["eval_loss"] == losses[1]
    assert {n for n, p in loaded.model.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_data_that_is_drawn_at_random_can_be_resumed(tmp_path):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            ids = torch.randint(3, tiny.VOCAB, (8,))
            return {"input_ids": ids, "labels": ids}

    args = {"save_strategy": "steps", "save_steps": 1}
    stages = [Stage("a", "4 steps", train_dataset=Noisy())]
    whole = staged(tmp_path / "whole", stages)
    whole.train()
    staged(tmp_path / "cut", stages, args=args, callbacks=[StopAt(2)]).train()
    again = staged(tmp_path / "cut", stages, args=args)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(t, whole.model.state_dict()[n]) for n, t in again.model.state_dict().items())


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


# ---- losses and teachers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agree(Loss):
    """Squared distance of logits, over all tokens."""

    uses_teacher = True

    def items(self, batch):
        return batch["input_ids"].numel()

    def __call__(self, student, teacher, batch, t):
        return (student.logits - teacher.logits).pow(2).mean(-1).sum()


def test_losses_add_scale_and_are_logged_apart(tmp_path):
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


# ---- data ----------------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, rows: int):
        self.rows = list(tiny.lm_data(rows))
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield from self.rows


def test_a_stream_goes_on_over_its_end(tmp_path):
    """Five rows, windows of 2 x 2: windows go across the pass's end, and nothing leaks."""
    stream = Stream(5)
    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = staged(tmp_path, [Stage("a", "4 steps", train_dataset=stream)], args=args)
    trainer.train()
    assert stream.passes >= 4
    assert summary(tmp_path, "01-a")["tokens"] == 4 * 4 * 16


def test_token_budgets_are_kept_whatever_the_lengths(tmp_path):
    rows = [{"input_ids": list(range(3, 4 + n)), "labels": list(range(3, 4 + n))} for n in range(1, 33)]
    stages = [Stage("a", "400 tokens", schedule=Fresh(shape=Linear(1, 0)))]
    trainer = staged(tmp_path, stages, train_dataset=rows, args={"per_device_train_batch_size": 1})
    trainer.train()
    found = summary(tmp_path, "01-a")
    assert 400 <= found["tokens"] < 400 + 34
    assert found["lr_end"] == 0
    assert rates(trainer) == sorted(rates(trainer), reverse=True)


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own(tmp_path):
    seen: list[int] = []

    def collate(rows):
        seen.extend(row["id"] for row in rows)
        return {k: torch.tensor([row[k] for row in rows]) for k in ("input_ids", "labels")}

    data = tiny.lm_data(10).add_column("id", list(range(10)))
    args = {"remove_unused_columns": False}
    staged(tmp_path, [Stage("a", "2 epochs")], train_dataset=data, data_collator=collate, args=args).train()
    first, second = seen[:10], seen[10:20]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_stage_args_differ_by_stage(tmp_path):
    stages = [
        Stage("a", "2 steps"),
        Stage("b", "2 steps", args={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}),
    ]
    trainer = staged(tmp_path, stages)
    trainer.train()
    assert summary(tmp_path, "01-a")["tokens"] == 2 * 4 * 16
    assert summary(tmp_path, "02-b")["tokens"] == 2 * 16 * 16
    assert trainer.args.per_device_train_batch_size == 4


# ---- bad input -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hidden(Loss):
    needs = frozenset({"hidden"})


BAD = {
    "unknown argument": ([Stage("a", "2 steps", args={"learning_rat": 1})], r"TrainingArguments has no 'learning_rat'; did you mean 'learning_rate'"),
    "refused argument": ([Stage("a", "2 steps", args={"seed": 1})], r"stage 'a': args.seed: 'seed' cannot differ by stage: a stage's seed comes from"),
    "warmup": ([Stage("a", "2 steps", schedule=Fresh(warmup=5))], r"stage 'a': schedule: a warmup of 5 steps is longer than the stage \(2 steps\)"),
    "resume first": ([Stage("a", "2 steps", schedule=Resume())], r"stage 'a': schedule: Resume\(\) needs a parent"),
    "pattern": ([Stage("a", "2 steps"), Stage("b", "2 steps", transforms=[Freeze("layer.9")])], r"stage 'b': transforms\[0\] Freeze: .*'layer.9' matches nothing"),
    "shape": ([Stage("a", "2 steps", schedule=Fresh(shape="reduce_lr_on_plateau"))], r"no function of progress"),
    "teacher missing": ([Stage("a", "2 steps", loss=Agree())], r"stage 'a': teacher: its loss compares with a teacher, but there is none"),
    "teacher unused": ([Stage("a", "2 steps", teacher="stage:b")], r"stage 'a': teacher: given, but no loss"),
    "teacher later": ([Stage("a", "2 steps", loss=Agree(), teacher="stage:b"), Stage("b", "2 steps")], r"expected a model, 'base' or an earlier stage"),
    "empty": ([Stage("a", "2 steps", train_dataset=tiny.lm_data(0))], r"stage 'a': train_dataset: expected at least one example"),
    "stream epochs": ([Stage("a", "2 epochs", train_dataset=Stream(4))], r"stage 'a': until: '2 epochs' on a stream without a length"),
    "no batch": ([Stage("a", "2 epochs", train_dataset=tiny.lm_data(3), args={"dataloader_drop_last": True})], r"3 examples give no batch of 4"),
    "unmeasured gate": ([Stage("a", "2 steps", gates=[Plateau("eval_loss")])], r"stage 'a': gates\[0\] Plateau: eval_loss is never measured"),
    "no eval data": ([Stage("a", "2 steps", args={"eval_strategy": "steps"})], r"stage 'a': eval_dataset: eval_strategy='steps', but there is none"),
    "capture": ([Stage("a", "2 steps", loss=Hidden())], r"stage 'a': loss Hidden: need 'hidden': expected loss, logits"),
    "unknown source": ([Stage("a", "2 steps", train_dataset="nope")], r"no source is called 'nope'"),
}  # fmt: skip


@pytest.mark.parametrize(("stages", "message"), BAD.values(), ids=BAD.keys())
def test_bad_recipes_fail_before_the_first_step(tmp_path, stages, message):
    trainer = staged(tmp_path, stages)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not list(tmp_path.iterdir())


def test_what_stages_make_themselves_is_refused(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="optimizers: each stage makes its own"):
        staged(tmp_path, [Stage("a", "1 steps")], optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="auto_find_batch_size"):
        staged(tmp_path, [Stage("a", "1 steps")], args={"auto_find_batch_size": True}).train()
    with pytest.raises(ValueError, match="teacher without stages"):
        StagedTrainer(tiny.llama(), TrainingArguments(str(tmp_path), use_cpu=True), teacher=tiny.llama())


def test_a_batch_without_labels_is_refused(tmp_path):
    def without_labels(rows):  # the rows have them, and a collator of one's own loses them
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    with pytest.raises(ValueError, match="TaskLoss: the batch has no labels"):
        staged(tmp_path, [Stage("a", "1 steps")], data_collator=without_labels).train()


def test_nan_stops_the_run_and_names_the_term(tmp_path):
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"loss TaskLoss: its value is nan"):
        staged(tmp_path, [Stage("a", "2 steps")], model=model).train()


@pytest.mark.slow
def test_persistent_workers_evaluate_on_all_rows_after_a_transform(tmp_path):
    seen = []

    def count(prediction):
        seen.append(len(prediction.label_ids))
        return {}

    workers = {"eval_strategy": "epoch", "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = staged(
        tmp_path, [Stage("a", "1 epochs", transforms=[Freeze(["bert.embeddings.*"])])], model=tiny.bert(), args=workers,
        train_dataset=tiny.class_data(8), eval_dataset=tiny.class_data(12, seed=1), compute_metrics=count,
    )  # fmt: skip
    trainer.train()
    del trainer
    gc.collect()  # the workers end with their loader
    assert set(seen) == {12}
