"""Ready recipes are plain stages: what they hold, how long they are, and that YAML says the same."""

from __future__ import annotations

import inspect

import pytest

from hf_stages import Stage
from hf_stages.core.curves import Linear
from hf_stages.losses import AttentionMSE, AttentionRelation, HiddenMSE, LogitKL, TaskLoss
from hf_stages.losses.objective.terms import terms_of
from hf_stages.planning.plan import Size, steps_of
from hf_stages.recipes import RecipeError, dump, loads, one_stage, three_stage, two_stage

ALL = [one_stage, two_stage, three_stage]
EVERYTHING = ["HiddenMSE", "AttentionMSE", "LogitKL"]


def terms(stage: Stage) -> list[str]:
    return [term.name for term in terms_of(stage.loss)]


def test_what_is_learned_when():
    found = {make: {s.name: terms(s) for s in make().stages} for make in ALL}
    assert found[one_stage] == {"all": EVERYTHING}
    assert found[two_stage] == {"features": EVERYTHING[:2], "logits": EVERYTHING[2:]}
    assert found[three_stage] == {"features": EVERYTHING[:2], "all": EVERYTHING, "logits": EVERYTHING[2:]}


@pytest.mark.parametrize("until", ["6 epochs", "7 epochs", "100 steps", "31 steps"])
def test_all_three_run_equally_long(until):
    size = Size(examples=37, batch=4, accumulation=3)
    steps = [sum(steps_of(stage, size) for stage in make(until).stages) for make in ALL]
    assert len(set(steps)) == 1


def test_a_duration_for_each_stage_is_taken_as_it_is():
    assert [str(s.until) for s in two_stage(["2 epochs", "30 steps"]).stages] == ["2 epochs", "30 steps"]


@pytest.mark.parametrize("until", ["2 epochs", "4.5 epochs", ["1 epochs"], "2 stages"])
def test_what_does_not_split_is_refused(until):
    with pytest.raises(ValueError, match="until: "):
        three_stage(until)


def test_parts_are_weighed_swapped_and_left_out():
    recipe = three_stage(hidden=0, attention=AttentionRelation(), logits="Linear(1, 0)", task=0.5)
    assert [terms(s) for s in recipe.stages][1] == ["AttentionRelation", "LogitKL", "TaskLoss"]
    assert recipe["logits"].loss == Linear(1, 0) * LogitKL() + 0.5 * TaskLoss()
    assert terms(recipe["features"]) == ["AttentionRelation"]
    with pytest.raises(ValueError, match="stage 'features': every part"):
        two_stage(hidden=0, attention=0)


def test_the_map_reaches_both_parts_and_attention_has_no_layer_0():
    loss = one_stage(layers={0: 0, 2: 6}).stages[0].loss
    assert [part.layers for part in loss.losses[:2]] == [{0: 0, 2: 6}, {2: 6}]
    assert two_stage(layers=(2, 4)).stages[0].loss == HiddenMSE(layers=[2, 4]) + AttentionMSE(layers=[2, 4])


def test_kept_layers_learn_from_the_ones_they_were():
    pytest.importorskip("hf_stages.transforms.reduce_layers")
    first, *rest = three_stage(reduce=[2, 4, -1]).stages
    assert [list(t.keep) for t in first.transforms] == [[2, 4, -1]]
    assert not any(stage.transforms for stage in rest)
    assert first.loss == HiddenMSE(layers={0: 0, 1: 2, 2: 4, 3: -1}) + AttentionMSE(layers={1: 2, 2: 4, 3: -1})


def test_a_learning_rate_for_each_stage():
    assert [s.args for s in two_stage(learning_rate=[2.5e-5, 1e-5]).stages] == [
        {"learning_rate": 2.5e-5},
        {"learning_rate": 1e-5},
    ]
    assert [s.args for s in two_stage(learning_rate=1e-5).stages] == [{"learning_rate": 1e-5}] * 2
    with pytest.raises(ValueError, match="learning_rate: expected one, or one for each of 3 stages, got 2"):
        three_stage(learning_rate=[1e-5, 1e-4])


@pytest.mark.parametrize("make", ALL)
def test_they_are_the_same_from_yaml_and_read_back_equal(make):
    lines = "until: 7 epochs, hidden: 0.5, layers: [2, 4], task: 'Linear(1, 0)', logits: {use: LogitKL, temperature: 2}"
    found = loads(f"stages: {{use: {make.__name__}, attention: AttentionRelation, {lines}}}\n")
    own = make(
        "7 epochs",
        hidden=0.5,
        attention=AttentionRelation(),
        layers=[2, 4],
        task=Linear(1, 0),
        logits=LogitKL(temperature=2),
    )
    assert found == own == loads(dump(own))


def test_all_take_the_same_arguments():
    assert len({str(inspect.signature(make)) for make in ALL}) == 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("{use: tree_stage}", "did you mean 'three_stage'"),
        ("{use: two_stage, untl: 3 epochs}", r"stages.untl: .*did you mean 'until'"),
        ("{use: two_stage, until: 1 epochs}", "stages.until: '1 epochs' does not split into 2"),
        ("{use: two_stage, hidden: {use: HidenMSE}}", "stages.hidden: .*did you mean 'HiddenMSE'"),
        ("{use: two_stage, hidden: linaer}", "stages.hidden: expected a weight"),
        ("{use: two_stage, layers: unform}", "stages.layers: .*expected uniform"),
        ("{use: 'os:getcwd'}", "trust_remote_code"),
        ("{until: 3 epochs}", "expected a list of stages"),
    ],
)
def test_yaml_says_where_it_is_wrong(stages, message):
    with pytest.raises(RecipeError, match=message):
        loads(f"stages: {stages}\n")
