from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_stages.reports.panels.log_axis import LogAxis, axis_over

positive = st.floats(1e-8, 1e8)


@given(st.lists(positive, min_size=1, max_size=20))
def test_every_value_stands_on_its_axis_and_order_is_kept(values):
    axis = axis_over(values)
    places = [axis.at(value) for value in sorted(values)]
    assert all(0 < place < 1 for place in places)
    assert all(a <= b for a, b in itertools.pairwise(places))


@given(st.lists(positive, min_size=2, max_size=20), st.floats(-5, 0))
def test_what_has_no_logarithm_stands_below_all_that_has_one(values, low):
    axis = axis_over([*values, low])
    assert axis.floored
    assert axis.at(low) == 0
    assert min(map(axis.at, values)) > 0.02
    assert axis.ticks()[0][1] == "≤0"


def test_a_correlation_of_zero_is_far_from_a_collapse():
    axis = axis_over([0.0, 0.2, 0.9], floor=1e-3, top=1.0)
    assert axis.at(0.0) == axis.at(-0.01) == axis.at(1e-4) == 0
    assert axis.at(1.0) > 0.9
    assert axis.ticks()[0] == (1e-3, "≤0.001")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_moves_no_axis(bad):
    assert axis_over([1.0, bad, 3.0]) == axis_over([1.0, 3.0])
    assert axis_over([bad]).low > 0


@given(positive, st.floats(1.0, 1e6))
def test_ticks_are_within_and_few_and_readable(low, factor):
    axis = axis_over([low, low * factor])
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 9
    assert len({label for _, label in ticks}) == len(ticks)
    for value, label in ticks:
        assert float(label) == pytest.approx(value)
        assert 0 <= axis.at(value) <= 1


def test_decades_are_powers_of_ten():
    assert [label for _, label in LogAxis(1e5, 1e7).ticks()] == ["1e5", "3e5", "1e6", "3e6", "1e7"]
    assert [label for _, label in LogAxis(1, 10_000).ticks()] == ["1", "10", "100", "1000", "10000"]
