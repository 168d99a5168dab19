import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_stages.core.duration import Duration, as_warmup, warmup_steps
from hf_stages.schedules import Fresh, Rewarm

UNITS = ["steps", "epochs", "tokens", "seconds", "percent"]


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("2000 steps", 2000, "steps"),
        ("1 step", 1, "steps"),
        ("3 epochs", 3, "epochs"),
        ("0.5ep", 0.5, "epochs"),
        ("1.5B tokens", 1.5e9, "tokens"),
        ("30_000tok", 30_000, "tokens"),
        ("3 Tokens", 3, "tokens"),
        ("2T tokens", 2e12, "tokens"),
        ("5 Minutes", 300, "seconds"),
        ("2k steps", 2000, "steps"),
        ("1e3 steps", 1000, "steps"),
        ("90 min", 5400, "seconds"),
        ("6 %", 6, "percent"),
        ("6%", 6, "percent"),
    ],
)
def test_a_duration_is_read_from_text(text, amount, unit):
    assert Duration.parse(text) == Duration(amount, unit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("200", 'expected a number and a unit such as "2000 steps"'),
        (200, 'write the unit: "200 steps"'),
        ("3 epoks", "did you mean 'epoch"),
        ("-3 steps", "expected a number and a unit"),
        ("0 steps", "expected a positive amount"),
        ("3 parsecs", "unknown unit 'parsecs'"),
        ("", "expected a number and a unit"),
    ],
)
def test_what_is_no_duration_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Duration.parse(text)


@given(st.floats(min_value=1e-300, max_value=2**53), st.sampled_from(UNITS))
@example(9e15, "tokens")
@example(1500.5, "tokens")
@example(1e-7, "epochs")
def test_a_duration_written_as_text_reads_back_equal(amount, unit):
    duration = Duration(amount, unit)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 0), (0.06, 12), (10, 10), ("10 steps", 10), ("6 %", 12), (Duration(5, "percent"), 10)]
)
def test_a_warmup_becomes_a_number_of_steps(warmup, steps):
    assert warmup_steps(warmup, 200) == steps


@pytest.mark.parametrize(
    "warmup",
    [
        *("1 epochs", "200 tokens", "120 %", "soon", "", True, [1, 2], {"a": 1}, (), -1, 2**60),
        *(float("inf"), float("nan"), float("-inf"), Duration(1, "epochs")),
    ],
    ids=str,
)
def test_warmup_is_refused_where_it_is_read(warmup):
    for read in (
        as_warmup,
        lambda w: warmup_steps(w, 200),
        lambda w: Fresh(warmup=w),
        lambda w: Rewarm(1e-3, warmup=w),
    ):
        with pytest.raises(ValueError, match="warmup: expected steps such as 100, or a share such as 10 %, got "):
            read(warmup)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("1e30 steps", "expected at most 9007199254740992 steps, got 1e+30"),
        ("99999T tokens", "expected at most 9007199254740992 tokens"),
        ({"use": "Fresh"}, "expected a duration such as \"2000 steps\", got {'use': 'Fresh'}"),
        (float("nan"), 'expected a duration such as "2000 steps", got nan'),
        (True, 'expected a duration such as "2000 steps", got True'),
        (None, 'expected a duration such as "2000 steps", got None'),
    ],
)
def test_absurd_durations_are_refused(amount, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        Duration.parse(amount)
    assert "write the unit" not in str(refused.value)
