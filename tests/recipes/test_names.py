"""What ``from hf_stages import recipes`` gives: reading and writing, and the ready recipes."""

import re

import pytest

import hf_stages
from hf_stages import Recipe, Stage, recipes
from hf_stages.losses.objective.terms import terms_of
from hf_stages.schedules import Resume


def test_the_room_reads_and_writes_recipes(tmp_path):
    recipe = Recipe([Stage("main", "2 epochs", schedule=Resume())])
    recipes.dump(recipe, tmp_path / "run.yaml")
    assert recipes.load(tmp_path / "run.yaml") == recipes.loads(recipes.dump(recipe)) == recipe
    assert recipes.from_dict(recipes.to_dict(recipe)) == recipe
    assert recipes.stage_from_dict(recipes.to_dict(recipe["main"])) == recipe["main"]
    assert recipes.part_from_dict(recipes.part_to_dict(Resume(), "schedule"), "schedule") == Resume()


def test_ready_recipes_stand_beside_them():
    assert {"load", "loads", "dump", "from_dict", "to_dict", "part_from_dict", "three_stage"} <= set(dir(recipes))
    assert [stage.name for stage in recipes.three_stage(until="6 epochs").stages] == ["features", "all", "logits"]


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match=r"module 'hf_stages.recipes' has no attribute 'lode'"):
        recipes.lode  # noqa: B018


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"loss": {"class": "TaskLoss"}}, "expected {use: ClassName, ...}, got 'class' in the place of 'use'"),
        ({"learning_rate": 1e-3}, "a stage has no 'learning_rate'; put fields of TrainingArguments under args"),
        ({"monitors": ["X"]}, "unknown part 'X' in hf_stages.monitors; expected one of"),
    ],
)  # fmt: skip
def test_words_of_other_tools_are_answered_by_ours(stage, said):
    with pytest.raises(recipes.RecipeError, match=re.escape(said)):
        recipes.from_dict({"stages": [{"name": "a", "until": "1 steps", **stage}]})


def test_a_function_is_no_loss():
    with pytest.raises(ValueError, match=r"expected a loss such as TaskLoss.*compute_loss_func"):
        terms_of(lambda outputs, labels: 0.0)


def test_a_misspelt_name_is_answered_by_the_nearest_one():
    with pytest.raises(AttributeError, match="'LogitsKL'; did you mean 'LogitKL'"):
        hf_stages.LogitsKL  # noqa: B018
