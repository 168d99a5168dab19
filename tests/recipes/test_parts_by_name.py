"""Parts by their names in Python are what they are in a recipe's text."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer, Teacher, recipes
from hf_stages.data.collators.packed import Packed
from hf_stages.evaluation.metrics import Metrics
from hf_stages.gates import Plateau
from hf_stages.losses import HiddenMSE, LogitKL, TaskLoss
from hf_stages.schedules import Fresh, Rewarm
from hf_stages.transforms import Freeze
from tests.support import tiny


@pytest.fixture
def trainer(tmp_path):
    def make(*stages, model=None, **options):
        args = TrainingArguments(tmp_path / "out", use_cpu=True, report_to="none", per_device_train_batch_size=4)
        given = {"train_dataset": tiny.lm_data(8), "stages": list(stages), **options}
        return StagedTrainer(model or tiny.llama(), args, **given)

    return make


@pytest.mark.parametrize(
    ("key", "by_name", "part"),
    [
        ("loss", "LogitKL", LogitKL()),
        ("loss", {"use": "LogitKL", "temperature": 2.0}, LogitKL(temperature=2.0)),
        ("loss", ["TaskLoss", "LogitKL"], TaskLoss() + LogitKL()),
        ("loss", [TaskLoss(), {"use": "HiddenMSE", "weight": 0.5}], TaskLoss() + 0.5 * HiddenMSE()),
        ("loss", {"code": "TaskLoss", "prose": "LogitKL"}, {"code": TaskLoss(), "prose": LogitKL()}),
        ("gates", "Plateau", (Plateau(),)),
        ("gates", [{"use": "Plateau", "patience": 2}], (Plateau(patience=2),)),
        (
            "transforms",
            [{"use": "Freeze", "patterns": "lm_head"}, Freeze("model")],
            (Freeze("lm_head"), Freeze("model")),
        ),
        ("schedule", {"use": "Rewarm", "to": 0.001}, Rewarm(to=0.001)),
        ("schedule", "Fresh", Fresh()),
        ("compute_metrics", "accuracy", Metrics("accuracy")),
        ("compute_metrics", ["accuracy", "f1"], Metrics(("accuracy", "f1"))),
        ("data_collator", {"use": "Packed", "length": 32}, Packed(length=32)),
    ],
    ids=str,
)
def test_a_stages_parts(trainer, key, by_name, part):
    found = trainer(Stage("a", "1 steps", **{key: by_name}), teacher=tiny.llama(1)).recipe["a"]
    assert getattr(found, key) == part
    assert recipes.to_dict(found) == recipes.to_dict(Stage("a", "1 steps", **{key: part}))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("loss", "LogitKl2", "loss: unknown part 'LogitKl2' in hf_stages.losses; did you mean 'LogitKL'"),
        ("loss", {"use": "LogitKL", "temprature": 2}, "loss.temprature: LogitKL takes no argument"),
        ("gates", ["Plato"], r"gates\[0\]: unknown part 'Plato'"),
        ("schedule", "Slow", "schedule: unknown part 'Slow' in hf_stages.schedules"),
    ],
)
def test_mistakes_name_the_stage(trainer, key, value, words):
    with pytest.raises(ValueError, match=f"^stage 'a': {words}"):
        trainer(Stage("a", "1 steps", **{key: value}))


def test_a_teacher_by_its_path_teaches_as_the_model_does(trainer, tmp_path):
    tiny.llama(1).save_pretrained(tmp_path / "teacher")
    runs = []
    for number, teacher in enumerate((str(tmp_path / "teacher"), tiny.llama(1))):
        run = trainer(Stage("a", "2 steps", loss="LogitKL"), teacher=teacher)
        run.args.output_dir = str(tmp_path / str(number))
        run.train()
        runs.append(run)
    assert runs[0].recipe.teacher == Teacher(str(tmp_path / "teacher"))
    for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_stages_own_teacher_by_its_path(trainer, tmp_path):
    tiny.llama(1).save_pretrained(tmp_path / "teacher")
    stages = [Stage(name, "1 steps", loss="LogitKL", teacher=str(tmp_path / "teacher")) for name in "ab"]
    run = trainer(*stages)
    assert run.recipe["a"].teacher is run.recipe["b"].teacher  # loaded once
    run.train()


def test_a_path_that_leads_nowhere(trainer):
    with pytest.raises(ValueError, match=r"^stage 'a': teacher 'no-such-folder': "):
        trainer(Stage("a", "1 steps", loss="LogitKL"), teacher="no-such-folder").plan()


def test_a_stages_name_without_its_word(trainer):
    with pytest.raises(ValueError, match=r"^stage 'b': teacher: 'a' is a stage; did you mean 'stage:a'\?"):
        trainer(Stage("a", "1 steps"), Stage("b", "1 steps", loss="LogitKL", teacher="a"))


def test_what_a_trainer_itself_takes(trainer):
    run = trainer(
        Stage("a", "1 steps"),
        model=tiny.bert(),
        train_dataset=tiny.class_data(8),
        eval_dataset=tiny.class_data(8),
        compute_metrics="accuracy",
        data_collator="DataCollatorWithPadding",
        processing_class=tiny.tokenizer(),
    )
    run.train()
    assert "eval_accuracy" in run.evaluate()
