from __future__ import annotations

import json

import pytest

from hf_stages.core.sealed_folders import seal_folder
from hf_stages.reports.tables.result_table import result_table
from tests.reports.folders import stage as stage_in


def test_shows_what_is_done_and_what_is_not(tmp_path):
    folder = tmp_path / "01-warm"
    folder.mkdir()
    stage = {
        "schema": 1, "index": 1, "steps": 20, "tokens": 1500, "seconds": 90, "ended_by": "Below",
        "metrics": {"eval_loss": 1.5, "eval_accuracy": 0.75, "eval_runtime": 1.0, "epoch": 2.0, "train_loss": 2.0},
        "boundary": {"before": {"loss": 9.0}, "start": {"loss": 3.0}, "shock": {}},
    }  # fmt: skip
    (folder / "stage.json").write_text(json.dumps(stage))
    seal_folder(folder)
    stages = {"main": {"status": "waiting", "folder": "02-main"}, "warm": {"status": "done", "folder": "01-warm"}}
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "status": "interrupted", "stages": stages}))
    lines = result_table(tmp_path).splitlines()
    assert lines[2].split() == [
        "1", "warm", "20", "1,500", "1.5", "min", "Below", "accuracy", "0.75,", "loss", "3", "->", "1.5", str(folder)
    ]  # fmt: skip
    assert lines[3].split() == ["2", "main", "-", "-", "-", "waiting"]
    assert lines[4] == "The run is interrupted."


def checkpoint(out, step, *, sealed=True, **state):
    folder = out / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "stage_state.json").write_text(json.dumps({"schema": 1, "tokens": 800.0, "seconds": 75.0, **state}))
    if sealed:
        seal_folder(folder)
    return folder


def interrupted(out, *, status="interrupted", main="running"):
    stage_in(out, 1, "warm", {})
    stages = {
        "main": {"status": main, "folder": "02-main", "steps": 40},
        "warm": {"status": "done", "folder": "01-warm", "steps": 10},
        "last": {"status": "waiting", "folder": "03-last", "steps": 7},
    }
    (out / "run.json").write_text(json.dumps({"schema": 1, "status": status, "stages": stages}))


@pytest.mark.parametrize(
    ("status", "main"), [("interrupted", "running"), ("stopped", "waiting"), ("running", "running")]
)
def test_a_stage_that_is_half_done_says_how_far(status, main, tmp_path):
    interrupted(tmp_path, status=status, main=main)
    checkpoint(tmp_path, 10, stage="warm", steps=10)
    checkpoint(tmp_path, 22, stage="main", steps=12)
    kept = checkpoint(tmp_path, 26, stage="main", steps=16)
    checkpoint(tmp_path, 30, stage="main", steps=20, sealed=False)  # it was being written
    checkpoint(tmp_path, 34, stage="main", steps=24, resumable=False)  # weights alone
    lines = result_table(tmp_path).splitlines()
    assert lines[3].split() == ["2", "main", "16", "of", "40", "800", "1.2", "min", "half", "done", str(kept)]
    assert lines[4].split() == ["3", "last", "-", "-", "-", "waiting"]


def test_a_stage_that_was_cut_before_its_first_checkpoint(tmp_path):
    interrupted(tmp_path)
    assert result_table(tmp_path).splitlines()[3].split()[:8] == ["2", "main", "0", "of", "40", "-", "-", "cut,"]


@pytest.mark.parametrize(("step", "words"), [(20, "Forgetting, went back"), (17, "Forgetting ")])
def test_a_stage_that_went_back_at_its_end_says_so(step, words, tmp_path):
    ledger = [{"step": step, "stage": "code", "kind": "rollback", "reason": "", "by": "Forgetting"}]
    stage_in(tmp_path, 2, "code", {}, ended_by="Forgetting", ledger=ledger)
    line = next(line for line in result_table(tmp_path).splitlines() if "code" in line)
    assert words in line
    assert ("went back" in line) == ("went back" in words)
