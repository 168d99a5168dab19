"""The rate that a stage trains at is the one that its plan and its folder say, whoever makes the optimizer."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_stages import Stage, StagedTrainer
from hf_stages.schedules import Fresh, Rewarm
from tests.support import tiny


class Rates(TrainerCallback):
    """What each group really steps with."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def trainer_of(out, stages, kind=StagedTrainer, *, given=None, **changes):
    own = {
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = TrainingArguments(str(out), per_device_train_batch_size=4, save_strategy="no", **{**own, **changes})
    rates = Rates()
    trainer = kind(
        tiny.bert(num_hidden_layers=1), args, train_dataset=tiny.class_data(8), stages=stages, callbacks=[rates],
        optimizer_cls_and_kwargs=given,
    )  # fmt: skip
    return trainer, rates, args


def folder(out, name):
    return json.loads((out / name / "stage.json").read_text())


OWN = [Stage("a", "1 steps", args={"learning_rate": 0.003}), Stage("b", "1 steps", schedule=Fresh(peak=0.007))]


@pytest.mark.parametrize("kwargs", [{"lr": 0.5}, {"lr": torch.tensor(0.5)}, {}, {"momentum": 0.9}])
def test_a_stages_own_rate_goes_before_an_optimizers(tmp_path, kwargs):
    trainer, rates, _ = trainer_of(tmp_path, OWN, given=(torch.optim.SGD, kwargs))
    trainer.train()
    assert rates.seen == [[0.003, 0.003], [0.007, 0.007]]
    assert [folder(tmp_path, name)["lr_end"] for name in ("01-a", "02-b")] == [0.003, 0.007]
    assert trainer.optimizer_cls_and_kwargs == (torch.optim.SGD, kwargs)


def test_an_optimizers_rate_is_the_runs(tmp_path):
    """In place of args.learning_rate, as in Trainer; in the plan and the folder as well."""
    stages = [
        Stage("a", "1 steps"),
        Stage("b", "1 steps", schedule=Rewarm(0.5)),
        Stage("c", "1 steps", args={"learning_rate": 0.1}),
    ]
    trainer, rates, args = trainer_of(tmp_path, stages, given=(torch.optim.SGD, {"lr": 0.5}))
    planned = [trainer.plan().peak_lr(name) for name in "abc"]
    trainer.train()
    assert args.learning_rate == 0.01  # the user's own
    assert [max(group) for group in rates.seen] == pytest.approx(planned)
    assert planned[::2] == [0.5, 0.1]
    assert folder(tmp_path, "01-a")["lr_end"] == 0.5


def test_without_a_rate_args_say_it(tmp_path):
    """Not the optimizer's default (AdamW's is 1e-3), which no plan knows."""
    trainer, rates, _ = trainer_of(tmp_path, [Stage("a", "1 steps")], given=(torch.optim.AdamW, {"betas": (0.8, 0.9)}))
    trainer.train()
    assert rates.seen == [[0.01, 0.01]]


class ByLayer(StagedTrainer):
    """A share for each layer, of the stage's rate; no group has the whole of it where ``top`` is not 1."""

    top = 1.0

    def create_optimizer(self, *args, **kwargs):
        head = list(self.model.classifier.parameters())
        body = [p for n, p in self.model.named_parameters() if not n.startswith("classifier")]
        rate = self.args.learning_rate * self.top
        self.optimizer = torch.optim.SGD([{"params": head, "lr": rate}, {"params": body, "lr": rate / 4}], lr=9.0)
        return self.optimizer


@pytest.mark.parametrize("top", [1.0, 0.5])
def test_groups_of_their_own_share(tmp_path, top):
    kind = type("Shares", (ByLayer,), {"top": top})
    trainer, rates, _ = trainer_of(tmp_path, OWN, kind)
    trainer.train()
    assert rates.seen == [pytest.approx([r * top, r * top / 4]) for r in (0.003, 0.007)]
    for name, rate in (("01-a", 0.003), ("02-b", 0.007)):
        assert folder(tmp_path, name)["lr_groups"] == pytest.approx([rate * top, rate * top / 4])
    trainer, _, _ = trainer_of(tmp_path / "plain", OWN)
    trainer.train()
    assert folder(tmp_path / "plain", "01-a")["lr_groups"] is None


class Fixed(StagedTrainer):
    def create_optimizer(self, *args, **kwargs):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.003)  # as the first stage has it, by chance


class FixedKwargs(StagedTrainer):
    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        return torch.optim.SGD, {"lr": 0.5}


class FollowingKwargs(StagedTrainer):
    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        return torch.optim.SGD, {"lr": args.learning_rate, "momentum": 0.9}


class LayerWise(StagedTrainer):
    def create_optimizer(self, *args, **kwargs):
        self.optimizer = LayerWiseDummyOptimizer(optimizer_dict={}, lr=self.args.learning_rate)
        return self.optimizer


class NoRate(StagedTrainer):
    def create_optimizer(self, *args, **kwargs):
        self.optimizer = torch.optim.SGD([{"params": list(self.model.parameters())}], lr=1.0)
        self.optimizer.param_groups[0]["lr"] = None
        return self.optimizer


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            Fixed,
            r"stage 'a': learning rate: .* groups train at 0.003, whatever the stage says.*self.args.learning_rate",
        ),
        (FixedKwargs, r"groups train at 0.5, whatever the stage says \(here 0.003\)"),
        (LayerWise, "steps each weight within the backward pass"),
        (NoRate, "groups train at none"),
    ],
)
def test_rates_that_no_stage_can_set_are_refused_before_the_first_step(tmp_path, kind, said):
    trainer, rates, _ = trainer_of(tmp_path, OWN, kind)
    with pytest.raises(ValueError, match=said):
        trainer.train()
    assert rates.seen == []


def test_fixed_rates_are_right_where_they_are_the_only_ones(tmp_path):
    trainer, rates, _ = trainer_of(tmp_path, [Stage("a", "2 steps", schedule=Fresh(peak=0.003))], Fixed)
    trainer.train()
    assert rates.seen == [[0.003], [0.003]]


def test_an_override_that_reads_the_args(tmp_path):
    trainer, rates, _ = trainer_of(tmp_path, OWN, FollowingKwargs)
    trainer.train()
    assert rates.seen == [[0.003, 0.003], [0.007, 0.007]]


def test_a_rate_among_optim_args_is_no_ones(tmp_path):
    """Trainer's AdamW does not read it; the stages' rates stand."""
    trainer, rates, _ = trainer_of(tmp_path, OWN, optim_args="lr=0.5")
    trainer.train()
    assert rates.seen == [[0.003, 0.003], [0.007, 0.007]]


def test_weights_in_the_kwargs_are_refused(tmp_path):
    model = tiny.bert()
    with pytest.raises(ValueError, match="'params' holds weights of the model as it is now"):
        trainer_of(tmp_path, OWN, given=(torch.optim.SGD, {"lr": 0.1, "params": list(model.parameters())}))
