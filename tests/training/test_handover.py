"""What goes from stage to stage: rates, moments, the transformed model, the parent a branch begins with."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    TrainerCallback,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.gates import Budget
from hf_stages.models.optimizer_moments import load
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.transforms import AddLora, Freeze, MergeLora, ResizeVocab, SetTask, Unfreeze
from tests.support import tiny
from tests.support.runs import rates, staged, summary


def test_fresh_is_trainers_own_schedule(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "8 steps")], args={"warmup_steps": 2})
    trainer.train()
    # The rate logged at update k is the one it was made with: k - 1 steps into a linear warmup and decay.
    expected = [1e-3 * (k / 2 if k < 2 else (8 - k) / 6) for k in range(8)]
    assert rates(trainer) == pytest.approx(expected)


def test_a_resumed_schedule_has_the_rates_of_the_uncut_one(tmp_path):
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
def test_moments_are_carried_or_reset_as_the_schedule_says(tmp_path, carry):
    """A carried optimizer over two halves of a constant schedule trains as one stage does, but for the data's order."""
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


def test_only_unfrozen_weights_move(tmp_path):
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


def test_lora_alone_is_trained_and_merging_it_changes_no_loss(tmp_path):
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


def test_a_language_model_becomes_a_classifier_that_loads(tmp_path):
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


def test_a_grown_table_loses_its_moments_and_the_ledger_says_so(tmp_path):
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


def test_branches_start_from_their_parent_or_from_the_initial_model(tmp_path):
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
