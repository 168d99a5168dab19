from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hf_stages import Mixture, Recipe, Stage, StagedTrainer
from hf_stages.data.collators.collator import Collator
from hf_stages.data.source import Source
from hf_stages.gates import Plateau
from hf_stages.models.model_source import ModelSource
from hf_stages.training import checked_plan
from hf_stages.training.from_recipe import build_trainer, prepare, training_arguments
from hf_stages.transforms.freeze import Freeze
from tests.support import tiny


@pytest.fixture
def source(tmp_path):
    """``source(rows)`` is a Source over a file of that many token rows."""

    def make(rows: int) -> Source:
        path = tmp_path / f"{rows}.jsonl"
        path.write_text("\n".join(json.dumps({"input_ids": [3, 4, 5], "labels": [3, 4, 5]}) for _ in range(rows)))
        return Source("json", data_files=str(path))

    return make


@pytest.fixture
def recipe(source, tmp_path):
    """``recipe(**changes)``: two stages on two sources, a model from a config."""

    def make(stages=None, **changes) -> Recipe:
        given = {
            "model": ModelSource(config={"model_type": "llama", **tiny.LLAMA_SIZES}),
            "args": {"output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": []},
            "sources": {"small": source(8), "large": source(16)},
            "train_dataset": "small",
        }
        default = [Stage("first", "1 epochs"), Stage("second", "2 epochs", train_dataset="large")]
        return Recipe(stages or default, **{**given, **changes})

    return make


def test_names_become_datasets(recipe):
    prepared = prepare(recipe(eval_dataset={"near": "small", "far": "large"}))
    assert len(prepared.recipe.train_dataset) == 8
    assert {name: len(data) for name, data in prepared.recipe.eval_dataset.items()} == {"near": 8, "far": 16}
    assert prepared.recipe["second"].train_dataset == "large"  # recorded by its name
    assert len(prepared.recipe.sources["large"]) == 16
    assert prepared.data == {"first": "small", "second": "large"}
    plan = prepared.plan()
    assert [stage.steps for stage in plan.stages] == [1, 4]
    assert [len(stage.dataset) for stage in plan.resolved] == [8, 16]


def test_a_source_that_no_stage_uses_is_not_loaded(recipe, source):
    missing = Source("json", data_files="nowhere.jsonl")
    assert prepare(recipe(sources={"small": source(8), "large": source(16), "missing": missing}))
    with pytest.raises(ValueError, match=r"^sources\.small: "):
        prepare(recipe(sources={"small": missing, "large": source(8)}))


def test_makes_the_trainer(recipe):
    trainer = build_trainer(recipe(eval_dataset="large"))
    assert isinstance(trainer, StagedTrainer)
    assert [stage.steps for stage in trainer.plan().stages] == [1, 4]
    assert len(trainer.eval_dataset) == 16


def test_random_weights_are_the_same_each_time(recipe):
    first, second = (build_trainer(recipe()).model.lm_head.weight for _ in range(2))
    assert first.equal(second)


def test_the_skeleton_has_no_weights(recipe):
    assert prepare(recipe()).skeleton().device.type == "meta"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_dataset": "smal"}, "train_dataset: no source is called 'smal'; did you mean 'small'?"),
        ({"eval_dataset": {"a": "larg"}}, "eval_dataset.a: no source is called 'larg'; did you mean 'large'?"),
        (
            {"args": {"output_dir": "x", "learning_rat": 1}},
            "args.learning_rat: TrainingArguments has no 'learning_rat'; did you mean",
        ),
        ({"args": {}}, "args: output_dir: missing"),
        (
            {"args": {"output_dir": "x", "eval_strategy": "sometimes"}},
            "args.eval_strategy: expected one of no, steps, epoch, got .sometimes.",
        ),
        ({"model": None}, "model: expected .* got nothing"),
        ({"model": "no/such-folder"}, "model: "),
        ({"tokenizer": "no/such-folder"}, "tokenizer: "),
        ({"teacher": "stage:first-one"}, "teacher: no stage is called 'first-one'; did you mean 'first'?"),
    ],
)
def test_mistakes_are_named_with_their_place(recipe, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        prepare(recipe(**changes)).skeleton()


def test_a_stages_missing_teacher_and_source(recipe):
    with pytest.raises(ValueError, match="stage 'b': teacher: no stage is called 'c'; there are a, b"):
        prepare(recipe([Stage("a", "1 steps"), Stage("b", "1 steps", teacher="stage:c")]))
    with pytest.raises(ValueError, match="stage 'a': train_dataset: no source is called 'tiny'"):
        prepare(recipe([Stage("a", "1 steps", train_dataset="tiny")]))


def test_output_dir_given_beside_the_recipe_wins():
    assert training_arguments({"output_dir": "a"}, output_dir="b").output_dir == "b"


def test_a_collator_without_its_tokenizer_is_refused(recipe):
    with pytest.raises(ValueError, match="data_collator: DataCollatorWithPadding needs a tokenizer"):
        build_trainer(recipe(data_collator=Collator("DataCollatorWithPadding")))


def test_a_probe_times_equal_stages_once(recipe, monkeypatch):
    from hf_stages.commands import time_estimate

    timed = []
    real = time_estimate._time_updates
    monkeypatch.setattr(time_estimate, "_time_updates", lambda *args: timed.append(args) or real(*args))
    stages = [
        Stage("a", "1 steps"),
        Stage("b", "3 steps"),
        Stage("c", "1 steps", transforms=[Freeze("embed_tokens")], args={"gradient_accumulation_steps": 2}),
    ]
    prepared = prepare(recipe(stages))
    seconds = time_estimate.estimate_seconds(prepared.plan(), prepared)
    assert len(timed) == 2
    assert seconds["b"] == pytest.approx(3 * seconds["a"])
    assert all(value > 0 for value in seconds.values())


def test_a_planned_recipe_is_not_planned_again_by_its_trainer(recipe, monkeypatch):
    planned = []
    real = checked_plan.plan_for
    monkeypatch.setattr(checked_plan, "plan_for", lambda *args: planned.append(args) or real(*args))
    prepared = prepare(recipe([Stage("a", "2 steps"), Stage("b", "1 epochs", train_dataset="large")]))
    plan = prepared.plan()
    assert prepared.plan() is plan
    trainer = prepared.trainer()
    taken = trainer.plan()
    assert not planned
    assert [(p.steps, p.size, p.lr_in) for p in taken.stages] == [(p.steps, p.size, p.lr_in) for p in plan.stages]
    assert all(one.dataset is other.dataset for one, other in zip(taken.resolved, plan.resolved, strict=True))
    trainer.args.gradient_accumulation_steps = 2
    assert trainer.plan()["a"].size.accumulation == 2  # other arguments, another plan
    assert len(planned) == 1


def test_a_trainer_of_a_recipe_that_nobody_planned_plans_for_itself(recipe):
    planned, unplanned = prepare(recipe()), prepare(recipe())
    assert str(unplanned.trainer().plan()) == str((planned.plan(), planned.trainer().plan())[1])


def test_a_run_is_the_same_whether_it_was_planned_before_or_not(recipe, tmp_path):
    stages = [Stage("a", "2 steps"), Stage("b", "2 steps", train_dataset=Mixture(["small", "large"]))]
    declared, ends = recipe(stages), []
    for planned in (True, False):
        prepared = prepare(declared, output_dir=str(tmp_path / str(planned)))
        if planned:
            prepared.plan()
        trainer = prepared.trainer()
        trainer.train()
        summary = json.loads((tmp_path / str(planned) / "02-b" / "stage.json").read_text())
        ends.append((trainer.model.state_dict(), summary["declared"], summary["data"]))
    assert all(torch.equal(value, ends[1][0][key]) for key, value in ends[0][0].items())
    assert ends[0][1:] == ends[1][1:]


def _with_stage(trainer, **changes):
    trainer.recipe = replace(trainer.recipe, stages=[replace(trainer.recipe["a"], **changes)])


def _with_one_more(trainer):
    trainer.recipe = replace(trainer.recipe, stages=[trainer.recipe["a"], Stage("b", "2 steps")])


def _with_data(trainer):
    trainer.recipe = replace(trainer.recipe, train_dataset=list(trainer.recipe.train_dataset)[:8])


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        (lambda trainer: _with_stage(trainer, until="3 epochs"), 6),
        (_with_one_more, 4),
        (_with_data, 1),
        (lambda trainer: trainer.recipe.train_dataset.extend(trainer.recipe.train_dataset[:8]), 3),
        (lambda trainer: trainer.recipe["a"].args.update(per_device_train_batch_size=4), 4),
    ],
    ids=["another duration", "one more stage", "other data", "more rows", "a stage's other args"],
)
def test_what_changes_after_the_plan_is_planned_anew(recipe, change, steps):
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]} for _ in range(16)]
    prepared = prepare(recipe([Stage("a", "1 epochs")], sources={}, train_dataset=rows))
    assert prepared.plan().total_steps == 2
    trainer = prepared.trainer()
    change(trainer)
    assert trainer.plan().total_steps == steps
    trainer.train()
    assert trainer.state.global_step == steps


def test_a_gate_that_is_set_after_the_plan_is_checked(recipe):
    prepared = prepare(recipe([Stage("a", "2 steps")]))
    prepared.plan()
    trainer = prepared.trainer()
    _with_stage(trainer, gates=[Plateau("eval_nothing")])
    with pytest.raises(ValueError, match="eval_nothing"):
        trainer.train()


def test_rows_that_are_added_between_two_plans_count(recipe):
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]} for _ in range(8)]
    prepared = prepare(recipe([Stage("a", "1 epochs")], sources={}, train_dataset=rows))
    assert prepared.plan().total_steps == 1
    prepared.recipe.train_dataset.extend(rows[:])
    assert prepared.plan().total_steps == 2
    assert prepared.trainer().plan().total_steps == 2
