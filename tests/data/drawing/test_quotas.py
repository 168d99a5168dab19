"""Quotas: whole counts that follow any curves, at any position, alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_stages.core.curves import WSD, Const, Cosine, Linear, Step
from hf_stages.data.drawing.quotas import Clock, Quotas

weights = st.floats(0.0, 1.0).map(lambda w: round(w, 3))
curves = st.one_of(
    st.builds(Const, weights),
    st.builds(Linear, weights, weights),
    st.builds(Cosine, weights, weights),
    st.builds(lambda a, b, edge: Step(((0, a), (edge, b))), weights, weights, st.floats(0.1, 0.9)),
    st.just(WSD(0.2, 0.2)),
)


def quotas(given_curves, draws):
    clock = Clock.for_draws(draws)
    shares = np.array([[curve(t) for curve in given_curves] for t in clock.t])
    shares[shares.sum(1) == 0, 0] = 1.0
    shares /= shares.sum(1, keepdims=True)
    return Quotas(clock, shares), shares


@settings(max_examples=60, deadline=None)
@given(st.lists(curves, min_size=2, max_size=6), st.integers(1, 3000))
def test_counts_follow_the_curves_and_add_up(given_curves, draws):
    found, shares = quotas(given_curves, draws)
    child, own = found.at(np.arange(draws))
    counts = np.stack([np.cumsum(child == i) for i in range(len(given_curves))], 1)
    # The reference: sums of shares, position by position (each is a block of its own below 8,192 draws).
    wanted = np.cumsum(shares[:draws], 0)
    levels = (len(given_curves) - 1).bit_length()
    assert np.abs(counts - wanted).max() <= levels / 2 + 1e-3
    for i in range(len(given_curves)):
        assert own[child == i].tolist() == list(range(int((child == i).sum())))  # no draw twice, none left out
    for cut in (0, draws // 3, draws):
        assert found.before(cut) == np.bincount(child[:cut], minlength=len(given_curves)).tolist()


@settings(max_examples=20, deadline=None)
@given(st.lists(curves, min_size=2, max_size=4), st.integers(10**4, 10**10), st.integers(0, 10**9), st.integers(0, 50))
def test_any_window_of_a_long_stage_is_what_stands_there(given_curves, draws, seed, width):
    found, _ = quotas(given_curves, draws)
    start = seed % draws
    child, own = found.at(np.arange(start, start + width + 1))
    one_by_one = [found.at(np.array([k])) for k in range(start, start + width + 1)]
    assert child.tolist() == [int(c[0]) for c, _ in one_by_one]
    assert own.tolist() == [int(o[0]) for _, o in one_by_one]
    before, after = found.before(start), found.before(start + width + 1)
    assert [b - a for a, b in zip(before, after, strict=True)] == np.bincount(child, minlength=len(before)).tolist()


def test_a_source_whose_weight_is_zero_is_never_drawn():
    found, _ = quotas([Linear(1, 0.2), Const(0.0), Linear(0, 0.8)], 5000)
    child, _ = found.at(np.arange(5000))
    assert not (child == 1).any()


def test_a_long_stage_keeps_to_its_curve():
    draws = 10**9
    found, _ = quotas([Linear(1, 0.3), Linear(0, 0.7)], draws)
    for t in (0.1, 0.5, 0.77, 1.0):
        k = int(draws * t)
        code = 0.7 * t * k / 2  # the integral of 0.7 t
        assert found.before(k)[1] == pytest.approx(code, abs=2)


def test_shares_stand_still_beyond_the_planned_end():
    found, _ = quotas([Linear(1, 0.25), Linear(0, 0.75)], 1000)
    after = np.array(found.before(3000)) - np.array(found.before(2000))
    assert after.tolist() == [250, 750]
