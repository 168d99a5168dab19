"""What is said of values that mean nothing: advice that can be followed, a line, and no page of text."""

from __future__ import annotations

import json

import pytest

from hf_stages import recipes
from hf_stages.core.curves import Const, Step, as_curve
from hf_stages.core.hub_names import explain_hub_lookup
from hf_stages.core.registry import RecipeError
from hf_stages.training.from_recipe import prepare

LONG = "x" * 5000
TAIL = "\nstages:\n  - name: a\n    until: 1 steps\n"
READ = {
    "a number as a shape": (
        "stages: [{name: a, until: 1 steps, schedule: {use: Fresh, shape: 3}}]",
        "schedule.shape: expected text or a curve such as Linear(1, 0) or null, got 3",
        "supported",
    ),
    "no name": (
        "stages: [{name: null, until: 1 steps}]",
        "name: expected text, got nothing, such as {name: main",
        "quotes",
    ),
    "a list as a name": ("stages: [{name: [1, 2], until: 1 steps}]", "name: expected text, got a list of 2", "quotes"),
    "a number as a name": ("stages: [{name: 3, until: 1 steps}]", 'write it in quotes: "3"', "nothing"),
    "a part as a duration": ("stages: [{name: a, until: {use: Fresh}}]", "expected a duration", "write the unit"),
    "a list of datasets": (
        "eval_dataset: [a, b]" + TAIL,
        "a list of 2; several go by name: {prose",
        "a string would be",
    ),
    "a list as a source": ("sources: {b: [1]}" + TAIL, "expected {path: ..., ...}, got a list of 1", "would be"),
    "a number as data": ("train_dataset: 7" + TAIL, "expected {path: ..., ...}, got 7", "a string would be"),
    "text as a source": ("sources: {b: imdb}" + TAIL, "a string would be {path: imdb}", "several"),
}


@pytest.mark.parametrize("name", READ)
def test_advice_fits(name):
    text, words, absent = READ[name]
    with pytest.raises(RecipeError) as refused:
        recipes.loads(text)
    assert words in str(refused.value)
    assert absent not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        f"stages: [{{name: {LONG}, until: 1 steps}}]",
        f"stages: [{{name: a, until: {LONG}}}]",
        f"stages: [{{name: a, until: '{'x ' * 2500}'}}]",
        f"stages: [{{name: a, until: 1 steps, parents: {LONG}}}]",
        f"stages: [{{name: a, until: 1 steps, loss: {LONG}}}]",
        f"stages: [{{name: a, until: 1 steps, gates: {{use: Expect, metric: m, high: {LONG}}}}}]",
        f"stages: [{{name: a, until: 1 steps, schedule: {{use: Fresh, warmup: {list(range(2000))}}}}}]",
    ],
    ids=range(7),
)
def test_long_values_are_cut(text):
    with pytest.raises(RecipeError) as refused:
        recipes.loads(text)
    assert len(str(refused.value)) < 900
    assert " characters)" in str(refused.value)


@pytest.mark.parametrize(
    ("character", "shown"),
    [("\0", "0x0000"), ("\ud800", "0xd800"), ("\x07", "0x0007")],
    ids=["NUL", "surrogate", "bell"],
)
def test_characters_that_yaml_does_not_take(character, shown):
    with pytest.raises(RecipeError, match=rf"^run\.yaml:3:13: cannot read this as YAML: the character {shown} is not"):
        recipes.loads(f"stages:\n  - name: a\n    until: 1{character} steps\n", file="run.yaml")


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input_ids": [3, 4], "labels": [3, 4]}))
    sizes = "hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 2"
    model = f"{{config: {{model_type: llama, {sizes}}}}}"

    def run(**changes):
        given = {"model": model, "train_dataset": "{path: json, data_files: rows.jsonl}", **changes}
        given["stages"] = (
            "[{name: a, until: 1 steps, loss: LogitKL}]" if "teacher" in changes else "[{name: a, until: 1 steps}]"
        )
        given["args"] = f"{{output_dir: {tmp_path / 'out'}, use_cpu: true, report_to: none}}"
        (tmp_path / "run.yaml").write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
        return prepare(recipes.load(tmp_path / "run.yaml")).plan()

    return run


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("tokenizer", "tokeniser", "tokeniser"),
        ("model", "{path: pretrained}", "pretrained"),
        ("model", "some/where/else", "some/where/else"),
        ("teacher", "language", "language"),
        ("teacher", "{use: Teacher, model: language}", "language"),
    ],
)
def test_a_folder_that_is_not_there(key, value, name, plan, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = rf"run\.yaml:\d+:\d+: .*{key}.*: there is no folder '{name}' here; it was taken for a name on the Hub: "
    with pytest.raises(RecipeError, match=said):
        plan(**{key: value})


def test_an_error_in_a_folder_that_is_there(tmp_path):
    with pytest.raises(OSError, match="broken"), explain_hub_lookup(str(tmp_path)):
        raise OSError("broken")


def test_a_recipe_without_sources(plan):
    with pytest.raises(RecipeError, match="train_dataset: no source is called 'rows'; the recipe has no sources"):
        plan(train_dataset="rows", sources="{}")


@pytest.mark.parametrize("curve", ["Linear(1e999, 0)", "Cosine(1, -1e999)", "WSD(peak=1e999)"])
def test_curves_are_finite(curve):
    with pytest.raises(ValueError, match="expected a finite number"):
        as_curve(curve)
    for value in (float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match="expected a"):
            Const(value)
        with pytest.raises(ValueError, match="expected points"):
            Step(((0, float("nan")),))
