"""The ladder: which action is taken when trouble goes on, stops and comes again."""

from __future__ import annotations

from hf_stages.gates import CutRate, EndStage, Rollback
from hf_stages.gates.detectors.rungs import Ladder

MILD, BACK, END = CutRate(), Rollback(attempts=2), EndStage()


def _climb(ladder: Ladder, steps: list[int]) -> list[str]:
    return [type(ladder.next(steps[:n], step)).__name__ for n, step in enumerate(steps)]


def test_trouble_within_the_cooldown_takes_the_next_rung_and_the_last_one_stays():
    assert _climb(Ladder((MILD, END), 50), [10, 60, 110, 160]) == ["CutRate", "EndStage", "EndStage", "EndStage"]


def test_after_the_cooldown_it_starts_again_below():
    assert _climb(Ladder((MILD, END), 50), [10, 60, 111]) == ["CutRate", "EndStage", "CutRate"]


def test_a_rung_whose_attempts_are_used_up_is_passed_over():
    assert _climb(Ladder((BACK, END), 50), [10, 100, 200, 300]) == ["Rollback", "Rollback", "EndStage", "EndStage"]


def test_behind_the_last_attempt_of_the_last_rung_the_run_stops():
    assert _climb(Ladder((MILD, BACK), 50), [10, 20, 30, 40]) == ["CutRate", "Rollback", "Rollback", "StopRun"]


def test_attempts_are_counted_over_the_whole_stage_and_for_each_rung():
    twice = Ladder((Rollback(10, attempts=1), Rollback(99, attempts=1)), 5)
    assert [twice.next([0, 100][:n], step).decide().steps_back for n, step in enumerate([0, 100])] == [10, 99]
    assert type(twice.next([0, 100], 200)).__name__ == "StopRun"
