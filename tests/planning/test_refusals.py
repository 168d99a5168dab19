"""What a run's folder refuses, and how it says so; and the ways a run may be stopped and gone on with."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import TrainerCallback, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.core.sealed_folders import seal_folder, write_json
from hf_stages.core.stops import RunInterrupted, StageStopped
from hf_stages.gates import Expect
from hf_stages.schedules import Resume
from hf_stages.transforms import AddLora, Unfreeze
from tests.support import tiny
from tests.support.sameness import assert_equal, assert_same_folder, plain

pytestmark = pytest.mark.usefixtures("quick_gc")

A, B = Stage("a", "4 steps"), Stage("b", "6 steps", schedule=Resume())


class At(TrainerCallback):
    """Does something at the end of an update."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.what()


def trainer(out, stages=(A, B), callbacks=(), **args):
    defaults = {"per_device_train_batch_size": 4, "save_steps": 3, "logging_steps": 2, "learning_rate": 1e-2}
    args = TrainingArguments(str(out), report_to="none", use_cpu=True, disable_tqdm=True, **{**defaults, **args})
    model = tiny.llama(attention_dropout=0.2)
    data = {"train_dataset": tiny.lm_data(), "eval_dataset": tiny.lm_data(4, seed=1)}
    return StagedTrainer(model, args, stages=list(stages), callbacks=list(callbacks), **data)


def interrupt():
    raise KeyboardInterrupt


def cut(out, step, **kwargs):
    with pytest.raises(KeyboardInterrupt):
        trainer(out, callbacks=[At(step, interrupt)], **kwargs).train()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    own = trainer(tmp_path_factory.mktemp("whole"))
    own.train()
    return own


def assert_like(own, whole):
    for name in ("01-a", "02-b"):
        assert_same_folder(Path(own.args.output_dir) / name, Path(whole.args.output_dir) / name)
    assert own.state.global_step == whole.state.global_step == 10
    assert_equal(untimed(own.state.log_history), untimed(whole.state.log_history), "history")
    assert_equal(dict(own.model.state_dict()), dict(whole.model.state_dict()), "weights")


def untimed(history):
    return [{k: v for k, v in log.items() if not k.endswith(("_runtime", "_per_second"))} for log in history]


# ---- stopped and gone on with ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", sorted(random.Random(3).sample([1, 2, 3, 5, 6, 7, 8, 9], 3)))
@pytest.mark.parametrize("same_trainer", [False, True], ids=["anew", "same-trainer"])
def test_a_requested_stop_saves_and_can_be_gone_on_with(tmp_path, whole, step, same_trainer):
    own = trainer(tmp_path, save_steps=100)
    own.add_callback(At(step, lambda: own.request_stop("the node goes down")))
    stage = "a" if step < 4 else "b"
    with pytest.raises(RunInterrupted, match=f"stopped at step {step} in stage '{stage}': the node goes down"):
        own.train()
    assert (tmp_path / f"checkpoint-{step}" / "seal.json").is_file()
    assert plain(tmp_path / "run.json")["status"] == "interrupted"
    again = own if same_trainer else trainer(tmp_path, save_steps=100)
    if same_trainer:
        own.pop_callback(At)
    again.train(resume_from_checkpoint=True)
    assert_like(again, whole)
    assert plain(tmp_path / "run.json")["status"] == "done"


@pytest.mark.parametrize("same_trainer", [False, True], ids=["anew", "same-trainer"])
@pytest.mark.parametrize("step", [5, 8])
def test_ctrl_c_goes_on_from_the_last_checkpoint(tmp_path, whole, step, same_trainer):
    own = trainer(tmp_path, callbacks=[At(step, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        own.train()
    own.pop_callback(At)
    again = own if same_trainer else trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert_like(again, whole)


def test_after_ctrl_c_before_anything_was_saved_a_new_trainer_starts_afresh(tmp_path, whole):
    own = trainer(tmp_path, callbacks=[At(2, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        own.train()
    with pytest.raises(ValueError, match="trained already and nothing was saved to go on from; make the model and the"):
        own.train(resume_from_checkpoint=True)
    again = trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert_like(again, whole)


def test_expectations_stop_a_run_until_they_are_widened(tmp_path, whole):
    narrow = Stage("a", "4 steps", gates=[Expect("eval_loss", 0.0, 0.1)])
    with pytest.raises(
        StageStopped, match=r"stage 'a': eval_loss: expected 0.0-0.1, got \d.*; the run stops before the"
    ) as first:
        trainer(tmp_path, [narrow, B]).train()
    assert plain(tmp_path / "run.json")["status"] == "stopped"
    with pytest.raises(StageStopped) as second:
        trainer(tmp_path, [narrow, B]).train(resume_from_checkpoint=True)
    assert str(second.value) == str(first.value)
    assert len([e for e in plain(tmp_path / "run.json")["ledger"] if e["kind"] == "stop"]) == 1
    wide = Stage("a", "4 steps", gates=[Expect("eval_loss", 0.0, 100.0)])
    again = trainer(tmp_path, [wide, B])
    again.train(resume_from_checkpoint=True)
    assert_equal(dict(again.model.state_dict()), dict(whole.model.state_dict()), "weights")


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was cut in its second stage, after a checkpoint there."""
    out = tmp_path_factory.mktemp("begun")
    cut(out, 8)
    return out


def refused(out, stages=(A, B), resume=True, **args):
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        trainer(out, stages, **args).train(resume_from_checkpoint=resume)
    assert sorted(out.rglob("*")) == before, "a refusal changes nothing"
    return str(error.value)


def test_an_edited_finished_stage_is_refused(begun):
    said = refused(begun, [Stage("a", "5 steps"), B])
    assert said.startswith("stage 'a' is finished and was edited since:")
    assert "until" in said
    assert "4 steps" in said
    assert "5 steps" in said
    assert said.endswith("stages not yet begun may be edited")


def test_an_edited_stage_that_has_begun_is_refused(begun):
    said = refused(begun, [A, Stage("b", "6 steps", schedule=Resume(), args={"weight_decay": 0.1})])
    assert said.startswith("stage 'b' is begun and was edited since:")
    assert "weight_decay" in said
    assert "0.1" in said


def test_a_stage_not_yet_begun_may_be_edited(tmp_path):
    cut(tmp_path, 3)
    again = trainer(tmp_path, [A, Stage("b", "2 steps"), Stage("c", "1 steps")])
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 7
    assert sorted(p.name for p in tmp_path.glob("[0-9]*")) == ["01-a", "02-b", "03-c"]


def test_another_recipe_is_refused(begun):
    said = refused(begun, [Stage("other", "4 steps")])
    assert "the run of another recipe: its finished stage 'a' (01-a) is not in this one at that place" in said
    assert "choose another output_dir" in said
    said = refused(begun, [Stage("other", "4 steps")], resume=False)
    assert "holds the run of another recipe (stages a, b; 01-a is done); choose another output_dir" in said


def test_a_fresh_run_over_an_old_one_is_refused(begun):
    said = refused(begun, resume=False)
    assert f"{begun} already holds a run (1 of 2 stages done" in said
    assert "or choose another output_dir" in said


def test_a_newer_schema_is_refused(tmp_path):
    cut(tmp_path, 8)
    stage = tmp_path / "01-a"
    write_json(stage / "stage.json", {**json.loads((stage / "stage.json").read_text()), "schema": 99})
    seal_folder(stage)
    said = refused(tmp_path)
    assert said == (
        f"{stage}/stage.json: written with schema 99, this version of hf_stages reads up to 1; upgrade hf_stages"
    )


def test_another_global_batch_is_refused(begun, tmp_path):
    said = refused(begun, per_device_train_batch_size=2)
    assert "per_device_train_batch_size" in said
    cut(tmp_path, 8)
    checkpoint = tmp_path / "checkpoint-6"  # as eight ranks would have left it
    state = json.loads((checkpoint / "stage_state.json").read_text())
    write_json(checkpoint / "stage_state.json", {**state, "global_batch": 32})
    seal_folder(checkpoint)
    said = refused(tmp_path)
    assert said == (
        f"{checkpoint}: taken with 32 examples per update, now 4; positions would not match. Set batch size x "
        "accumulation x ranks to what it was"
    )


def test_a_run_resumes_from_the_path_of_a_checkpoint(begun, tmp_path, whole):
    said = refused(begun, resume=str(begun / "checkpoint-3"))
    assert said.startswith(
        f"resume_from_checkpoint: {begun}/checkpoint-3 belongs to no stage that is still to be trained"
    )
    said = refused(begun, resume=str(begun / "checkpoint-77"))
    assert said.startswith(f"resume_from_checkpoint: {begun}/checkpoint-77: ")
    cut(tmp_path, 9, save_steps=2)
    again = trainer(tmp_path, save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_like(again, whole)


def test_base_weights_that_train_beside_an_adapter_survive_a_cut(tmp_path):
    """Trainer's checkpoint of a PEFT model holds the adapter alone."""
    lora = [AddLora(r=2, target_modules=["q_proj"]), Unfreeze("lm_head")]
    stages = (A, Stage("b", "6 steps", transforms=lora))
    whole = trainer(tmp_path / "whole", stages)
    whole.train()
    cut(tmp_path / "cut", 8, stages=stages)
    again = trainer(tmp_path / "cut", stages)
    again.train(resume_from_checkpoint=True)
    assert (tmp_path / "cut" / "checkpoint-6").is_dir()
    assert_like(again, whole)
