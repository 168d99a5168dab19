from __future__ import annotations

import pytest

from hf_stages import Stage
from hf_stages.core.curves import Linear
from hf_stages.gates import Below
from hf_stages.losses import TaskLoss
from hf_stages.planning.model_shapes import shape_of
from hf_stages.reports.tables.plan_table import flops_of, peak_lr, plan_dict, plan_table
from hf_stages.schedules import Fresh
from hf_stages.transforms.freeze import Freeze
from tests.support.plans import chain, plan_of, skeleton

LONG = "a-name-as-long-as-any-stage-may-be-called-and-then-some-more-abc"


def test_says_what_every_stage_is_made_of():
    stages = [
        Stage("first", "2 epochs", gates=[Below("eval_loss", 3.2)]),
        Stage("second", "1k tokens", loss=TaskLoss() + 0.5 * TaskLoss(), transforms=[Freeze("embed_tokens")]),
        Stage("side", "30 steps", parents="first", teacher="stage:second", schedule=Fresh(peak=2e-4)),
    ]
    plan = plan_of(*stages)
    table = plan_table(
        plan, model=skeleton(), data={"first": "stories"}, seconds=dict.fromkeys(["first", "second", "side"], 90)
    )
    for text in (
        "Below('eval_loss', 3.2)",
        "stories, 100 examples, 2 per update",
        "TaskLoss() + 0.5 * TaskLoss()",
        "Freeze(['embed_tokens'])",
        "from     first",
        "teacher  stage second",
        "Fresh(peak=0.0002)",
        "0 -> 2e-4 -> 0",
        "~50",
        "1.5 min",
        "4.5 min",
        "estimate",
    ):
        assert text in table, text
    assert table.count("from     ") == 1


@pytest.mark.parametrize("name", ["a", LONG])
def test_fits_its_width(name):
    part = TaskLoss()
    for _ in range(12):
        part = part + Linear(1, 0) * TaskLoss()
    stages = [Stage(name, "1e9 steps", loss=part, transforms=[Freeze([f"layers.{i}.mlp" for i in range(2)])])]
    table = plan_table(plan_of(*stages, tokens=4096), model=skeleton(), data={name: "d" * 150}, seconds={name: 3e7})
    assert max(map(len, table.splitlines())) <= 100
    assert name in table


def test_leaves_out_what_is_not_known():
    table = plan_table(plan_of(Stage("a", "5 steps"), tokens=None, examples=None))
    head = table.splitlines()[0].split()
    assert head == ["stage", "steps", "LR"]
    assert "a stream" in table


def test_flops_count_the_backward_pass_through_frozen_weights():
    frozen = [Freeze("*", but="lm_head")]
    plan = plan_of(Stage("all", "5 steps"), Stage("head", "5 steps", transforms=frozen, teacher="stage:all"))
    shapes = {"all": shape_of(skeleton()), "head": shape_of(Freeze("*", but="lm_head")(skeleton()))}
    tokens, weights, head = 5 * 2 * 10, shapes["all"].non_embedding, shapes["head"].trainable
    assert flops_of(plan["all"], shapes) == 6 * weights * tokens
    assert flops_of(plan["head"], shapes) == (4 * weights + 2 * head + 2 * weights) * tokens


def test_the_peak_is_found_inside_a_stage():
    plan = plan_of(Stage("a", "100 steps"))
    assert (plan["a"].lr_in, peak_lr(plan, plan["a"]), plan["a"].lr_out) == (0.0, 1e-3, 0.0)


def test_the_same_numbers_for_programs():
    plan = chain(5)
    found = plan_dict(plan, {"s0": shape_of(skeleton())}, {"s0": 2.0})
    assert found["total_steps"] == plan.total_steps == sum(stage["steps"] for stage in found["stages"])
    assert found["stages"][0]["params"] == shape_of(skeleton()).params
    assert found["stages"][3]["parent"] == "s1"
    assert found["stages"][1]["params"] is None
