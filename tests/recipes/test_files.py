import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from transformers import DataCollatorWithPadding, LlamaConfig, LlamaForCausalLM, default_data_collator

import hf_stages
from hf_stages import Recipe, Stage
from hf_stages.core import registry
from hf_stages.core.curves import Linear
from hf_stages.core.differences import diff
from hf_stages.core.fingerprint import fingerprint
from hf_stages.data.collators.collator import Collator
from hf_stages.data.source import Source
from hf_stages.evaluation.metrics import Metrics
from hf_stages.gates import Budget, Plateau
from hf_stages.losses import Loss, TaskLoss
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
    stage_from_dict,
    to_dict,
)
from hf_stages.schedules import Resume, Rewarm
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


STAGE = "stages:\n  - name: a\n    until: 1 steps\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # keys
        ("stagez: []", "run.yaml:1:1: stagez: a recipe has no 'stagez'; did you mean 'stages'?"),
        (STAGE + "    los: TaskLoss", "run.yaml:4:5: stages[0].los: a stage has no 'los'; did you mean 'loss'?"),
        ("model: bert", "run.yaml:1:1: recipe: 'stages' is missing"),
        ("stages:\n  - name: a", "run.yaml:2:5: stages[0]: 'until' is missing"),
        ("stages:\n  name: a", "run.yaml:1:1: stages: expected a list of stages (lines that begin with '- '), got a mapping"),
        ("stages:", "run.yaml:1:1: stages: expected a list of stages (lines that begin with '- '), got nothing"),
        ("stages: []", "run.yaml:1:1: stages: expected at least one Stage"),
        ("stages: [a]", "run.yaml:1:10: stages[0]: expected a stage such as {name: main, until: 2 epochs}, got 'a'"),
        ("- a", "run.yaml:1:1: recipe: expected a mapping with a list of stages, got a list of 1"),
        ("", "run.yaml: expected a mapping with a list of stages, got nothing"),
        # parts
        (STAGE + "    loss: TaskLos", "run.yaml:4:5: stages[0].loss: unknown part 'TaskLos' in hf_stages.losses; did you mean 'TaskLoss'?"),
        (STAGE + "    loss: taskloss", "did you mean 'TaskLoss'?"),
        (STAGE + "    loss: ../x", "unknown part '../x'"),
        (STAGE + "    loss: Linear", "unknown part 'Linear' in hf_stages.losses"),
        (STAGE + "    loss: []", "stages[0].loss: expected at least one loss, got an empty list"),
        (STAGE + "    loss: {weight: 3}", "stages[0].loss: expected {use: ClassName, ...}, got a mapping of weight without 'use'"),
        (STAGE + "    loss: {use: 3}", "stages[0].loss.use: expected a class name, got 3"),
        (STAGE + "    loss: 3", "stages[0].loss: expected a class name or {use: ClassName, ...}, got 3"),
        (STAGE + "    schedule: resume", "unknown part 'resume' in hf_stages.schedules; did you mean 'Resume'?"),
        (STAGE + "    gates:\n      - {use: Platou}", "run.yaml:5:9: stages[0].gates[0]: unknown part 'Platou' in hf_stages.gates; did you mean 'Plateau'?"),
        (STAGE + "    gates: 3", "stages[0].gates: expected a list of parts, got 3"),
        (STAGE + "    gates: [{metric: a}]", "stages[0].gates[0]: expected {use: ClassName, ...}, got a mapping of metric without 'use'"),
        # arguments
        (STAGE + "    gates:\n      - use: Plateau\n        patiense: 3", "run.yaml:6:9: stages[0].gates[0].patiense: Plateau takes no argument 'patiense'; did you mean 'patience'?"),
        (STAGE + "    gates: [{use: Above, metric: m}]", "stages[0].gates[0]: Above needs the argument 'value', which is missing; it takes metric, value"),
        (STAGE + "    gates: [{use: Plateau, patience: soon}]", "stages[0].gates[0].patience: expected a whole number, got 'soon'"),
        (STAGE + "    gates: [{use: Plateau, patience: 1.5}]", "patience: expected a whole number, got 1.5"),
        (STAGE + "    gates: [{use: Plateau, patience: 0}]", "run.yaml:4:28: stages[0].gates[0].patience: Plateau: patience: expected at least 1, got 0"),
        (STAGE + "    gates: [{use: Above, metric: m, value: high}]", "value: expected a number, got 'high'"),
        (STAGE + "    gates: [{use: Budget, limit: 3 epoks}]", "stages[0].gates[0].limit: unknown unit 'epoks'"),
        (STAGE + "    loss:\n      - {use: TaskLoss, shift: maybe}\n      - TaskLoss", "run.yaml:5:25: stages[0].loss[0].shift: expected true or false or null, got 'maybe'"),
        (STAGE + "    loss: {use: TaskLoss, weight: Linera(1)}", "run.yaml:4:27: stages[0].loss.weight: unknown curve 'Linera' in 'Linera(1)'; did you mean 'Linear'?"),
        (STAGE + "    loss: {use: TaskLoss, weight: {use: Linear, start: 1}}", "stages[0].loss.weight: Linear needs the argument 'end'"),
        (STAGE + "    loss: {use: TaskLoss, weight: {use: Linear, start: x, end: 1}}", "stages[0].loss.weight.start: expected a number, got 'x'"),
        (STAGE + "    schedule: {use: Fresh, optimizer: keep}", "stages[0].schedule.optimizer: expected one of 'reset', 'carry', got 'keep'"),
        (STAGE + "    data_collator: {use: DataCollatorForLanguageModeling, mml: false}", "stages[0].data_collator.mml: DataCollatorForLanguageModeling takes no argument 'mml'; did you mean 'mlm'?"),
        (STAGE + "    data_collator: DataCollatorWithPading", "in hf_stages.data or transformers; did you mean 'DataCollatorWithPadding'?"),
        (STAGE + "    compute_metrics: 3", "stages[0].compute_metrics: expected a list of metric names such as [accuracy, f1], got 3"),
        (STAGE + "    compute_metrics: [f1, f1]", "stages[0].compute_metrics: names: a metric stands twice"),
        (STAGE + "    args: 3", "stages[0].args: expected a mapping, got 3"),
        # the nouns' own errors
        ("stages:\n  - name: ../x\n    until: 1 steps", "run.yaml:2:5: stages[0]: Stage name '../x': expected letters"),
        ("stages:\n  - name: 3\n    until: 1 steps", "run.yaml:2:5: stages[0].name: expected text, got 3; write it in quotes: \"3\""),
        ("stages:\n  - name: a\n    until: 200", "run.yaml:3:5: stages[0].until: stage 'a': until: expected a duration"),
        ("stages:\n  - name: a\n    until: 2 hours", "run.yaml:3:5: stages[0].until: stage 'a': until: expected steps, epochs or tokens"),
        (STAGE + "  - name: A\n    until: 1 steps", "run.yaml:1:1: stages: the names 'a' and 'A' collide"),
        # sources, models, teachers
        (STAGE + "sources: {code: x}", "run.yaml:4:11: sources.code: expected {path: ..., ...}, got 'x'"),
        (STAGE + "sources: {code: {path: x, txt: y}}", "sources.code.txt: Source takes no argument 'txt'; did you mean 'text'?"),
        (STAGE + "sources: {code: {path: json}}", "sources.code: data_files: missing; json reads files"),
        (STAGE + "sources: {code: {path: x}}\ntrain_dataset: cod", "run.yaml:5:1: train_dataset: no source is called 'cod'; did you mean 'code'?"),
        (STAGE + "    eval_dataset: {a: cod}\nsources: {code: {path: x}}", "stages[0].eval_dataset.a: no source is called 'cod'; did you mean 'code'?"),
        (STAGE + "    teacher: stage:a", "stages[0].teacher: 'stage:a' is not finished by then"),
        (STAGE + "  - {name: b, until: 1 steps, teacher: 'stage:aa'}", "stages[1].teacher: no earlier stage is called 'aa'; did you mean 'a'?"),
        (STAGE + "model: {}", "model: a model comes from a path or from a config: expected exactly one of the two, got neither"),
        (STAGE + "model: {pth: x}", "model.pth: ModelSource takes no argument 'pth'; did you mean 'path'?"),
        (STAGE + "model: 3", "model: expected a name, {path: ...} or {config: {...}}, got 3"),
        (STAGE + "tokenizer: 3", "tokenizer: expected a folder or a name on the Hub, got 3"),
        # memory and trust
        (STAGE + "model: {in_memory: model, fingerprint: abc}", "model: a model that existed only in memory (fingerprint abc); a file cannot hold it: give it from Python"),
        (STAGE + "    loss: {in_memory: function, fingerprint: f}", "stages[0].loss: a function that existed only in memory"),
        (STAGE + "    loss: {use: 'os:system', command: x}", "stages[0].loss: use: 'os:system' names code outside hf_stages, and importing it runs it. If you know and trust 'os', allow it: load(..., trust_remote_code=True)"),
        (STAGE + "    gates: [{use: 'hf_stages.training.trainer.os:system'}]", "stages[0].gates[0]: use:"),
        # YAML itself
        ("stages: [a", "cannot read this as YAML: while parsing a flow sequence"),
        ("stages:\n  - name: a\n   until: b", "run.yaml:3:4: cannot read this as YAML"),
        ("a: 1\nb: 2\na: 3", "run.yaml:3:1: the key 'a' stands twice (first on line 1); keep one"),
        (STAGE + "    until: 2 steps", "run.yaml:4:5: the key 'until' stands twice (first on line 3)"),
        ("x: !!python/object/apply:os.system [true]", "run.yaml:1:4: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed"),
        ("x: !!binary aGk=", "run.yaml:1:4: the tag 'tag:yaml.org,2002:binary' is not allowed"),
        ("x: !!int a", "run.yaml:1:4: cannot read 'a'"),
        ("x: &a {y: 1}\nz: {<<: *a}", "run.yaml:2:5: merge keys (<<) are not supported"),
        ("x: &a [*a]", "expand without end"),
        ("? [a]\n: 1", "run.yaml:1:3: expected text as a key"),
        ("x: *nowhere", "run.yaml:1:4: cannot read this as YAML: found undefined alias 'nowhere'"),
        ("[" * 1200, "nested too deeply"),
        ("x: \x00", "run.yaml:1:4: cannot read this as YAML: the character 0x0000 is not allowed"),
        ("a: 1\n---\nb: 1", "run.yaml:2:1: cannot read this as YAML: expected a single document"),
    ],
)  # fmt: skip
def test_errors(text, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        loads(text, file="run.yaml")


def test_anchors_are_values_but_no_bomb():
    assert loads("stages: [{name: a, until: &u 2 steps}, {name: b, until: *u}]")["b"].until.amount == 2
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(RecipeError, match="expand without end"):
        loads(bomb)


def test_errors_from_a_dict_say_where_without_a_line():
    with pytest.raises(RecipeError, match=re.escape("stages[0].gates[0].value: expected a number, got 'x'")):
        from_dict(
            {"stages": [{"name": "a", "until": "1 steps", "gates": [{"use": "Above", "metric": "m", "value": "x"}]}]}
        )


def test_errors_from_text_give_the_line():
    with pytest.raises(RecipeError, match=r"^line 4, column 5: stages"):
        loads(STAGE + "    los: TaskLoss")


def test_missing_folders_are_no_crash(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    for key in ("monitors", "exporters"):
        with pytest.raises(RecipeError, match=f"unknown part 'Spike'.*has no {key} of its own.*'module:Spike'"):
            loads(STAGE + f"    {key}: [Spike]")


def test_adding_a_part_is_adding_a_file(monkeypatch, tmp_path):
    """The file's name is the class's; nothing else is imported."""
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates" / "my_kl.py").write_text("class MyKL: pass\nclass Helper: pass\n")
    (tmp_path / "gates" / "broken.py").write_text("class Broken: pass\nraise RuntimeError('imported')\n")
    (tmp_path / "gates" / "_private.py").write_text("class Private: pass\n")
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    monkeypatch.setattr(hf_stages.gates, "__path__", [*hf_stages.gates.__path__, str(tmp_path / "gates")])
    assert type(part_from_dict("MyKL", "gates")).__name__ == "MyKL"
    for name in ("Helper", "Private", "my_kl", "Mykl"):
        with pytest.raises(RecipeError, match="unknown part"):
            part_from_dict(name, "gates")
    with pytest.raises(RuntimeError, match="imported"):
        part_from_dict("Broken", "gates")


@pytest.mark.parametrize(
    ("name", "file"),
    [("AddLora", "add_lora"), ("LogitKL", "logit_kl"), ("DPO", "dpo"), ("HiddenMSE", "hidden_mse"), ("InsertSubLN", "insert_sub_ln")],
)  # fmt: skip
def test_acronyms(monkeypatch, tmp_path, name, file):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / f"{file}.py").write_text(f"class {name}: pass\n")
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    assert registry.module_of(name, "losses") == f"hf_stages.losses.{file}"


# ---- custom parts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnLoss(Loss):
    layers: tuple[int, ...] = ()
    map: dict[int, int] = field(default_factory=dict)
    shape: list[int] | None = None
    weight: float = 1.0
    inner: Loss | None = None


def own_metric(prediction):
    return {}


def test_custom_parts_need_trust_and_then_read_back():
    loss = 0.5 * OwnLoss((1, 2), {0: 3}, [1], 2.0, Sum((TaskLoss(), TaskLoss())))
    recipe = Recipe([Stage("a", "1 steps", loss=loss, compute_metrics=own_metric)])
    text = dump(recipe)
    assert "tests.recipes.test_files:OwnLoss" in text
    assert json.loads(json.dumps(to_dict(recipe))) == to_dict(recipe)
    assert loads(text, trust_remote_code=True) == recipe
    with pytest.raises(RecipeError, match="names code outside hf_stages"):
        loads(text)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("no_such_module_x:A", "cannot import 'no_such_module_x:A'"),
        ("json:nothing", "cannot import 'json:nothing'"),
        ("json:__name__", "expected a class or a function"),
        ("a/b:C", "expected 'package.module:Class'"),
        ("tests.recipes.test_files:own_metric", "is a function: it stands for itself"),
    ],
)
def test_custom_parts_that_are_none(use, message):
    with pytest.raises(RecipeError, match=message):
        part_from_dict({"use": use, "x": 1}, "gates", trust_remote_code=True)


@pytest.mark.parametrize(
    "use", ["hf_stages.core.registry:ast", "hf_stages.core.registry:find_class", "hf_stages.core.registry:Path"]
)
def test_our_own_modules_lead_to_our_own_classes_only(use):
    with pytest.raises(RecipeError, match="is no class of hf_stages"):
        part_from_dict({"use": use}, "gates")


# ---- memory ---------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"x": torch.tensor(self.rows[index])}


def tiny():
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    )


def test_what_exists_in_memory_is_recorded_and_refused_back():
    data = datasets.Dataset.from_dict({"a": [1]})
    stage = Stage(
        "a", "1 steps", train_dataset=data, eval_dataset=Rows([1, 2]), teacher=tiny(), compute_metrics=lambda p: {}
    )
    plain = to_dict(stage)
    assert plain["train_dataset"] == {"in_memory": "dataset", "fingerprint": data._fingerprint}
    assert plain["eval_dataset"]["in_memory"] == "dataset"
    assert plain["teacher"]["in_memory"] == "model"
    assert plain["compute_metrics"]["in_memory"] == "function"
    assert json.loads(json.dumps(plain)) == plain
    for key in ("train_dataset", "eval_dataset", "teacher", "compute_metrics"):
        with pytest.raises(RecipeError, match=f"{key}: a .* that existed only in memory"):
            stage_from_dict({"name": "a", "until": "1 steps", key: plain[key]})


def test_fingerprints_tell_apart():
    different = [
        Rows([1, 2]),
        Rows([1, 3]),
        Rows([1]),
        tiny(),
        len,
        tiny,
        [1],
        partial(tiny, 1),
        partial(tiny, 2),
        Resume(),
    ]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert fingerprint(tiny()) == fingerprint(tiny())
    assert fingerprint(object()) == fingerprint(object())
    assert fingerprint(tiny) == "tests.recipes.test_files.tiny"


LIGHT = """
from functools import partial
import datasets
from hf_stages.core.curves import Linear
from hf_stages.core.fingerprint import fingerprint
from hf_stages.gates import Budget

class Lazy:
    rows = [1, 2]
    def __len__(self): return 2
    def __getitem__(self, i): return {"b": self.rows[i], "a": {"x", "y", "z"}, "o": object()}

data = datasets.Dataset.from_dict({"a": [1]})
values = [Lazy(), data, [data], Budget("1 hour"), Linear(1, 0), {"b", "a", "c"}, partial(print, Lazy()), object(), print]
found = [fingerprint(value) for value in values]
"""


def test_fingerprints_are_the_same_in_another_process():
    here: dict = {"__name__": "__main__"}
    exec(LIGHT, here)
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", LIGHT + "print(found)"], capture_output=True, text=True, env=env, check=True
    )
    assert run.stdout.strip() == str(here["found"])


def test_collators():
    assert part_of("data_collator", "default_data_collator") is default_data_collator
    assert (
        to_dict(Stage("a", "1 steps", data_collator=default_data_collator))["data_collator"] == "default_data_collator"
    )
    held = DataCollatorWithPadding(tokenizer=Rows([]), max_length=9)
    plain = to_dict(Stage("a", "1 steps", data_collator=held))["data_collator"]
    assert (plain["use"], plain["max_length"], plain["tokenizer"]["in_memory"]) == (
        "DataCollatorWithPadding",
        9,
        "dataset",
    )
    with pytest.raises(RecipeError, match=r"data_collator.tokenizer: a dataset that existed only in memory"):
        part_of("data_collator", plain)
    with pytest.raises(ValueError, match="DataCollatorWithPadding needs a tokenizer"):
        Collator("DataCollatorWithPadding").build()
    assert Collator("DataCollatorWithPadding", {"max_length": 9}).build(tokenizer="t").max_length == 9


def part_of(key, plain):
    return getattr(stage_from_dict({"name": "a", "until": "1 steps", key: plain}), key)


# ---- files and differences ------------------------------------------------------------------------------------------


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


def test_diff_of_stages():
    old = to_dict(Stage("code", "9 steps", schedule=Rewarm(to=1e-5), gates=[Plateau(patience=2)]))
    new = to_dict(Stage("code", "9 steps", schedule=Rewarm(to=5e-6), loss=TaskLoss()))
    assert diff(old, old) == []
    assert diff(old, new) == [
        "stages.code.schedule.to: 1e-05 -> 5e-06",
        "stages.code.gates[0].use: Plateau -> (left out)",
        "stages.code.gates[0].patience: 2 -> (left out)",
        "stages.code.loss.use: (left out) -> TaskLoss",
    ]


def test_diff_of_recipes_goes_by_stage_names():
    a, b = Stage("a", "1 steps"), Stage("b", "1 steps")
    assert diff(to_dict(Recipe([a, b])), to_dict(Recipe([Stage("b", "2 steps")]))) == [
        "stages.a.name: a -> (left out)",
        "stages.a.until: 1 steps -> (left out)",
        "stages.b.until: 1 steps -> 2 steps",
    ]
