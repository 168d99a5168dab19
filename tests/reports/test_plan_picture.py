from __future__ import annotations

import builtins
from dataclasses import replace

import pytest

from hf_stages import Stage
from hf_stages.core.curves import Linear
from hf_stages.data import Mixture
from hf_stages.data.drawing.blend import make_blend
from hf_stages.reports.pages.plan_picture import BOX, GAP, LANE, TALL, draw_plan, places_of
from tests.support.plans import chain, plan_of


def mix(draws):
    part = Mixture({"web": Linear(1, 0), "code": Linear(0, 1)}, {"web": [{}] * 5, "code": [{}] * 5})
    return make_blend(part, lambda name, where: None, "stage").bind(draws, 0)


@pytest.mark.parametrize("count", [1, 4, 9, 30])
def test_boxes_never_overlap(count):
    corners = [(column * (BOX + GAP), row * LANE) for column, row in places_of(chain(count)).values()]
    for i, (x, y) in enumerate(corners):
        assert all(abs(x - u) >= BOX or abs(y - v) >= TALL for u, v in corners[:i])


def test_a_branch_gets_a_lane_of_its_own_and_a_root_too():
    stages = [
        Stage("a", "5 steps"),
        Stage("b", "5 steps"),
        Stage("c", "5 steps", parents="a"),
        Stage("d", "5 steps", parents=[]),
    ]
    assert places_of(plan_of(*stages)) == {"a": (0, 0), "b": (1, 0), "c": (1, 1), "d": (0, 2)}


@pytest.mark.parametrize(("count", "suffix"), [(1, "png"), (4, "svg"), (9, "png")])
def test_draws(count, suffix, tmp_path):
    path = tmp_path / f"plan.{suffix}"
    draw_plan(chain(count), path, data={"s0": "stories"})
    assert path.stat().st_size > 10_000


def test_draws_mixtures(tmp_path):
    plan = plan_of(Stage("a", "5 steps"), Stage("b", "9 steps"))
    mixed = replace(plan.stages[0], blend=mix(40))
    draw_plan(replace(plan, stages=(mixed, plan.stages[1])), tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").exists()


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "hf_stages\[report\]"'):
        draw_plan(chain(1), tmp_path / "plan.png")
