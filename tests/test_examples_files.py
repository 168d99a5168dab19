"""The recipe in examples/ runs as its first lines say: plan, run, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from examples.stdlib_files import write
from hf_stages.cli import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    shutil.copy(EXAMPLES / "run.yaml", tmp_path)
    write(tmp_path / "stdlib", 40_000)
    monkeypatch.chdir(tmp_path)
    return "run.yaml"


def test_the_recipe_is_planned_drawn_run_and_done(recipe, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["plan", recipe, "--draw", "plan.png"]) == 0
    assert "~is an estimate" in capsys.readouterr().out.replace("~ ", "~")
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert main(["run", recipe]) == 0
    out = capsys.readouterr().out
    assert "out/03-back" in out
    losses = [json.loads((p / "stage.json").read_text())["metrics"] for p in sorted((tmp_path / "out").glob("0*"))]
    assert losses[0]["eval_language_loss"] < 3.5  # 5.6 before training
    assert losses[1]["eval_code_loss"] < losses[0]["eval_code_loss"]
    assert main(["run", recipe, "--resume"]) == 0
    assert main(["run", recipe]) == 2
    assert "already holds a run" in capsys.readouterr().err
