"""What every detector does with what it finds: one alert for an incident, or the next action of its ladder."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hf_stages.core.ledger import Entry
from hf_stages.gates import CutRate, Detector, Finding, History, Rollback


@dataclass(frozen=True)
class High(Detector):
    """Finds a loss above 5."""

    def find(self, history):
        values = [value for _, value in history.series("loss")]
        return Finding("high", {"loss": values[-1]}, "less") if values and values[-1] > 5 else None


def _run(gate: Detector, losses: list[float], *, every: int = 10, first_step: int = 0) -> list[Entry]:
    """Ask a gate after each log, as a stage does, with the ledger that its own decisions make."""
    entries: list[Entry] = []
    logs = [{"step": first_step + every * (n + 1), "loss": loss} for n, loss in enumerate(losses)]
    for count, log in enumerate(logs, start=1):
        step = log["step"]
        history = History(step - first_step, logs=logs[:count], entries=tuple(entries), first_step=first_step)
        if (decision := gate(history)) is not None:
            entries.append(Entry(step, "a", decision.action, decision.reason, type(gate).__name__, decision.value))
    return entries


def _steps(entries: list[Entry], kind: str = "alert") -> list[int]:
    return [entry.step for entry in entries if entry.kind == kind]


def test_a_finding_says_what_the_numbers_and_what_to_try():
    assert Finding("high", {"loss": 7.125, "best": 2.0}, "less").text == "high (loss 7.125, best 2); to try: less"


@pytest.mark.parametrize("first_step", [0, 1000])
def test_an_incident_is_told_once_however_long_it_lasts(first_step):
    entries = _run(High(), [1.0] + [9.0] * 40 + [1.0], first_step=first_step)
    assert _steps(entries) == [first_step + 20]


def test_a_short_pause_belongs_to_the_incident_and_a_long_one_ends_it():
    pause = [9.0] + [1.0] * 4 + [9.0]
    assert _steps(_run(High(), pause)) == [10]
    assert _steps(_run(High(), [9.0] + [1.0] * 6 + [9.0])) == [10, 80]


def test_logs_that_are_rarer_than_the_cooldown_still_tell_once():
    assert _steps(_run(High(), [9.0] * 5, every=100)) == [100]
    assert _steps(_run(High(), [9.0, 1.0, 9.0], every=100)) == [100, 300]


def test_with_actions_each_new_log_of_trouble_climbs():
    gate = High(then=[CutRate(0.5), Rollback(20, attempts=1)])
    kinds = [entry.kind for entry in _run(gate, [1.0, 9.0, 9.0, 9.0, 1.0])]
    assert kinds == ["cut_lr", "rollback", "stop"]


def test_two_logs_of_one_step_count_as_one():
    gate = High(then=[CutRate(), Rollback(20)])
    logs = [{"step": 10, "loss": 9.0}, {"step": 10, "eval_loss": 1.0}]
    acted = (Entry(10, "a", "cut_lr", "high", "High", 0.5),)
    assert gate(History(10, logs=logs, entries=acted)) is None


def test_what_was_logged_before_a_rollback_is_no_evidence():
    logs = [{"step": 10, "loss": 9.0}, {"step": 20, "other": 1.0}]
    assert High()(History(20, logs=logs)) is not None
    assert High()(History(20, logs=logs, entries=(Entry(15, "a", "rollback", "why", "OnSpike", 0.5),))) is None


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("CutRate", "High: then: expected actions such as CutRate\\(0.5\\), got 'CutRate'"),
        ([CutRate], "High: then: expected an action such as CutRate\\(0.5\\), got the class CutRate"),
        ([0.5], "High: then: expected an action such as CutRate\\(0.5\\), got 0.5"),
    ],
)
def test_what_is_no_action_is_refused(then, message):
    with pytest.raises(ValueError, match=message):
        High(then=then)


def test_a_cooldown_of_nothing_is_refused():
    with pytest.raises(ValueError, match="High: cooldown: expected at least 1 update, got 0"):
        High(cooldown=0)


def test_it_keeps_states_only_where_it_may_go_back():
    assert not High().keeps
    assert not High(then=CutRate()).keeps
    assert High(then=Rollback()).keeps
