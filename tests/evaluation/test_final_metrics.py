"""A folder's metrics are measured on the weights in the folder, and measured twice only where these changed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.core.stops import StageStopped
from hf_stages.gates import Below, Expect
from hf_stages.losses import TaskLoss
from hf_stages.models.state_checksum import state_checksum
from hf_stages.transforms import Ternarize
from hf_stages.transforms.base import Transform
from tests.support import tiny


class Counting(StagedTrainer):
    measured = 0

    def evaluation_loop(self, *args, **kwargs):
        self.measured += 1
        return super().evaluation_loop(*args, **kwargs)


def run(out, stages, model=None, *, callbacks=(), data=None, train=True, **changes):
    data = tiny.class_data(16) if data is None else data
    args = TrainingArguments(
        str(out),
        **{
            "per_device_train_batch_size": 4,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **changes,
        },
    )
    model = tiny.bert(num_hidden_layers=1) if model is None else model
    trainer = Counting(model, args, train_dataset=data, eval_dataset=data, stages=stages, callbacks=list(callbacks))
    if train:
        trainer.train()
    return trainer


def said(out, name="01-a"):
    return json.loads((out / name / "stage.json").read_text())["metrics"]


def loss_of(out, name="01-a"):
    """The loss of the folder's model, by itself."""
    args = TrainingArguments(str(out / "again"), report_to="none", use_cpu=True, disable_tqdm=True)
    return StagedTrainer.from_stage(out / name, args).evaluate(tiny.class_data(16))["eval_loss"]


RISING = Ternarize(strength=Linear(0, 1))


@pytest.mark.parametrize("steps", [4, 1])
def test_a_strength_that_rises_to_the_end_is_measured_at_its_end(tmp_path, steps):
    trainer = run(tmp_path, [Stage("a", f"{steps} steps", transforms=[RISING])])
    assert said(tmp_path)["eval_loss"] == pytest.approx(loss_of(tmp_path), rel=1e-6)
    assert trainer.measured == 1 + steps  # the last evaluation saw full strength: it is not repeated


def test_a_stage_that_a_gate_ends_early_is_measured_at_full_strength(tmp_path):
    trainer = run(tmp_path, [Stage("a", "8 steps", transforms=[RISING], gates=[Below("eval_loss", 99.0)])])
    assert said(tmp_path)["eval_loss"] == pytest.approx(loss_of(tmp_path), rel=1e-6)
    inside = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert abs(inside[0] - inside[-1]) > 1e-4  # what was measured at an eighth of the strength is another number


def test_expectations_judge_the_folder(tmp_path):
    """A bound between what the stage's own evaluation saw and what its folder is."""
    ended = {"transforms": [RISING], "gates": [Below("eval_loss", 99.0)]}
    trainer = run(tmp_path / "probe", [Stage("a", "8 steps", **ended)])
    inside = next(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)
    final = said(tmp_path / "probe")["eval_loss"]
    bound = f"eval_loss {'<' if inside < final else '>'} {(inside + final) / 2}"
    stage = Stage("a", "8 steps", **{**ended, "gates": [*ended["gates"], Expect(bound)]})
    with pytest.raises(StageStopped, match="eval_loss"):
        run(tmp_path / "run", [stage, Stage("b", "1 steps")])


class PutsIn(TrainerCallback):
    """Averaged weights that a callback puts in once the evaluation is over: nothing logged is of them."""

    def __init__(self, again):
        self.again, self.average = again, None

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            weight = model.classifier.weight
            self.average = weight.detach() * -3.0 if self.average is None or self.again else self.average
            weight.data.copy_(self.average)  # past autograd's own count of changes


@pytest.mark.parametrize("again", [False, True])
def test_weights_that_a_callback_sets_after_the_evaluation_are_measured(tmp_path, again):
    """The same ones behind the last evaluation, or others each time."""
    trainer = run(tmp_path, [Stage("a", "2 steps")], callbacks=[PutsIn(again)])
    last = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert said(tmp_path)["eval_loss"] != pytest.approx(last[1], rel=1e-4)
    assert said(tmp_path)["eval_loss"] == pytest.approx(loss_of(tmp_path), rel=1e-6)
    assert trainer.measured == 1 + 2 + 1 + again


class Damped(nn.Linear):
    factor = 1.0

    def forward(self, states):
        return super().forward(states) * self.factor


@dataclass(frozen=True)
class Damp(Transform):
    """A transform of somebody's own: what varies is a plain number on a module."""

    def __call__(self, model):
        old = model.classifier
        model.classifier = Damped(old.in_features, old.out_features)
        model.classifier.load_state_dict(old.state_dict())
        return model

    def at(self, model, t):
        model.classifier.factor = 0.1 + 0.9 * t


def test_a_number_that_a_transform_sets_is_measured(tmp_path):
    run(tmp_path, [Stage("a", "4 steps", transforms=[Damp()], gates=[Below("eval_loss", 99.0)])])
    model = Damp()(tiny.bert(num_hidden_layers=1))
    model.load_state_dict(load_file(tmp_path / "01-a" / "model.safetensors"))
    data = tiny.class_data(16)
    logits = model.eval()(input_ids=torch.tensor(data["input_ids"])).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(data["labels"])).item()
    assert said(tmp_path)["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_did_not_change_is_not_measured_again(tmp_path):
    trainer = run(tmp_path, [Stage("a", "3 steps"), Stage("b", "2 steps", loss=TaskLoss())])
    assert trainer.measured == (1 + 3) + 2  # nor is the second stage at its start
    for name in ("01-a", "02-b"):
        assert said(tmp_path, name)["eval_loss"] == pytest.approx(loss_of(tmp_path, name), rel=1e-6)


@pytest.mark.parametrize("larger", [False, True])
def test_the_best_checkpoint_is_measured_again_only_where_it_is_not_the_last(tmp_path, larger):
    """Kept by the lowest loss it is the last one here, by the highest it is not, and is measured again."""
    trainer = run(
        tmp_path,
        [Stage("a", "4 steps")],
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=larger,
        learning_rate=1e-3,
    )
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log][:4]
    best = (max if larger else min)(losses)
    assert (best == losses[-1]) is not larger
    assert said(tmp_path)["eval_loss"] == pytest.approx(best, rel=1e-6) == pytest.approx(loss_of(tmp_path), rel=1e-6)
    assert trainer.measured == 1 + 4 + larger


class Curious(TrainerCallback):
    """Measures other data under the same prefix, as the stage's last step ends."""

    trainer = None

    def on_save(self, args, state, control, **kwargs):
        self.trainer.evaluate(tiny.class_data(16, seed=9))


def test_an_evaluation_of_a_callbacks_own_is_not_the_stages(tmp_path):
    seen = Curious()
    trainer = run(tmp_path, [Stage("a", "2 steps")], callbacks=[seen], save_strategy="steps", save_steps=1, train=False)
    seen.trainer = trainer
    trainer.train()
    assert said(tmp_path)["eval_loss"] == pytest.approx(loss_of(tmp_path), rel=1e-6)


def test_a_models_checksum_covers_what_its_outputs_depend_on():
    model = tiny.bert()
    first = state_checksum(model)
    assert state_checksum(model.train()) == first == state_checksum(tiny.bert())
    changes = [
        lambda m: m.classifier.bias.data.add_(1e-30),
        lambda m: m.bert.embeddings.position_ids.add_(1),
        lambda m: setattr(m.dropout, "p", 0.3),
        lambda m: setattr(m.bert.encoder.layer[0], "scaling", {"default": 2.0}),
        lambda m: setattr(m.classifier, "strength", torch.tensor(0.5)),
        lambda m: setattr(m, "classifier", Damped(32, 3)),
    ]
    for change in changes:
        other = tiny.bert()
        change(other)
        assert state_checksum(other) != first
    model.add_module("apart", nn.Linear(2, 2))
    assert state_checksum(model) != first == state_checksum(model, leave_out="apart")
