import pytest

from hf_stages import Recipe, Stage
from hf_stages.core.duration import Duration
from hf_stages.core.stage import parents_of


def stages(*specs):
    return [Stage(name, "1 steps", parents=parents) for name, parents in specs]


@pytest.mark.parametrize("name", ["../x", "", "a/b", "a\\b", ".hidden", "-x", "a b", "a\n", "ä", "x" * 65, None, 3])
def test_a_stage_name_that_cannot_name_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="expected letters, digits"):
        Stage(name, "1 steps")


@pytest.mark.parametrize("name", ["a", "A-1", "stage_2.b", "0", "x" * 64])
def test_a_stage_name_may_hold_letters_digits_and_signs(name):
    assert Stage(name, "1 steps").name == name


def test_single_parts_and_lists_become_tuples():
    stage = Stage("a", "2 epochs", gates=[1], transforms=None, parents="b")
    assert (stage.until, stage.gates, stage.transforms, stage.parents) == (Duration(2, "epochs"), (1,), (), ("b",))
    assert stage == Stage("a", Duration(2, "epochs"), gates=(1,), parents=["b"])


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ("90 minutes", r"a limit in time is a gate: gates=\[Budget"),
        ("6 %", "expected steps, epochs or tokens"),
        (200, "stage 'a': until: .*write the unit"),
    ],
)
def test_a_length_of_a_stage_in_another_unit_is_refused(until, message):
    with pytest.raises(ValueError, match=message):
        Stage("a", until)


def test_args_must_be_a_mapping():
    with pytest.raises(ValueError, match="stage 'a': args: expected a mapping"):
        Stage("a", "1 steps", args=["lr"])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "expected at least one Stage"),
        ([("a", None), ("a", None)], "'a' and 'a' collide"),
        ([("a", None), ("A", None)], "'a' and 'A' collide"),
        ([("a", "x")], "no stage is called 'x'; there are a"),
        ([("a", "b"), ("b", "a")], "cycle: a <- b <- a"),
        ([("a", "a")], "cycle: a <- a"),
        ([("a", []), ("b", "c"), ("c", "a")], "stage 'b': its parent 'c' stands after it"),
        ([("a", None), ("b", None), ("c", ["a", "b"])], "starts from one model"),
    ],
)
def test_names_that_collide_and_impossible_parents_are_refused(specs, message):
    with pytest.raises(ValueError, match=message):
        Recipe(stages(*specs))


def test_a_recipe_holds_stages_alone():
    with pytest.raises(ValueError, match="expected Stage objects, got dict"):
        Recipe([{"name": "a"}])


def test_a_stage_starts_from_the_one_before_it_or_from_its_parent():
    assert parents_of(stages(("a", None), ("b", None), ("c", "a"), ("d", []))) == {
        "a": None,
        "b": "a",
        "c": "a",
        "d": None,
    }


def test_a_stage_is_found_by_its_name():
    assert Recipe(stages(("a", None), ("b", None)))["b"].name == "b"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": Duration}, r"stage 'a': loss: expected a part, got the class Duration; write Duration\(\)"),
        ({"schedule": Duration}, "stage 'a': schedule: expected a part, got the class"),
        ({"gates": [Duration]}, "stage 'a': gates: expected a part, got the class"),
        ({"transforms": Duration}, "stage 'a': transforms: expected a part, got the class"),
    ],
)
def test_a_class_in_the_place_of_a_part_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Stage("a", "1 steps", **given)


def test_one_stage_in_the_place_of_a_list_is_refused():
    with pytest.raises(ValueError, match=r"stages: expected a list, got one Stage; write stages=\[Stage\('a', ...\)\]"):
        Recipe(Stage("a", "1 steps"))
