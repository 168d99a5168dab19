"""Arguments that were given beside stages and have no effect there; not a word to who gave none."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from types import SimpleNamespace

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from hf_stages import Recipe, Stage, StagedTrainer
from hf_stages.commands import cli
from hf_stages.core.curves import Cosine
from hf_stages.losses import LogitKL
from hf_stages.planning.unused_args import unused_args
from hf_stages.recipes import loads
from hf_stages.schedules import Fresh, Resume, Rewarm
from tests.support import tiny
from tests.support.plans import plan_of, skeleton

PLAIN = [Stage("a", "2 steps"), Stage("b", "2 steps", schedule=Resume())]
OWN = [Stage("a", "9 steps", schedule=Fresh(1e-3, 0, Cosine(1, 0))), Stage("b", "9 steps", schedule=Rewarm(1e-4))]


def arguments(kind=TrainingArguments, **kwargs):
    return kind("out", use_cpu=True, report_to=[], **kwargs)


def named(args, stages=PLAIN, written=()):
    """Which arguments the sentences are about."""
    text = " ".join(
        line.partition(" no effect")[0] for line in unused_args(args, Recipe(stages, args=dict.fromkeys(written)))
    )
    return [word for word in text.split() if hasattr(args, word)]


@pytest.mark.parametrize("epochs", [3, 3.0 * 1, 1.5, 10])
@pytest.mark.parametrize("kind", [TrainingArguments, Seq2SeqTrainingArguments])
def test_epochs_that_were_given_are_said_to_be_unused(kind, epochs):
    given = type(epochs)(str(epochs))  # an object of its own, as one written in another file is
    args = arguments(kind, num_train_epochs=given)
    assert named(args) == ["num_train_epochs"]
    for same in (copy.copy(args), copy.deepcopy(args), dataclasses.replace(args, seed=1)):
        assert named(same) == ["num_train_epochs"]
    (said,) = unused_args(args, Recipe(PLAIN))
    assert said == ("args: num_train_epochs has no effect with these stages: each stage's `until` says how long it is")


def test_a_teacher_that_no_loss_asks_is_said_to_be_unused():
    taught = Stage("c", "2 steps", loss=LogitKL())
    assert unused_args(arguments(), Recipe([*PLAIN, taught], teacher="some/model")) == []
    (said,) = unused_args(arguments(), Recipe(PLAIN, teacher="some/model"))
    assert said.startswith("teacher: no loss of any stage compares with it")


def parsed(*words):
    return HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", "out", "--use_cpu", *words]
    )[0]


def test_epochs_that_were_not_given_are_not_mentioned():
    args = arguments()
    again = TrainingArguments(**json.loads(json.dumps({"output_dir": "out", "num_train_epochs": 3.0})), use_cpu=True)
    assert again.num_train_epochs is not args.num_train_epochs
    for silent in (
        args,
        copy.deepcopy(args),
        dataclasses.replace(args, seed=1),
        pickle.loads(pickle.dumps(args)),
        pickle.loads(pickle.dumps(arguments(weight_decay=0.1))),
        parsed(),
        arguments(learning_rate=1e-3, max_steps=-1, warmup_steps=0, weight_decay=0.1),
    ):
        assert named(silent) == []
    assert named(parsed("--num_train_epochs", "3")) == ["num_train_epochs"]
    assert named(again) == ["num_train_epochs"]
    assert named(pickle.loads(pickle.dumps(arguments(num_train_epochs=2)))) == ["num_train_epochs"]


@dataclasses.dataclass
class OneEpoch(TrainingArguments):
    num_train_epochs: float = 1.0


def test_a_default_is_that_of_the_args_own_class():
    assert named(arguments(OneEpoch)) == []
    assert named(arguments(OneEpoch, num_train_epochs=3.0)) == ["num_train_epochs"]


def test_steps_and_args_that_every_schedule_overrules_are_named():
    given = {"max_steps": 5, "learning_rate": 1e-2, "warmup_steps": 10, "lr_scheduler_type": "cosine"}
    assert named(arguments(**given)) == ["max_steps"]
    assert named(arguments(**given), OWN) == ["max_steps", "learning_rate", "warmup_steps", "lr_scheduler_type"]
    kwargs = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}}
    assert named(arguments(**kwargs)) == []
    assert named(arguments(**kwargs), OWN) == ["lr_scheduler_type", "lr_scheduler_kwargs"]
    assert named(arguments(**given), [*OWN, Stage("c", "2 steps")]) == ["max_steps"], (
        "one stage that asks for them is enough"
    )
    assert named(arguments(), OWN) == []
    half = [Stage("a", "9 steps", schedule=Fresh(warmup=2), args={"learning_rate": 1e-4})]
    assert named(arguments(**given), half) == ["max_steps", "learning_rate", "warmup_steps"]


def test_skipped_data_and_averages_of_one_rank_are_named(monkeypatch):
    assert named(arguments(ignore_data_skip=True)) == ["ignore_data_skip"]
    args = arguments(average_tokens_across_devices=False)
    assert named(args) == [], "on one rank it says nothing"
    monkeypatch.setattr(type(args), "world_size", 2)
    assert named(args) == ["average_tokens_across_devices"]


def test_a_trainer_warns_once_and_only_where_stages_overrule_its_args(caplog):
    args = arguments(num_train_epochs=int("3"), save_strategy="no")
    StagedTrainer(tiny.bert(), args, stages=PLAIN, train_dataset=tiny.class_data(8))
    assert len([r for r in caplog.records if "num_train_epochs has no effect" in r.message]) == 1
    caplog.clear()
    StagedTrainer(tiny.bert(), args, train_dataset=tiny.class_data(8))
    StagedTrainer(tiny.bert(), arguments(), stages=PLAIN, train_dataset=tiny.class_data(8))
    assert "no effect" not in caplog.text
    recipe = Recipe(PLAIN, args={"num_train_epochs": 3})
    StagedTrainer(tiny.bert(), arguments(), recipe=recipe, train_dataset=tiny.class_data(8))
    assert "num_train_epochs has no effect" in caplog.text


def test_the_plan_of_a_recipe_warns_too(monkeypatch, capsys):
    recipe = loads("args: {output_dir: out, num_train_epochs: 3.0}\nstages: [{name: a, until: 2 steps}]\n")
    plan = plan_of(*recipe.stages)
    prepared = SimpleNamespace(
        args=arguments(), recipe=recipe, plan=lambda: plan, skeleton=skeleton, data={"a": "rows"}
    )
    monkeypatch.setattr("hf_stages.commands.plan.prepare_recipe", lambda *_: prepared)
    assert cli.main(["plan", "run.yaml"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("stage ")
    assert "note: args: num_train_epochs has no effect" in shown.err
