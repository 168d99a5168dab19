"""``versus`` and ``probe-lr`` ask the schedule itself for other rates: a new one needs no change there."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from hf_stages.commands import cli
from hf_stages.commands.arm_sources import Sources
from hf_stages.commands.arms import build_arms
from hf_stages.commands.lr_trials import plan_trials, trial_stage
from hf_stages.planning.measure_data import plan_for
from hf_stages.recipes import files as recipes
from hf_stages.schedules import Schedule, Span
from hf_stages.training.from_recipe import prepare
from tests.support.versus_recipes import write

RESTARTS = {"use": "Restarts", "cycles": 2, "peak": 5e-3, "warmup": [0.5, 0], "peaks": "Linear(1, 0.5)"}


@dataclass(frozen=True)
class Triangle(Schedule):
    """A schedule of someone's own: up to ``top`` in the middle of the stage, and down again."""

    top: float = 1e-3

    def span(self, defaults, *, total, parent_lr):
        return Span(self.top, 0, total, lambda s: 1 - abs(2 * s / total - 1))

    def with_peak(self, rate):
        return replace(self, top=rate)


OWN = {"use": f"{__name__}:Triangle", "top": 5e-3}
each = pytest.mark.parametrize("schedule", [RESTARTS, OWN], ids=["restarts", "own"])


def recipe_with(folder, schedule):
    """Both stages follow the schedule, and write what is written in ``versus_recipes`` besides."""
    stages = [
        {"name": "language", "until": "6 steps", "train_dataset": "language", "schedule": schedule},
        {"name": "code", "until": "4 steps", "train_dataset": "code", "schedule": schedule},
    ]
    return write(folder, stages=stages)


@pytest.fixture
def ready(tmp_path, request):
    path = recipe_with(tmp_path, request.getfixturevalue("schedule"))
    return prepare(recipes.load(path, trust_remote_code=True), trust_remote_code=True)


@each
def test_the_joint_arm_gets_the_staged_runs_sum_of_rates(ready, schedule):
    staged, joint = build_arms(ready.recipe, ready.args, ["joint"])
    assert joint.lr_sum == pytest.approx(staged.lr_sum, rel=1e-6)
    assert type(joint.recipe.stages[0].schedule) is type(staged.recipe.stages[0].schedule)
    peak = build_arms(ready.recipe, ready.args, ["joint"], lr=7e-3)[1]
    assert plan_for(peak.recipe, ready.args).spans["joint"].peak == 7e-3


@each
def test_a_trial_has_the_schedules_shape_at_another_rate(ready, schedule):
    plan = plan_for(ready.recipe, ready.args)
    probe = plan_trials(ready, "code", steps=2, rates=[5e-3, 1e-3])
    assert probe.declared == 5e-3
    tried = trial_stage(probe, plan, Sources(ready.recipe, plan), 1e-3, 0.0)
    assert type(tried.schedule) is type(ready.recipe.stages[1].schedule)
    trial = plan_for(replace(ready.recipe, stages=[ready.recipe.stages[0], tried]), ready.args)
    assert trial.peak_lr("code") == pytest.approx(1e-3)
    # Four updates at the declared rate are the stage itself.
    whole = trial_stage(probe.whole_stage(5e-3, 0.0), plan, Sources(ready.recipe, plan), 5e-3, 0.0)
    assert whole.schedule == ready.recipe.stages[1].schedule


@each
def test_both_commands_run_with_it(tmp_path, capsys, schedule):
    recipe = recipe_with(tmp_path, schedule)
    argv = [recipe, "--trust-remote-code", "--json"]
    assert cli.main(["probe-lr", *argv, "--stage", "code", "--rates", "1e-3", "--steps", "2"]) == 0
    assert [trial["finite"] for trial in json.loads(capsys.readouterr().out)["trials"]] == [True]
    assert cli.main(["versus", *argv, "--seeds", "0", "--arms", "joint"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: arm["runs"][0]["updates"] for name, arm in found["arms"].items()} == {"staged": 10, "joint": 10}


def test_a_schedule_without_a_peak_is_told_what_it_lacks(tmp_path):
    @dataclass(frozen=True)
    class Flat(Schedule):
        def span(self, defaults, *, total, parent_lr):
            return Span(1e-3, 0, total, lambda s: 1.0)

    with pytest.raises(ValueError, match=r"Flat: expected a field `peak` or a method with_peak\(rate\)"):
        Flat().with_peak(1e-4)
