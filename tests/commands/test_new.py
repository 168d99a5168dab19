"""``hf-stages new`` writes a run that works as its first lines say: plan, run, resume."""

from __future__ import annotations

import json

import pytest

from hf_stages.commands.cli import main
from hf_stages.commands.new import write_first_run
from hf_stages.recipes import load


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_first_run(tmp_path / "first", 40_000)
    return "first/run.yaml"


@pytest.mark.slow  # the walk of the README does the same in every run
def test_the_recipe_is_planned_drawn_run_and_done(recipe, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["plan", recipe, "--draw", "plan.png"]) == 0
    assert "~is an estimate" in capsys.readouterr().out.replace("~ ", "~")
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert main(["run", recipe]) == 0
    out = capsys.readouterr().out
    assert "first/out/03-back" in out
    folders = sorted((tmp_path / "first" / "out").glob("0*"))
    losses = [json.loads((folder / "stage.json").read_text())["metrics"] for folder in folders]
    assert losses[0]["eval_language_loss"] < 3.5  # 5.6 before training
    assert losses[1]["eval_code_loss"] < losses[0]["eval_code_loss"]
    assert main(["run", recipe, "--resume"]) == 0
    assert main(["run", recipe]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_the_command_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "first"]) == 0
    assert "Next: hf-stages plan first/run.yaml" in capsys.readouterr().out
    assert main(["new", "first"]) == 2
    assert "first: expected a folder that is not there yet or is empty" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["new", "file"]) == 2


def test_a_name_that_yaml_would_read_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'a: "b" #c'
    write_first_run(folder, 4_000)
    assert load(folder / "run.yaml").args["output_dir"] == f"{folder}/out"
