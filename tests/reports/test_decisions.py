"""Decisions of gates in plain words, as reports and cards tell them."""

from __future__ import annotations

from hf_stages.reports.decisions import decisions


def _entry(step: int, kind: str, reason: str, by: str = "OnSpike", stage: str = "a") -> dict:
    return {"step": step, "stage": stage, "kind": kind, "reason": reason, "by": by}


LEDGER = [
    _entry(0, "begin", "begins", "plan"),
    _entry(3, "skip", "loss 9"),
    _entry(4, "skip", "loss 8"),
    _entry(5, "cut_lr", "more than 2 bad updates; the learning rate is multiplied by 0.5"),
    _entry(6, "skip", "loss 7"),
    _entry(7, "rollback", "loss 7; went back to the state after 2 updates"),
    _entry(8, "alert", "the loss is far above its best", "Divergence"),
    _entry(9, "end", "9 steps done", "until"),
    _entry(9, "end", "depth makes no difference; the stage ends here", "DeadRecurrence"),
    _entry(9, "notice", "mind the gap", "plan", "b"),
]


def test_each_decision_is_told_in_words_and_the_course_of_the_run_is_not():
    assert decisions(LEDGER) == [
        (3, "a", "2 updates skipped, up to step 4: loss 8 [OnSpike]"),
        (5, "a", "rate cut: more than 2 bad updates; the learning rate is multiplied by 0.5 [OnSpike]"),
        (6, "a", "update skipped: loss 7 [OnSpike]"),
        (7, "a", "went back: loss 7; went back to the state after 2 updates [OnSpike]"),
        (8, "a", "alert: the loss is far above its best [Divergence]"),
        (9, "a", "stage ended: depth makes no difference; the stage ends here [DeadRecurrence]"),
        (9, "b", "notice: mind the gap [plan]"),
    ]


def test_only_the_kinds_that_are_asked_for_are_told():
    assert [step for step, _, _ in decisions(LEDGER, ("rollback", "alert", "begin"))] == [7, 8]


def test_an_entry_of_an_old_ledger_has_no_author():
    old = {"step": 1, "stage": "a", "kind": "stop", "reason": "why"}
    assert decisions([old]) == [(1, "a", "run stopped: why")]
