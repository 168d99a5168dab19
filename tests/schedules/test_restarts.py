"""Cosine with warm restarts: the shape by hand, in a plan, and cut and resumed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_stages import Fresh, Restarts, Resume, Stage
from hf_stages.core.curves import Linear, Step
from hf_stages.core.parts import part_from_dict, part_to_dict
from hf_stages.reports.pages.plan_picture import draw_plan
from hf_stages.reports.tables.plan_table import plan_table
from hf_stages.schedules import Defaults, Piece
from tests.support.plans import plan_of
from tests.support.runs import StopAt, rates, staged


def span_of(schedule: Restarts, total: int, rate: float = 1.0):
    return schedule.span(Defaults(rate), total=total, parent_lr=None)


def half_cosine(done: int, length: int) -> float:
    return (1 + math.cos(math.pi * done / length)) / 2


def test_equal_cycles_are_the_same_cosine_again_and_again():
    span = span_of(Restarts(3), 30)
    assert [span.lr(s) for s in range(30)] == [half_cosine(s % 10, 10) for s in range(30)]
    assert span.lr(30) == 0.0


def test_lengths_are_relative_to_each_other():
    span = span_of(Restarts([1, 2, 4]), 70)
    assert [s for s in range(70) if span.lr(s) == 1.0] == [0, 10, 30]
    assert span_of(Restarts([10, 20, 40]), 70).lr(47) == span.lr(47) == half_cosine(17, 40)


def test_each_cycle_warms_up_from_where_the_one_before_ended():
    span = span_of(Restarts(2, warmup="20 %", floor=0.5), 20)
    assert [span.lr(s) for s in (0, 1, 2, 6, 10, 11, 12)] == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.75, 1])
    own = span_of(Restarts(2, warmup=[0.2, 0]), 20)
    assert (own.lr(1), own.lr(10)) == (0.5, 1.0)


def test_peaks_follow_a_curve_over_the_stage():
    span = span_of(Restarts(4, peak=2.0, peaks=Linear(1, 0)), 40)
    assert [span.lr(s) for s in (0, 10, 20, 30)] == pytest.approx([2.0, 1.5, 1.0, 0.5])
    # A stage that resumes may begin between peaks; the highest rate of its part is the next one.
    assert span.highest(17, 40) == pytest.approx(1.0)
    assert span_of(Restarts(400, warmup=0.5), 4000).highest(10, 4000) == 1.0


def test_the_rate_is_the_args_own_where_none_is_given():
    assert span_of(Restarts(2), 10, rate=3e-4).peak == 3e-4
    assert Restarts(2).with_peak(1e-2).peak == 1e-2


def test_it_is_the_same_however_it_is_written():
    written = {"use": "Restarts", "cycles": [1, 2], "warmup": "5 %", "peaks": "Linear(1, 0.5)", "optimizer": "carry"}
    part = part_from_dict(written, "schedule")
    assert part == Restarts((1, 2), warmup="5 %", peaks=Linear(1, 0.5), optimizer="carry")
    assert part_from_dict(part_to_dict(part, "schedule"), "schedule") == part


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Restarts(0), "Restarts: cycles: expected how many there are, or relative lengths"),
        (lambda: Restarts([]), "cycles: expected how many"),
        (lambda: Restarts([1, -1]), "cycles: expected how many"),
        (lambda: Restarts(True), "cycles: expected how many"),
        (lambda: Restarts("3"), "cycles: expected how many"),
        (lambda: Restarts(2, peak=-1), "Restarts: peak: expected a learning rate"),
        (lambda: Restarts(2, warmup=1.0), "warmup: expected a share of each cycle such as 0.05 or '5 %', got 1.0"),
        (lambda: Restarts(2, warmup="10 steps"), "warmup: expected a share of each cycle .* got '10 steps'"),
        (lambda: Restarts(2, warmup=[0.1]), "one share for each of 2 cycles, got 1"),
        (lambda: Restarts(2, peaks=Linear(1, -1)), "peaks: expected shares of the peak, none negative"),
        (lambda: Restarts(2, peaks=0), "peaks: expected shares of the peak"),
        (lambda: Restarts(2, peaks="Linera(1, 0)"), "Restarts: peaks: unknown curve"),
        (lambda: Restarts(2, floor=2), "floor: expected a share from 0 to 1, got 2"),
        (lambda: Restarts(2, optimizer="keep"), "Restarts: optimizer: expected 'reset' or 'carry'"),
        (lambda: plan_of(Stage("a", "3 steps", schedule=Restarts(4))), "stage 'a': schedule: Restarts: cycles: 4 of"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_plan_shows_it_as_table_and_picture(tmp_path):
    stages = [
        Stage("a", "20 steps", schedule=Fresh(peak=1e-3)),
        Stage("b", "40 steps", schedule=Restarts(2, peak=1e-2)),
        Stage("c", "40 steps", schedule=Resume()),
    ]
    plan = plan_of(*stages)
    assert plan["c"].lr_in == pytest.approx(1e-2)  # its two cycles span both stages
    assert plan.peak_lr("b") == 1e-2
    assert "Restarts(2, peak=0.01)" in plan_table(plan)
    draw_plan(plan, tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").stat().st_size > 10_000


def test_a_resumed_run_equals_the_uncut_one(tmp_path):
    stages = [
        Stage("a", "4 steps"),
        Stage("b", "8 steps", schedule=Restarts(2, peak=1e-2, warmup=0.25, peaks="Linear(1, 0.5)", optimizer="carry")),
    ]
    args = {"save_strategy": "steps", "save_steps": 3}
    whole = staged(tmp_path / "whole", stages, args=args)
    whole.train()
    assert rates(whole, 2) == pytest.approx([0, 1e-2, 7.5e-3, 2.5e-3, 0, 7.5e-3, 5.625e-3, 1.875e-3])

    staged(tmp_path / "cut", stages, args=args, callbacks=[StopAt(9)]).train()  # within the second cycle's warmup
    resumed = staged(tmp_path / "cut", stages, args=args)
    resumed.train(resume_from_checkpoint=True)
    assert rates(resumed) == rates(whole)
    for (name, one), other in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert one.equal(other), name


@pytest.mark.parametrize(
    ("schedule", "steps", "cycles"),
    [
        (Restarts([1, 50], warmup=[0.0, 0.5]), 4, (1,)),
        (Restarts(30), 20, 20),
        (Restarts(3), 20, 3),
        (Restarts([1, 2, 4]), 7, (1, 2, 4)),
    ],
)
def test_a_short_trial_has_the_first_cycles_that_fit(schedule, steps, cycles):
    squeezed = schedule.squeezed(Piece(span_of(schedule, 200), 0.0, 200), steps, 1e-3)
    assert squeezed.cycles == cycles
    assert span_of(squeezed, steps).peak == 1e-3


def test_cycles_may_be_numbers_of_numpy():
    assert Restarts(np.int64(2)) == Restarts(2)


@pytest.mark.parametrize("cycles", [1, 2])
def test_peaks_that_are_zero_where_cycles_begin_are_refused(cycles):
    schedule = Restarts(cycles, peaks=Step(((0, 0), (0.9, 1))))
    with pytest.raises(ValueError, match=r"peaks: .* is 0 where each cycle begins"):
        span_of(schedule, 20)
