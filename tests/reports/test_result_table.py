from __future__ import annotations

import json

from hf_stages.checkpoint import seal
from hf_stages.reports.result_table import result_table


def test_shows_what_is_done_and_what_is_not(tmp_path):
    folder = tmp_path / "01-warm"
    folder.mkdir()
    stage = {
        "schema": 1, "index": 1, "steps": 20, "tokens": 1500, "seconds": 90, "ended_by": "Below",
        "metrics": {"eval_loss": 1.5, "eval_accuracy": 0.75, "eval_runtime": 1.0, "epoch": 2.0, "train_loss": 2.0},
        "boundary": {"before": {"loss": 9.0}, "start": {"loss": 3.0}, "shock": {}},
    }  # fmt: skip
    (folder / "stage.json").write_text(json.dumps(stage))
    seal(folder)
    stages = {"main": {"status": "waiting", "folder": "02-main"}, "warm": {"status": "done", "folder": "01-warm"}}
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "status": "interrupted", "stages": stages}))
    lines = result_table(tmp_path).splitlines()
    assert lines[2].split() == [
        "1", "warm", "20", "1,500", "1.5", "min", "Below", "accuracy", "0.75,", "loss", "3", "->", "1.5", str(folder)
    ]  # fmt: skip
    assert lines[3].split() == ["2", "main", "-", "-", "-", "waiting"]
    assert lines[4] == "The run is interrupted."
