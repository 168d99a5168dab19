"""Spikes: six standard deviations above the last 128 values, none of which was a spike."""

from __future__ import annotations

import math
import random

from hf_stages.gates.spike_window import find_spikes, spike_limit


def _calm(count: int, seed: int = 0) -> list[float]:
    made = random.Random(seed)
    return [2.0 + made.gauss(0, 0.1) for _ in range(count)]


def test_the_limit_is_mean_and_six_deviations():
    values = _calm(128)
    mean = sum(values) / 128
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 128)
    assert math.isclose(spike_limit(values), mean + 6 * deviation)


def test_a_spike_never_enters_its_own_window():
    values = _calm(100)
    assert find_spikes([*values, *[3.5] * 60]) == list(range(100, 160))


def test_nothing_is_a_spike_before_there_are_64_values():
    assert find_spikes([*_calm(63), 50.0]) == []
    assert find_spikes([*_calm(64), 50.0]) == [64]


def test_what_is_not_finite_is_always_one():
    assert find_spikes([1.0, float("nan"), float("inf"), 1.0]) == [1, 2]


def test_only_the_last_values_count():
    rising = [10.0] * 64 + _calm(128)
    assert find_spikes([*rising, 3.5])[-1] == 192


def test_calm_values_of_many_seeds_have_none():
    assert not any(find_spikes(_calm(2000, seed)) for seed in range(20))
