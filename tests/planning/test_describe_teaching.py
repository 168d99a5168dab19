"""What a plan says of each stage's losses and teacher, and what it refuses from the models' configs alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.commands import cli
from hf_stages.core.curves import Linear
from hf_stages.losses import AttentionMSE, HiddenMSE, LogitKL, TaskLoss
from hf_stages.losses.objective.terms import terms_of
from hf_stages.planning.describe_teaching import describe_teaching
from hf_stages.reports.tables.plan_table import plan_dict, plan_table
from hf_stages.transforms import AddLora
from tests.support import tiny

FEATURES = HiddenMSE() + AttentionMSE()


def plan_of(*stages, **kwargs):
    args = TrainingArguments("unused", report_to="none", use_cpu=True, per_device_train_batch_size=4)
    own = StagedTrainer(tiny.bert(), args, stages=list(stages), train_dataset=tiny.class_data(), **kwargs)
    return own.plan()


def test_the_plan_names_layers_weights_teacher_and_how_far_it_runs():
    both = FEATURES + Linear(0.5, 0.1) * LogitKL(temperature=2)
    teacher = tiny.bert(num_hidden_layers=6)
    plan = plan_of(Stage("features", "2 steps", loss=FEATURES), Stage("all", "2 steps", loss=both), teacher=teacher)
    first, second = (stage.teaching for stage in plan.stages)
    assert first.losses == ("HiddenMSE 0-0 1-3 2-6", "AttentionMSE 1-3 2-6")
    assert first.reach == "runs to block 6, no head"
    assert second.losses[2] == "LogitKL T=2 forward (x0.5 -> 0.1)"
    assert (second.teacher, second.reach) == ("BertForSequenceClassification", "runs whole")
    table = plan_table(plan)
    assert "HiddenMSE 0-0 1-3 2-6 · AttentionMSE 1-3 2-6" in table
    assert "BertForSequenceClassification, runs to block 6, no head" in table
    assert plan_dict(plan, {})["stages"][0]["losses"] == list(first.losses)


def test_a_shallow_map_ends_the_teacher_early():
    plan = plan_of(Stage("a", "2 steps", loss=HiddenMSE(layers={1: 3})), teacher=tiny.bert(num_hidden_layers=6))
    assert plan["a"].teaching.reach == "runs to block 3, no head"


def test_an_earlier_stage_and_the_base_are_named_as_teachers():
    pytest.importorskip("peft")
    stages = [
        Stage("a", "2 steps"),
        Stage("b", "2 steps", loss=FEATURES, teacher="stage:a"),
        Stage("c", "2 steps", loss=TaskLoss() + 0.1 * LogitKL(), teacher="base", transforms=[AddLora(r=2)]),
    ]
    found = [stage.teaching for stage in plan_of(*stages).stages]
    assert found[0].teacher is None
    assert found[1].teacher == "stage a"
    assert found[2].teacher == "the student's own base, adapters off"
    assert found[2].losses == ("TaskLoss", "LogitKL T=1 forward (x0.1)")


def test_long_maps_are_shortened():
    student, teacher = (tiny.bert(num_hidden_layers=n) for n in (12, 24))
    (said,) = describe_teaching(terms_of(AttentionMSE(), student, teacher), "stage:a").losses
    assert said == "AttentionMSE 1-2 2-4 .. 12-24"


def test_liger_and_losses_on_logits_are_refused(monkeypatch):
    monkeypatch.setattr("hf_stages.planning.checks.stage_args", lambda args, stage: _with_liger(args))
    with pytest.raises(ValueError, match=r"stage 'a': loss LogitKL: .*use_liger_kernel"):
        plan_of(Stage("a", "2 steps", loss=LogitKL()), teacher=tiny.bert())
    plan_of(Stage("a", "2 steps", loss=FEATURES), teacher=tiny.bert())


def _with_liger(args):
    args.use_liger_kernel = True  # set late: Trainer itself asks for the package
    return args


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """``recipe(**changes)``: a teacher of 4 layers by its folder, without weights: only its config may be read."""
    monkeypatch.chdir(tmp_path)
    row = {"input_ids": [3, 4, 5], "labels": 1}
    Path("rows.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    tiny.bert(num_hidden_layers=4).config.save_pretrained("teacher")
    config = {**tiny.bert_config().to_diff_dict(), "model_type": "bert"}

    def write(**changes) -> str:
        content = {
            "model": {"config": config, "auto_class": "AutoModelForSequenceClassification"},
            "teacher": "teacher",
            "args": {"output_dir": "out", "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"},
            "sources": {"rows": {"path": "json", "data_files": "rows.jsonl"}},
            "train_dataset": "rows",
            "stages": {"use": "three_stage", "until": "6 epochs"},
        }
        Path("run.yaml").write_text(json.dumps({**content, **changes}))
        return "run.yaml"

    return write


def test_the_command_shows_the_layers_of_a_ready_recipe(recipe, capsys):
    assert cli.main(["plan", recipe()]) == 0
    shown = capsys.readouterr().out
    assert "HiddenMSE 0-0 1-2 2-4 · AttentionMSE 1-2 2-4 · LogitKL T=1 forward" in shown
    assert "teacher  teacher, runs to block 4, no head" in shown
    assert [row for row in shown.splitlines() if row.startswith(("1 features", "2 all", "3 logits"))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {"use": "one_stage", "layers": {"1": 5}}}, "teacher layer 5: expected 0 (embeddings) to 4"),
        ({"stages": {"use": "one_stage"}, "teacher": None}, "its loss compares with a teacher"),
        ({"stages": [{"name": "a", "until": "1 steps", "teacher": "base"}]}, "no loss of the stage uses a teacher"),
        (
            {"stages": {"use": "one_stage"}, "teacher": "teachr"},
            ": stage 'all': teacher: there is no folder 'teachr' here",
        ),
    ],
)
def test_the_command_refuses_before_weights_are_read(recipe, capsys, changes, message):
    assert cli.main(["plan", recipe(**changes)]) == 2
    assert message in capsys.readouterr().err
