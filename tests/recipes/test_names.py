"""What ``from hf_stages import recipes`` gives: reading and writing, and the ready recipes."""

import pytest

from hf_stages import Recipe, Stage, recipes
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
