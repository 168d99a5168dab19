"""What every stage of a recipe works with is found once, in one place."""

from __future__ import annotations

import pytest

from hf_stages import Recipe, Stage
from hf_stages.data import Mixture
from hf_stages.data.drawing.blend import Blend
from hf_stages.gates import Forgetting
from hf_stages.losses import HiddenMSE, TaskLoss
from hf_stages.planning.resolved import resolve
from hf_stages.schedules import Fresh, Resume

PROSE, CODE = [{"input_ids": [1, 2]}] * 4, [{"input_ids": [3]}] * 6
SOURCES = {"prose": PROSE, "code": CODE}


def stage(name: str, **options) -> Stage:
    return Stage(name, "1 steps", **options)


@pytest.mark.parametrize("key", ["data_collator", "compute_metrics", "teacher"])
def test_a_stage_has_its_own_or_the_recipes(key):
    recipe = Recipe([stage("a"), stage("b", **{key: "own"})], train_dataset=PROSE, **{key: "shared"})
    assert [getattr(one, key) for one in resolve(recipe)] == ["shared", "own"]


def test_what_nobody_says_has_a_default():
    first, second = resolve(Recipe([stage("a"), stage("b", loss=HiddenMSE(), schedule=Resume())], train_dataset=PROSE))
    assert (first.loss, first.schedule) == (TaskLoss(), Fresh())
    assert (second.loss, second.schedule) == (HiddenMSE(), Resume())


def test_names_stand_for_the_sources_themselves():
    recipe = Recipe([stage("a", train_dataset="code", eval_dataset={"x": "prose"})], sources=SOURCES)
    (resolved,) = resolve(recipe)
    assert resolved.dataset is CODE
    assert resolved.eval_dataset["x"] is PROSE
    assert resolved.stage is recipe.stages[0]  # a run records the name


def test_a_curriculum_is_opened_over_its_sources():
    (resolved,) = resolve(Recipe([stage("a", train_dataset=Mixture(["prose", "code"]))], sources=SOURCES))
    assert isinstance(resolved.dataset, Blend)
    assert resolved.mixes
    assert [source is one for source, one in zip(resolved.sources, (PROSE, CODE), strict=True)] == [True, True]


def test_the_lineage_is_a_stages_own_branch():
    stages = [stage("a"), stage("b"), stage("c", parents="a"), stage("d", parents=[])]
    resolved = resolve(Recipe(stages, train_dataset=PROSE))
    lines = {one.name: [before.name for before in one.lineage] for one in resolved}
    assert lines == {"a": ["a"], "b": ["a", "b"], "c": ["a", "c"], "d": ["d"]}


def test_what_a_gate_may_replay_stands_beside_the_stages_own_data():
    gate = Forgetting(of=["prose"], action="replay")
    recipe = Recipe(
        [stage("prose", train_dataset="prose"), stage("code", train_dataset="code", gates=[gate])], sources=SOURCES
    )
    resolved = resolve(recipe)["code"]
    assert resolved.own_dataset is CODE
    assert resolved.dataset.names == ("code", "prose")
    assert resolved.dataset.replay_only == ("prose",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_dataset": "cod"}, "^stage 'a': train_dataset: no source is called 'cod'; did you mean 'code'"),
        ({"train_dataset": "poems"}, "^stage 'a': train_dataset: no source is called 'poems'; there are prose, code"),
        ({"train_dataset": Mixture(["nope"])}, "^stage 'a': train_dataset: 'nope': no source is called 'nope'"),
        ({"train_dataset": "code", "eval_dataset": "nope"}, "^stage 'a': eval_dataset: no source is called 'nope'"),
        ({"train_dataset": "code", "eval_dataset": {"x": "nope"}}, r"^stage 'a': eval_dataset\['x'\]: no source is"),
        ({}, "^stage 'a': train_dataset: expected a dataset, got none"),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_refused_with_its_place(options, message):
    with pytest.raises(ValueError, match=message):
        resolve(Recipe([stage("a", **options)], sources=SOURCES))


def test_another_recipes_parts_meet_the_same_datasets():
    before = resolve(Recipe([stage("a", teacher="some/model")], train_dataset=Mixture(tuple(SOURCES), SOURCES)))
    after = before.with_recipe(Recipe([stage("a", teacher="loaded")], train_dataset=before.recipe.train_dataset))
    assert after["a"].teacher == "loaded"
    assert after["a"].dataset is before["a"].dataset
