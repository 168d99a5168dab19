"""Gates have rows written down: OnSpike those of each update that it skips, detectors those of the newest, if asked."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from hf_stages import Stage
from hf_stages.data import Mixture
from hf_stages.gates import OnSpike
from hf_stages.gates.base import Decision, Gate
from hf_stages.gates.detectors.base import Detector, Finding
from hf_stages.reports.incidents import read_incidents
from hf_stages.training.incidents.replay import replay_incident
from tests.support import tiny
from tests.support.compared_rows import MIXED, trainer
from tests.support.poisoned import LEARNS, NanOn, check_crawl_is_named, late_crawl, poisoned_data, with_odd_row
from tests.support.runs import staged


def late_run(out, gate, steps=50, **changes):
    data, part = late_crawl()
    args = {**LEARNS, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, **changes}
    found = staged(
        out, [Stage("one", f"{steps} steps", train_dataset=part, gates=[gate])], args=args, train_dataset=data
    )
    found.train()
    return found


def entries(out):
    return json.loads((out / "run.json").read_text())["ledger"]


def test_on_spike_names_the_rows_of_updates_that_it_skips(tmp_path):
    late_run(tmp_path, OnSpike(skip=50, window=32))
    incidents = read_incidents(tmp_path)
    skipped = [entry["step"] for entry in entries(tmp_path) if entry["kind"] == "skip"]
    assert [incident.step for incident in incidents] == skipped[:10]
    assert len(incidents) >= 5
    assert all(incident.before and incident.by == "OnSpike" for incident in incidents)
    check_crawl_is_named(incidents)
    replay = replay_incident(tmp_path, incidents[0])
    assert replay.loss > 5 * replay.loss_without
    assert replay.grad_norm > 5 * replay.grad_norm_without


def test_on_spike_without_rows_writes_none(tmp_path):
    data = with_odd_row(poisoned_data(bad=0.0)[0], "books", 11)
    gate = OnSpike(rows=False)
    part = Mixture({"web": 0.6, "books": 0.4})
    stages = [Stage("one", "8 steps", train_dataset=part, loss=NanOn(), gates=[gate])]
    args = {**LEARNS, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    staged(tmp_path, stages, args=args, train_dataset=data).train()
    assert [entry for entry in entries(tmp_path) if entry["kind"] == "skip"]
    assert not read_incidents(tmp_path)


@dataclass(frozen=True)
class Fourth(Detector):
    """Finds something at the fourth update."""

    def find(self, history):
        return Finding("it is the fourth") if history.step == 4 else None


@pytest.mark.parametrize("rows", [False, True])
def test_a_detector_of_the_log_has_rows_written_down_where_it_is_asked_to(tmp_path, rows):
    stages = [Stage("one", "6 steps", gates=[Fourth(rows=rows)])]
    staged(tmp_path, stages, train_dataset=tiny.lm_data()).train()
    incidents = read_incidents(tmp_path)
    assert [(one.step, one.by, one.before, len(one.rows)) for one in incidents] == [(4, "Fourth", False, 4)] * rows
    kinds = [entry["kind"] for entry in entries(tmp_path) if entry["step"] == 4]
    assert kinds == ["incident"] * rows + ["alert"]


@dataclass(frozen=True)
class BackOnce(Gate):
    """Goes back to the stage's start after the fifth update, and has its rows come again."""

    on = "step"
    keeps = True

    def __call__(self, history):
        if history.step != 5:
            return None
        return Decision("rollback", "a test", value=1.0, steps_back=2, skip_data=False)


@pytest.mark.parametrize("name", ["ramp", "tokens"])
def test_rows_are_found_where_they_come_again_behind_a_rollback(tmp_path, name):
    found = trainer(tmp_path, MIXED[name], gates=[BackOnce()])
    found.train()
    assert found.seen == 13
