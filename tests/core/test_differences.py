"""Two recipes compared: what changed, in a line each."""

from hf_stages import Recipe, Stage
from hf_stages.core.differences import diff
from hf_stages.gates import Plateau
from hf_stages.losses import TaskLoss
from hf_stages.recipes import (
    to_dict,
)
from hf_stages.schedules import Rewarm


def test_diff_of_stages():
    old = to_dict(Stage("code", "9 steps", schedule=Rewarm(to=1e-5), gates=[Plateau(patience=2)]))
    new = to_dict(Stage("code", "9 steps", schedule=Rewarm(to=5e-6), loss=TaskLoss()))
    assert diff(old, old) == []
    assert diff(old, new) == [
        "stages.code.schedule.to: 1e-05 -> 5e-06",
        "stages.code.gates[0].use: Plateau -> (left out)",
        "stages.code.gates[0].patience: 2 -> (left out)",
        "stages.code.loss.use: (left out) -> TaskLoss",
    ]


def test_diff_of_recipes_goes_by_stage_names():
    a, b = Stage("a", "1 steps"), Stage("b", "1 steps")
    assert diff(to_dict(Recipe([a, b])), to_dict(Recipe([Stage("b", "2 steps")]))) == [
        "stages.a.name: a -> (left out)",
        "stages.a.until: 1 steps -> (left out)",
        "stages.b.until: 1 steps -> 2 steps",
    ]
