"""A recipe in YAML, in plain data and in Python is the same recipe."""

import json

import pytest
from hypothesis import HealthCheck, given, settings

from hf_stages import Recipe, Stage
from hf_stages.core.curves import Linear
from hf_stages.core.differences import diff
from hf_stages.data.collators.collator import Collator
from hf_stages.data.source import Source
from hf_stages.evaluation.metrics import Metrics
from hf_stages.gates import Budget, Plateau
from hf_stages.losses import TaskLoss
from hf_stages.losses.base import Scaled, Sum
from hf_stages.models.model_source import ModelSource
from hf_stages.recipes import (
    RecipeError,
    dump,
    from_dict,
    load,
    loads,
    part_from_dict,
    part_to_dict,
    to_dict,
)
from hf_stages.schedules import Resume
from tests.support.strategies import recipes

YAML = """\
model: {config: {model_type: llama, hidden_size: 64}}
tokenizer: some/folder
args: {output_dir: out, learning_rate: 5e-5}
sources:
  code: {path: json, data_files: code.jsonl, text: content}
train_dataset: code
stages:
  - name: warm
    until: 1e3 steps
  - name: main
    until: 2 epochs
    loss: [TaskLoss, {use: TaskLoss, shift: true, weight: "Linear(1, 0)"}]
    schedule: Resume
    gates: [{use: Plateau, patience: 2}, {use: Budget, limit: 90 minutes}]
    teacher: stage:warm
    data_collator: {use: DataCollatorForLanguageModeling, mlm: false}
    compute_metrics: [accuracy, f1]
    args: {warmup_steps: 10, optim: off}
"""


def test_a_recipe_in_yaml_is_the_same_in_python():
    assert loads(YAML) == Recipe(
        [
            Stage("warm", "1000 steps"),
            Stage(
                "main",
                "2 epochs",
                loss=TaskLoss() + Linear(1, 0) * TaskLoss(shift=True),
                schedule=Resume(),
                gates=[Plateau(patience=2), Budget("90 minutes")],
                teacher="stage:warm",
                data_collator=Collator("DataCollatorForLanguageModeling", {"mlm": False}),
                compute_metrics=Metrics(("accuracy", "f1")),
                args={"warmup_steps": 10, "optim": "off"},
            ),
        ],
        model=ModelSource(config={"model_type": "llama", "hidden_size": 64}),
        tokenizer="some/folder",
        args={"output_dir": "out", "learning_rate": 5e-5},
        sources={"code": Source("json", data_files="code.jsonl", text="content")},
        train_dataset="code",
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes())
def test_every_recipe_reads_back(recipe):
    plain = to_dict(recipe)
    assert json.loads(json.dumps(plain)) == plain
    assert from_dict(plain) == recipe
    assert loads(dump(recipe)) == recipe
    assert diff(plain, to_dict(loads(dump(recipe)))) == []


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (TaskLoss(), {"use": "TaskLoss"}),
        (0.1 * TaskLoss(), {"use": "TaskLoss", "weight": 0.1}),
        (TaskLoss() + 2 * TaskLoss(True), [{"use": "TaskLoss"}, {"use": "TaskLoss", "shift": True, "weight": 2.0}]),
        (
            0.1 * (TaskLoss() + TaskLoss()),
            {"use": "Sum", "losses": [{"use": "TaskLoss"}, {"use": "TaskLoss"}], "weight": 0.1},
        ),
        (
            Linear(0, 1) * (0.5 * TaskLoss()),
            {
                "use": "Scaled",
                "weight": {"use": "Linear", "start": 0, "end": 1},
                "loss": {"use": "TaskLoss", "weight": 0.5},
            },
        ),
        (Sum((TaskLoss(),)), {"use": "Sum", "losses": [{"use": "TaskLoss"}]}),
        (
            {"code": TaskLoss(), "prose": 2 * TaskLoss()},
            {"code": {"use": "TaskLoss"}, "prose": {"use": "TaskLoss", "weight": 2.0}},
        ),
    ],
)
def test_losses(loss, plain):
    assert part_to_dict(loss, "loss") == plain
    assert part_from_dict(plain, "loss") == loss


@pytest.mark.parametrize(
    ("yaml", "loss"),
    [
        ("TaskLoss", TaskLoss()),
        ("[TaskLoss]", TaskLoss()),
        ("{use: TaskLoss, weight: 'Cosine(1, 0)'}", Scaled("Cosine(1, 0)", TaskLoss())),
        ("{use: Sum, losses: [TaskLoss, {use: TaskLoss, weight: 3}]}", Sum((TaskLoss(), 3 * TaskLoss()))),
        ("{code: TaskLoss}", {"code": TaskLoss()}),
    ],
)
def test_short_forms_of_losses(yaml, loss):
    assert loads(f"stages: [{{name: a, until: 1 steps, loss: {yaml}}}]")["a"].loss == loss


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1e-4", 1e-4),
        ("1e3", 1000.0),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        (".inf", float("inf")),
        ("1_000", 1000),
        ("0", 0),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("'5e-5'", "5e-5"),
        ("0x10", "0x10"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_scalars(text, value):
    read = loads(f"args: {{x: {text}}}\nstages: [{{name: a, until: 1 steps}}]")
    assert read.args["x"] == value
    assert type(read.args["x"]) is type(value)
    assert loads(dump(read)) == read


def test_files(tmp_path, monkeypatch):
    (tmp_path / "code.jsonl").write_text('{"content": "x"}\n')
    (tmp_path / "some" / "folder").mkdir(parents=True)
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    recipe = load(path)
    assert recipe.sources["code"].data_files == str(tmp_path / "code.jsonl")
    assert recipe.tokenizer == str(tmp_path / "some/folder")
    assert loads(dump(recipe, tmp_path / "again.yaml")) == recipe == load(str(tmp_path / "again.yaml"))
    assert load(YAML) == loads(YAML)


def test_unreadable_files(tmp_path):
    with pytest.raises(RecipeError, match=r"missing\.yaml: cannot read the recipe: No such file"):
        load(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes("stages: ä".encode("latin-1"))
    with pytest.raises(RecipeError, match="expected UTF-8 text"):
        load(tmp_path / "latin.yaml")
    (tmp_path / "bad.yaml").write_text("stagez: []")
    with pytest.raises(RecipeError, match=r"bad\.yaml:1:1: stagez"):
        load(tmp_path / "bad.yaml")
