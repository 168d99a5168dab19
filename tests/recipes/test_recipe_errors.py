"""What is wrong in a recipe is refused with its place, what was expected and what to write."""

import re

import pytest

from hf_stages.core import registry
from hf_stages.recipes import (
    RecipeError,
    from_dict,
    loads,
)

STAGE = "stages:\n  - name: a\n    until: 1 steps\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # keys
        ("stagez: []", "run.yaml:1:1: stagez: a recipe has no 'stagez'; did you mean 'stages'?"),
        (STAGE + "    los: TaskLoss", "run.yaml:4:5: stages[0].los: a stage has no 'los'; did you mean 'loss'?"),
        ("model: bert", "run.yaml:1:1: recipe: 'stages' is missing"),
        ("stages:\n  - name: a", "run.yaml:2:5: stages[0]: 'until' is missing"),
        ("stages:\n  name: a", "run.yaml:1:1: stages: expected a list of stages (lines that begin with '- '), got a "
                               "mapping"),
        ("stages:", "run.yaml:1:1: stages: expected a list of stages (lines that begin with '- '), got nothing"),
        ("stages: []", "run.yaml:1:1: stages: expected at least one Stage"),
        ("stages: [a]", "run.yaml:1:10: stages[0]: expected a stage such as {name: main, until: 2 epochs}, got 'a'"),
        ("- a", "run.yaml:1:1: recipe: expected a mapping with a list of stages, got a list of 1"),
        ("", "run.yaml: expected a mapping with a list of stages, got nothing"),
        # parts
        (STAGE + "    loss: TaskLos", "run.yaml:4:5: stages[0].loss: unknown part 'TaskLos' in hf_stages.losses; did "
                                      "you mean 'TaskLoss'?"),
        (STAGE + "    loss: taskloss", "did you mean 'TaskLoss'?"),
        (STAGE + "    loss: ../x", "unknown part '../x'"),
        (STAGE + "    loss: Linear", "unknown part 'Linear' in hf_stages.losses"),
        (STAGE + "    loss: []", "stages[0].loss: expected at least one loss, got an empty list"),
        (STAGE + "    loss: {weight: 3}", "stages[0].loss: expected {use: ClassName, ...}, got a mapping of weight "
                                          "without 'use'"),
        (STAGE + "    loss: {use: 3}", "stages[0].loss.use: expected a class name, got 3"),
        (STAGE + "    loss: 3", "stages[0].loss: expected a class name or {use: ClassName, ...}, got 3"),
        (STAGE + "    schedule: resume", "unknown part 'resume' in hf_stages.schedules; did you mean 'Resume'?"),
        (STAGE + "    gates:\n      - {use: Platou}", "run.yaml:5:9: stages[0].gates[0]: unknown part 'Platou' in "
                                                      "hf_stages.gates; did you mean 'Plateau'?"),
        (STAGE + "    gates: 3", "stages[0].gates: expected a list of parts, got 3"),
        (STAGE + "    gates: [{metric: a}]", "stages[0].gates[0]: expected {use: ClassName, ...}, got a mapping of "
                                             "metric without 'use'"),
        # arguments
        (STAGE + "    gates:\n      - use: Plateau\n        patiense: 3", "run.yaml:6:9: stages[0].gates[0].patiense: "
                                                                          "Plateau takes no argument 'patiense'; did "
                                                                          "you mean 'patience'?"),
        (STAGE + "    gates: [{use: Above, metric: m}]", "stages[0].gates[0]: Above needs the argument 'value', which "
                                                         "is missing; it takes metric, value"),
        (STAGE + "    gates: [{use: Plateau, patience: soon}]", "stages[0].gates[0].patience: expected a whole number, "
                                                                "got 'soon'"),
        (STAGE + "    gates: [{use: Plateau, patience: 1.5}]", "patience: expected a whole number, got 1.5"),
        (STAGE + "    gates: [{use: Plateau, patience: 0}]", "run.yaml:4:28: stages[0].gates[0].patience: Plateau: "
                                                             "patience: expected at least 1, got 0"),
        (STAGE + "    gates: [{use: Above, metric: m, value: high}]", "value: expected a number, got 'high'"),
        (STAGE + "    gates: [{use: Budget, limit: 3 epoks}]", "stages[0].gates[0].limit: unknown unit 'epoks'"),
        (STAGE + "    loss:\n      - {use: TaskLoss, shift: maybe}\n      - TaskLoss", "run.yaml:5:25: "
                                                                                       "stages[0].loss[0].shift: "
                                                                                       "expected true or false or "
                                                                                       "null, got 'maybe'"),
        (STAGE + "    loss: {use: TaskLoss, weight: Linera(1)}", "run.yaml:4:27: stages[0].loss.weight: unknown curve "
                                                                 "'Linera' in 'Linera(1)'; did you mean 'Linear'?"),
        (STAGE + "    loss: {use: TaskLoss, weight: {use: Linear, start: "
                 "1}}", "stages[0].loss.weight: Linear needs the argument 'end'"),
        (STAGE + "    loss: {use: TaskLoss, weight: {use: Linear, start: x, end: "
                 "1}}", "stages[0].loss.weight.start: expected a number, got 'x'"),
        (STAGE + "    schedule: {use: Fresh, optimizer: keep}", "stages[0].schedule.optimizer: expected one of "
                                                                "'reset', 'carry', got 'keep'"),
        (STAGE + "    data_collator: {use: DataCollatorForLanguageModeling, mml: "
                 "false}", "stages[0].data_collator.mml: DataCollatorForLanguageModeling takes no argument 'mml'; did "
                           "you mean 'mlm'?"),
        (STAGE + "    data_collator: DataCollatorWithPading", "in hf_stages.data or transformers; did you mean "
                                                              "'DataCollatorWithPadding'?"),
        (STAGE + "    compute_metrics: 3", "stages[0].compute_metrics: expected a list of metric names such as "
                                           "[accuracy, f1], got 3"),
        (STAGE + "    compute_metrics: [f1, f1]", "stages[0].compute_metrics: names: a metric stands twice"),
        (STAGE + "    args: 3", "stages[0].args: expected a mapping, got 3"),
        # the nouns' own errors
        ("stages:\n  - name: ../x\n    until: 1 steps", "run.yaml:2:5: stages[0]: Stage name '../x': expected letters"),
        ("stages:\n  - name: 3\n    until: 1 steps", "run.yaml:2:5: stages[0].name: expected text, got 3; write it in "
                                                     "quotes: \"3\""),
        ("stages:\n  - name: a\n    until: 200", "run.yaml:3:5: stages[0].until: stage 'a': until: expected a "
                                                 "duration"),
        ("stages:\n  - name: a\n    until: 2 hours", "run.yaml:3:5: stages[0].until: stage 'a': until: expected steps, "
                                                     "epochs or tokens"),
        (STAGE + "  - name: A\n    until: 1 steps", "run.yaml:1:1: stages: the names 'a' and 'A' collide"),
        # sources, models, teachers
        (STAGE + "sources: {code: x}", "run.yaml:4:11: sources.code: expected {path: ..., ...}, got 'x'"),
        (STAGE + "sources: {code: {path: x, txt: y}}", "sources.code.txt: Source takes no argument 'txt'; did you mean "
                                                       "'text'?"),
        (STAGE + "sources: {code: {path: json}}", "sources.code: data_files: missing; json reads files"),
        (STAGE + "sources: {code: {path: x}}\ntrain_dataset: cod", "run.yaml:5:1: train_dataset: no source is called "
                                                                   "'cod'; did you mean 'code'?"),
        (STAGE + "    eval_dataset: {a: cod}\nsources: {code: {path: x}}", "stages[0].eval_dataset.a: no source is "
                                                                           "called 'cod'; did you mean 'code'?"),
        (STAGE + "    teacher: stage:a", "stages[0].teacher: 'stage:a' is not finished by then"),
        (STAGE + "  - {name: b, until: 1 steps, teacher: 'stage:aa'}", "stages[1].teacher: no earlier stage is called "
                                                                       "'aa'; did you mean 'a'?"),
        (STAGE + "model: {}", "model: a model comes from a path or from a config: expected exactly one of the two, got "
                              "neither"),
        (STAGE + "model: {pth: x}", "model.pth: ModelSource takes no argument 'pth'; did you mean 'path'?"),
        (STAGE + "model: 3", "model: expected a name, {path: ...} or {config: {...}}, got 3"),
        (STAGE + "tokenizer: 3", "tokenizer: expected a folder or a name on the Hub, got 3"),
        # memory and trust
        (STAGE + "model: {in_memory: model, fingerprint: abc}", "model: a model that existed only in memory "
                                                                "(fingerprint abc); a file cannot hold it: give it "
                                                                "from Python"),
        (STAGE + "    loss: {in_memory: function, fingerprint: f}", "stages[0].loss: a function that existed only in "
                                                                    "memory"),
        (STAGE + "    loss: {use: 'os:system', command: x}", "stages[0].loss: use: 'os:system' names code outside "
                                                             "hf_stages, and importing it runs it. If you know and "
                                                             "trust 'os', allow it: load(..., trust_remote_code=True)"),
        (STAGE + "    gates: [{use: 'hf_stages.training.trainer.os:system'}]", "stages[0].gates[0]: use:"),
        # YAML itself
        ("stages: [a", "cannot read this as YAML: while parsing a flow sequence"),
        ("stages:\n  - name: a\n   until: b", "run.yaml:3:4: cannot read this as YAML"),
        ("a: 1\nb: 2\na: 3", "run.yaml:3:1: the key 'a' stands twice (first on line 1); keep one"),
        (STAGE + "    until: 2 steps", "run.yaml:4:5: the key 'until' stands twice (first on line 3)"),
        ("x: !!python/object/apply:os.system [true]", "run.yaml:1:4: the tag "
                                                      "'tag:yaml.org,2002:python/object/apply:os.system' is not "
                                                      "allowed"),
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
