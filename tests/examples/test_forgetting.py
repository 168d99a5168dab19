"""The example of the gate shows what it says."""

from __future__ import annotations

import json

import pytest

import forgetting_gate
from hf_stages.reports.run_folder import read_run

pytestmark = pytest.mark.usefixtures("quick_gc")


def test_the_gate_holds_language_within_the_budget(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forgetting_gate, "BYTES", {"train": 30_000, "eval": 3_000})
    rises = forgetting_gate.main(tmp_path / "out", 24, 0, "3%")
    assert rises["free"] > 0.03
    assert rises["rollback"] <= 0.03
    assert rises["replay"] < rises["free"]
    assert rises["cut_lr"] < rises["free"]
    assert "language rose" in capsys.readouterr().out
    stage = json.loads((tmp_path / "out" / "rollback" / "02-code" / "stage.json").read_text())
    assert stage["domains"]["code"]["bits_per_byte"] < stage["domains_start"]["code"]["bits_per_byte"]
    assert any(entry["kind"] == "rollback" for entry in read_run(tmp_path / "out" / "rollback").ledger)
