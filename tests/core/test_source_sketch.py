"""Sketches read from source files equal the imported parts; a misspelt word is found without importing torch."""

from __future__ import annotations

import importlib
import inspect
import json

import pytest

from hf_stages.core.registry import KIND_OF_KEY, list_parts, module_of, parameters_of, part_names
from hf_stages.core.source_sketch import classes_and_functions, dataclass_fields, sketch
from hf_stages.core.type_hints import hints_of

PARTS = sorted({(module_of(name, folder), name) for folder in KIND_OF_KEY.values() for name in part_names(folder)})
RECIPES = list_parts("recipes")
COLLATORS = "transformers.data.data_collator"
THEIRS = [(COLLATORS, name) for name in classes_and_functions(COLLATORS) if name.startswith("DataCollator")]
OPEN = inspect.Parameter.VAR_KEYWORD


def said(target):
    found = parameters_of(target).values()
    return [(p.name, p.kind, p.default is p.empty) for p in found if p.kind is not OPEN], any(
        p.kind is OPEN for p in found
    )


@pytest.mark.parametrize(("module", "name"), [*PARTS, *RECIPES, *THEIRS], ids=lambda text: text.split(".")[-1])
def test_a_sketch_takes_what_the_part_takes(module, name):
    real, drawn = getattr(importlib.import_module(module), name), sketch(module, name)
    (arguments, is_open), known = said(drawn), hints_of(real)
    if is_open and not arguments:  # its constructor is another package's: nothing is refused beforehand
        assert "hf_stages" not in real.__init__.__module__
        return
    assert (arguments, is_open) == said(real)
    assert {k: h for k, h in hints_of(drawn).items() if k in known} == {
        k: known[k] for k in hints_of(drawn) if k in known
    }


def test_names_of_transformers_are_read_without_importing_it():
    from transformers import TrainingArguments

    assert dataclass_fields("transformers.training_args", "TrainingArguments") == list(parameters_of(TrainingArguments))


CODE = """
import sys
from hf_stages.commands import cli
code = cli.main(sys.argv[1:])
print("torch" in sys.modules, "transformers" in sys.modules, code)
"""
PLAIN = {
    "model": {"config": {"model_type": "llama"}},
    "args": {"output_dir": "out"},
    "stages": [{"name": "a", "until": "1 steps"}],
}


def stage(**keys):
    return {"stages": [{"name": "a", "until": "1 steps", **keys}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": 1}, "a recipe has no 'modle'; did you mean 'model'?"),
        (stage(untill="1 steps"), "stages[0].untill: a stage has no 'untill'"),
        (stage(args={"learning_rte": 1}), "stages[0].args.learning_rte: TrainingArguments has no 'learning_rte'"),
        ({"args": {"output_dri": "out"}}, "args.output_dri: TrainingArguments has no 'output_dri'"),
        (stage(loss={"use": "LogitKl"}), "did you mean 'LogitKL'?"),
        (stage(loss=["TaskLoss", {"use": "LogitKL", "temprature": 2}]), "did you mean 'temperature'?"),
        (stage(transforms=[{"use": "ReduceLayers", "kepe": [1]}]), "did you mean 'keep'?"),
        (stage(transforms=["Ternarise"]), "did you mean 'Ternarize'?"),
        (stage(gates=[{"use": "Below", "metric": "eval_loss"}]), "needs the argument 'value'"),
        (stage(data_collator={"use": "DataCollatorForLanguageModeling", "mml": False}), "did you mean 'mlm'?"),
        ({"sources": {"text": {"path": "json", "datafiles": "x"}}}, "did you mean 'data_files'?"),
        ({"stages": {"use": "three_stage", "untl": "3 steps"}}, "did you mean 'until'?"),
        ({"stages": {"use": "three_stages"}}, "did you mean 'three_stage'?"),
        (stage(until="3 stpes"), "until: "),
        (stage(loss={"use": "mine:Loss"}), "--trust-remote-code"),
    ],
)
def test_a_misspelt_word_is_found_before_torch_is_imported(run_python, tmp_path, changes, message):
    (tmp_path / "run.yaml").write_text(json.dumps({**PLAIN, **changes}))
    done = run_python(CODE, "plan", "run.yaml")
    assert message in done.stderr
    assert done.stdout.split() == ["False", "False", "2"]


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["plan", "--help"], ["recipe", "--help"], ["recipe"], ["recipe", "three_stag"], ["run", "none.yaml"]],
    ids=" ".join,
)
def test_some_commands_answer_without_importing_torch(run_python, argv):
    done = run_python(CODE, *argv)
    assert done.stdout.split()[-3:-1] == ["False", "False"]


@pytest.mark.parametrize("command", ["run", "versus", "probe-lr", "cache-teacher"])
def test_every_command_reads_the_recipe_first(run_python, tmp_path, command):
    (tmp_path / "run.yaml").write_text(json.dumps({**PLAIN, **stage(loss="TaskLos")}))
    more = {"cache-teacher": ["--to", "cache"], "probe-lr": ["--stage", "a"]}
    done = run_python(CODE, command, "run.yaml", *more.get(command, []))
    assert "did you mean 'TaskLoss'?" in done.stderr
    assert done.stdout.split()[0] == "False"
