"""Recipes mutated at random: each is read, or refused with a RecipeError; nothing else escapes."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest

from hf_stages import recipes
from hf_stages.core.registry import RecipeError
from hf_stages.recipes import yaml_marks

SEEDS = [
    """
model: {path: some/folder, auto_class: AutoModelForCausalLM, overrides: {num_labels: 2}}
tokenizer: some/folder
args: {output_dir: out, learning_rate: 5e-5}
sources:
  code: {path: json, data_files: [a.jsonl, b.jsonl], text: content, rename: {old: content}}
  prose: {path: text, data_files: {train: c.txt}, text: text, chunk: true, max_length: 64}
  pairs: {path: csv, data_files: d.csv, text: [a, b], label: stars, classes: [x, y], keep: [id], limit: 9}
train_dataset: code
eval_dataset: {code: code, prose: prose}
stages:
  - {name: warm, until: 100 steps, args: {warmup_steps: 10}}
  - name: main
    until: 2 epochs
    train_dataset: {use: Mixture, weights: {code: "Linear(1, 0)", prose: 1}}
    loss: [TaskLoss, {use: HiddenMSE, layers: {1: 2}, weight: "Linear(1, 0)"}]
    transforms: [{use: Freeze, patterns: lm_head}, {use: AddLora, target_modules: [q_proj]}]
    schedule: {use: Rewarm, to: 1e-4}
    gates: [{use: Plateau, patience: 2}, {use: Budget, limit: 90 minutes}]
    teacher: {use: Teacher, model: other/folder, load_in: 8bit}
    data_collator: {use: DataCollatorForLanguageModeling, mlm: false}
    compute_metrics: [accuracy, f1]
    parents: warm
""",
    "model: {config: {model_type: llama}}\ntrain_dataset: {path: csv, data_files: a.csv}\nstages: {use: three_stage, "
    "until: 9 epochs}\n",
]
VALUES = [
    *(
        None,
        True,
        0,
        -1,
        7,
        1.5,
        float("nan"),
        float("inf"),
        10**30,
        "",
        "x",
        "x" * 5000,
        "a/" * 3000,
        "\0",
        "~",
        "stage:",
        "://",
    ),
    *(
        [],
        [None],
        [1, 2],
        ["x"],
        [["x"]],
        {},
        {"x": 1},
        {"use": "x"},
        {"use": 1},
        {"use": "Freeze"},
        {"path": 1},
        {"in_memory": "x"},
    ),
]


def places(data, path=()):
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def mutate(data, chance):
    path = chance.choice([p for p in places(data) if p])
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    kind = chance.choice(["value", "value", "value", "drop", "rename", "swap"])
    if kind == "drop":
        del holder[path[-1]]
    elif kind == "rename" and isinstance(holder, dict):
        holder[chance.choice(["use", "path", "x", "", str(path[-1])[:-1]])] = holder.pop(path[-1])
    elif kind == "swap":
        other = chance.choice(list(places(data)))
        found = data
        for key in other:
            found = found[key]
        holder[path[-1]] = copy.deepcopy(found)
    else:
        holder[path[-1]] = copy.deepcopy(chance.choice(VALUES))


@pytest.mark.parametrize("rounds", [150, pytest.param(4000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_nothing_but_a_recipe_error_escapes(rounds, tmp_path):
    chance = random.Random(rounds)
    plain = [yaml_marks.parse(text)[0] for text in SEEDS]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(rounds):
        data = copy.deepcopy(chance.choice(plain))
        for _ in range(chance.choice([1, 1, 2, 3])):
            mutate(data, chance)
        text = yaml_marks.render(data)
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        try:
            recipes.load(tmp_path / "run.yaml")
            outcomes["read"] += 1
        except RecipeError:
            outcomes["refused"] += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{text}", pytrace=True)
    assert min(outcomes.values()) > rounds / 20


LONG = "x" * 5000
CASES = {
    "a long path": f"sources: {{a: {{path: {LONG}}}}}",
    "a long file": f"sources: {{a: {{path: json, data_files: {LONG}}}}}",
    "a file that is a number": "sources: {a: {path: json, data_files: [1]}}",
    "files that hold a number": "sources: {a: {path: json, data_files: {train: 7}}}",
    "a long model": f"model: {LONG}",
    "a long tokenizer": f"tokenizer: {LONG}",
    "a long teacher": f"teacher: {LONG}",
    "a long word file": f"sources: {{a: {{path: x, text: t, augment: {{use: Augment, model: {LONG}, cache: c}}}}}}",
}


@pytest.mark.parametrize("name", CASES)
def test_values_that_serve_as_paths(name, tmp_path):
    (tmp_path / "run.yaml").write_text(f"{CASES[name]}\nstages: [{{name: a, until: 1 steps}}]\n")
    try:
        recipes.load(Path(tmp_path, "run.yaml"))
    except RecipeError as error:
        assert "expected" in str(error)  # noqa: PT017
