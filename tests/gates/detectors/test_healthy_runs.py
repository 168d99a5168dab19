"""Fifty healthy histories: warmups, correlations that recover, rate jumps, curricula, resumed runs. Nothing is stopped.

The detectors are asked with an action, so whatever would have ended one of these runs is seen.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_stages.core.registry import Where, find_class, list_parts
from hf_stages.gates import EndStage
from hf_stages.gates.spike_window import find_spikes
from tests.gates.detectors.histories import Story, decisions, healthy

STORIES = [(story, story.logs()) for story in healthy()]
DETECTORS = [
    name
    for module, name in list_parts("gates")
    if ".detectors." in module and find_class(name, ["gates"], Where()).on == "log"
]


def test_there_are_fifty() -> None:
    assert len(STORIES) == 50
    assert {"TokenCollapse", "Divergence", "NonFinite", "DeadRecurrence", "Overthinking"} <= set(DETECTORS)


@pytest.mark.parametrize("name", DETECTORS)
def test_no_healthy_run_is_stopped(name):
    gate = find_class(name, ["gates"], Where())(then=EndStage())
    for story, logs in STORIES:
        found = decisions(gate, logs, story.first_step)
        assert not [entry for entry in found if entry.kind != "alert"], (story, found)
        recovers = name == "TokenCollapse" and story.kind == "late correlation"
        assert not found or recovers, (story, found)


def test_a_correlation_that_takes_long_to_recover_is_told_once_at_most():
    gate = find_class("TokenCollapse", ["gates"], Where())(then=EndStage())
    for story, logs in STORIES:
        if story.kind == "late correlation":
            assert [entry.kind for entry in decisions(gate, logs)] in ([], ["alert"])


@pytest.mark.parametrize("name", DETECTORS)
def test_an_alert_is_the_same_wherever_the_run_was_cut(name):
    """A resumed run has the log and the ledger of its checkpoint, and nothing else to go by."""
    gate = find_class(name, ["gates"], Where())(then=EndStage())
    _, logs = STORIES[1]
    assert decisions(gate, logs) == decisions(replace(gate), [dict(log) for log in logs])


def test_noise_of_losses_holds_no_spike():
    for seed in range(1):
        for kind in ("plain", "late correlation", "rate jump"):
            story = Story(seed, kind)
            story.every = 1
            assert not find_spikes([story.loss(step) for step in range(1, 1001)]), (seed, kind)
