"""Logs of small runs that were trained and were healthy: language models of four blocks, plain, ternary and of several
stages with a curriculum that turns to other data at once. No detector says a word about them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_stages.core.registry import Where, find_class, list_parts
from hf_stages.gates import EndStage, TokenCollapse
from tests.gates.detectors.histories import decisions

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text(encoding="utf-8"))
DETECTORS = [
    name
    for module, name in list_parts("gates")
    if ".detectors." in module and find_class(name, ["gates"], Where()).on == "log"
]


def _logs(columns: dict[str, list]) -> list[dict]:
    rows = zip(*columns.values(), strict=True)
    return [{key: v for key, v in zip(columns, row, strict=True) if v is not None} for row in rows]


@pytest.mark.parametrize("name", RECORDED)
def test_no_detector_finds_fault_with_a_run_that_was_healthy(name):
    logs = _logs(RECORDED[name])
    first_step = logs[0]["step"] - 5
    for detector in DETECTORS:
        gate = find_class(detector, ["gates"], Where())(then=EndStage())
        assert not decisions(gate, logs, first_step), (name, detector)


def test_new_language_models_come_near_a_collapse_for_a_while():
    """Why ``TokenCollapse`` waits: with 20 updates it would alarm in every run that begins with a new model."""
    begun = [_logs(columns) for name, columns in RECORDED.items() if "stage 1" in name]
    assert all(max(log["token_correlation"] for log in logs) > 0.98 for logs in begun)
    assert all(decisions(TokenCollapse(warn_for=20), logs) for logs in begun)
    assert not any(decisions(TokenCollapse(), logs) for logs in begun)
