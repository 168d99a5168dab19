from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_stages.reports.pages.svg import COLOURS
from hf_stages.reports.panels.layout import (
    DASHES,
    check_comparable,
    end_labels,
    gather,
    glyph_of,
    lay_out,
    spread,
    thin,
)
from hf_stages.reports.panels.log_axis import axis_over
from hf_stages.reports.panels.run_curves import Mark, RunCurves, curves_of
from tests.reports.panels.logs import log

KINDS = ("good", "collapsed", "ignored")
RUNS = [curves_of(kind, log(kind)) for kind in KINDS]


def test_a_run_has_one_colour_and_a_recurrence_one_style_everywhere():
    panels = lay_out(RUNS)
    assert [style.colour for style in panels.runs] == COLOURS[:3]
    for panel in panels.panels:
        assert {line.style for line in panel.lines} == set(panels.runs)
    assert panels.depths == (64, 32, 16, 8, 4, 1)
    styles = [tuple(panels.dashes(depth)) for depth in panels.depths]
    assert len(set(styles)) == 6
    assert styles[0] == ()
    assert len(set(DASHES)) == len(DASHES)


def test_values_on_the_floor_are_marked_and_not_joined():
    points = ((1, 0.5), (2, 0.0), (3, -0.2), (4, 0.4), (5, 0.0004))
    (line,) = lay_out([RunCurves("a", correlation=points)]).panels[1].lines
    assert line.floored == (2, 3, 5)
    assert line.segments == (((1, 0.5),), ((4, 0.4),))


def test_nan_breaks_the_line_and_is_marked():
    points = ((1, 3.0), (2, 2.5), (3, math.nan), (4, math.inf), (5, 2.0))
    panels = lay_out([RunCurves("a", loss=points)])
    (line,) = panels.panels[0].lines
    assert line.lost == (3, 4)
    assert line.segments == (((1, 3.0), (2, 2.5)), ((5, 2.0),))
    assert panels.lost
    assert not panels.floored


def test_nan_beside_a_known_value_of_the_same_step_is_marked_and_breaks_nothing():
    points = ((1, 3.0), (1, math.nan), (2, 2.5), (2, math.nan), (3, math.nan), (4, 2.0))
    (line,) = lay_out([RunCurves("a", loss=points)]).panels[0].lines
    assert line.lost == (1, 2, 3)
    assert line.segments == (((1, 3.0), (2, 2.5)), ((4, 2.0),))
    assert line.end == 2.0


def test_alerts_skips_and_rows_written_down_look_different():
    kinds = ("alert", "incident", "skip", "cut_lr", "rollback")
    assert len({glyph_of(kind) for kind in kinds}) == len(kinds)


def test_a_run_of_nan_alone_is_still_there():
    (line,) = lay_out([RunCurves("a", loss=((1, math.nan),))]).panels[0].lines
    assert (line.segments, line.lost) == ((), (1,))


def test_what_is_missing_is_said():
    panels = lay_out([RunCurves("a", loss=((1, 2.0),)), RunCurves("b", loss=((1, 2.0),), correlation=((1, 0.1),))])
    assert [panel.note for panel in panels.panels] == ["", "not logged: a", "no run was evaluated"]


def test_the_set_that_most_runs_share_is_shown():
    one = RunCurves("a", perplexity={"": {None: ((1, 9.0),)}, "prose": {None: ((1, 5.0),)}})
    two = RunCurves("b", perplexity={"prose": {None: ((1, 6.0),)}, "code": {None: ((1, 7.0),)}})
    assert lay_out([one, two]).panels[2].title == "Validation perplexity on prose"
    assert lay_out([one, two], "code").panels[2].note == "not logged: a"


def test_runs_without_a_common_metric_are_refused():
    runs = [RunCurves("a", loss=((1, 2.0),)), RunCurves("b", correlation=((1, 0.2),))]
    with pytest.raises(ValueError, match=r"no metric in common.*a has a loss; b has token_correlation"):
        check_comparable(runs)
    check_comparable(runs[:1])
    with pytest.raises(ValueError, match=r"no run was evaluated on 'prose'; the evaluation sets are none"):
        check_comparable(runs, "prose")


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_labels_never_touch(wanted):
    placed = spread(wanted, 10, 0, 100)
    assert all(b - a >= 10 - 1e-6 for a, b in itertools.pairwise(sorted(placed)))
    assert max(placed) <= 100


def test_thinning_loses_no_spike():
    points = [(step, 1.0) for step in range(1, 20_001)]
    points[15_000] = (15_001, 50.0)
    points[15_003] = (15_004, 0.1)
    steps = axis_over([1, 20_000])
    kept = thin(points, steps)
    assert len(kept) < 1300
    assert {(15_001, 50.0), (15_004, 0.1), (1, 1.0), (20_000, 1.0)} <= set(kept)


def test_marks_upon_each_other_are_one_and_those_beyond_the_axis_none():
    steps = axis_over([1, 10_000])
    marks = [Mark(5000 + i, "skip", f"skip: {i}") for i in range(5)] + [
        Mark(5000, "alert", "x"),
        Mark(10**6, "skip", "y"),
    ]
    found = gather(marks, steps)
    assert [(mark.step, mark.kind) for mark in found] == [(5000, "skip"), (5000, "alert")]
    assert found[0].words == "skip: 0; skip: 1; skip: 2; ..."


def many(count):
    return [RunCurves(f"run{i}", perplexity={"": {1: ((1, 9.0 + i),), 4: ((1, 2.0 + i),)}}) for i in range(count)]


def test_runs_have_letters_of_their_own_however_many_there_are():
    letters = [style.letter for style in lay_out(many(100)).runs]
    assert letters[:3] + letters[25:28] == ["A", "B", "C", "Z", "AA", "AB"]
    assert len(set(letters)) == 100


@pytest.mark.parametrize(("count", "labels", "last"), [(3, 6, 11.0), (12, 24, 20.0), (13, 13, 14.0), (100, 24, 101.0)])
def test_there_are_no_more_labels_than_room_and_the_outermost_stay(count, labels, last):
    panels = lay_out(many(count))
    found = end_labels(panels, panels.panels[2], 24)
    assert len(found) == len({words for _, words, _ in found}) == labels
    assert min(value for value, _, _ in found) == 2.0
    assert max(value for value, _, _ in found) == last
