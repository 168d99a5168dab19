"""The gate in a recipe: from the file to the report, and left out of trials."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hf_stages import recipes
from hf_stages.commands import cli
from hf_stages.commands.arm_sources import Sources
from hf_stages.commands.arms import build_arms
from hf_stages.commands.lr_trials import plan_trials, trial_stage
from hf_stages.planning.measure_data import plan_for
from hf_stages.training.from_recipe import prepare
from tests.support.versus_recipes import write


@pytest.fixture
def recipe(tmp_path):
    """A recipe's file, whose second stage has the gate; every evaluation is outside a budget of 0 %."""
    gate = {"use": "Forgetting", "budget": 0.0, "action": "replay", "share": 0.25}
    path = Path(write(tmp_path))
    content = json.loads(path.read_text())
    content["args"] |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    content["stages"][0]["until"] = "2 epochs"
    content["stages"][1] |= {"until": "1 epochs", "gates": [gate], "schedule": {"use": "Fresh", "peak": 0.1}}
    path.write_text(json.dumps(content))
    return path


def test_from_a_file_to_a_report(recipe, tmp_path, capsys):
    assert cli.main(["plan", str(recipe), "--batches"]) == 0
    planned = capsys.readouterr().out
    assert "language where the gate replays it" in planned
    assert cli.main(["run", str(recipe)]) == 0
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path / "out"), "--save", str(tmp_path / "report.html")]) == 0
    assert "come from earlier data from here on" in capsys.readouterr().out
    assert "replay: language: loss" in (tmp_path / "report.html").read_text()
    stage = json.loads((tmp_path / "out" / "02-code" / "stage.json").read_text())
    assert stage["steps"] == 6  # an epoch is one of its own data
    sources = stage["data"]["sources"]
    assert sources["language"]["examples"] > 0
    assert sources["language"]["share"] == pytest.approx(sources["language"]["declared"], abs=0.05)


def test_trials_and_arms_leave_the_gate_out_and_keep_the_data(recipe):
    """A trial at the declared rate is the stage, so it draws in the stage's own order; arms draw what they say."""
    ready = prepare(recipes.load(recipe))
    plan = plan_for(ready.recipe, ready.args)
    probe = plan_trials(ready, "code", replays=[0.0, 0.25])
    sources = Sources(ready.recipe, plan)
    alone, replayed = (trial_stage(probe, plan, sources, 1e-3, share) for share in (0.0, 0.25))
    assert (alone.gates, replayed.gates) == ((), ())
    assert (alone.train_dataset.source_names(), replayed.train_dataset.source_names()) == (
        ("code",),
        ("code", "language"),
    )
    own = plan_for(replace(ready.recipe, stages=[ready.recipe["language"], alone]), ready.args)["code"].blend
    assert [list(column) for column in own.at(range(24))] == [list(c) for c in plan["code"].blend.at(range(24))]
    arms = {arm.name: arm for arm in build_arms(ready.recipe, ready.args, ["joint", "replay"])}
    assert all(not stage.gates for arm in arms.values() for stage in arm.recipe.stages)
    assert arms["staged"].drawn[1] == {"code": 24}
    assert arms["joint"].examples == arms["staged"].examples
