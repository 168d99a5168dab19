"""When something that costs time is done: as often as declared, and a matter of the update's number alone."""

from __future__ import annotations

import pytest

from hf_stages.core.occasions import EachUpdates, LogSpaced, as_occasions
from hf_stages.core.parts import part_from_dict, part_to_dict
from hf_stages.monitors import TokenCorrelation


def occasions(every, updates, logging=1):
    steps = range(logging, updates + 1, logging)
    return [step for step in steps if every.between(step - logging, step)]


def test_occasions_are_dense_at_first_and_spread_out_to_the_widest_gap():
    found = occasions(LogSpaced(), 20_000)
    gaps = [after - before for before, after in zip([0, *found], found, strict=False)]
    assert found[:100] == list(range(1, 101))
    assert gaps == sorted(gaps)
    assert gaps[-1] == 256
    assert len(found) < 1000


def test_rarer_logs_lose_no_occasion():
    every = LogSpaced(growth=0.1, widest=64)
    for logging in (1, 7, 10, 50):
        for step in occasions(every, 2000, logging):
            assert any(every.between(update - 1, update) for update in range(step - logging + 1, step + 1))
        assert len(occasions(every, 2000, logging)) >= min(2000 // logging, len(occasions(every, 2000)) // 4)


@pytest.mark.parametrize("bad", [0, -1, True, 2.5, "often"])
def test_other_values_are_refused(bad):
    with pytest.raises(ValueError, match="Mine: every: expected a number of updates"):
        as_occasions(bad, "Mine")
    assert as_occasions(7, "Mine") == EachUpdates(7)


@pytest.mark.parametrize("make", [lambda: LogSpaced(growth=0), lambda: LogSpaced(widest=0), lambda: EachUpdates(0)])
def test_occasions_without_an_end_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


@pytest.mark.parametrize("every", [None, 50, LogSpaced(0.1, 8), EachUpdates(3)])
def test_occasions_stand_in_a_recipe(every):
    monitor = TokenCorrelation(layers=(1,), every=every)
    assert part_from_dict(part_to_dict(monitor, "monitors"), "monitors") == monitor
