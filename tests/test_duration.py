import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_stages.duration import Duration, warmup_steps

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
def test_reads(text, amount, unit):
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
def test_refuses(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Duration.parse(text)


@given(st.floats(min_value=1e-300, max_value=1e300), st.sampled_from(UNITS))
@example(1e40, "tokens")
@example(1500.5, "tokens")
@example(1e-7, "epochs")
def test_text_reads_back(amount, unit):
    duration = Duration(amount, unit)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 0), (0.06, 12), (10, 10), ("10 steps", 10), ("6 %", 12), (Duration(5, "percent"), 10)]
)
def test_warmup(warmup, steps):
    assert warmup_steps(warmup, 200) == steps


def test_warmup_refuses_epochs():
    with pytest.raises(ValueError, match="expected steps, a share"):
        warmup_steps("1 epochs", 200)
