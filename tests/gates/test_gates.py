"""Gates that end a stage or judge it: when they fire, and what they refuse."""

from dataclasses import dataclass

import pytest

from hf_stages.gates import Above, Below, Budget, Expect, Forgetting, Gate, History, Plateau

NAN = float("nan")


@dataclass(frozen=True)
class Own(Gate):
    """A gate of someone's own, which checks nothing itself."""

    limit: float | None = None


def history(metric, *values, **kwargs):
    return History(**{"step": 10, "logs": [{metric: v} for v in values], **kwargs})


@pytest.mark.parametrize(
    ("gate", "values", "fires"),
    [
        (Above("m", 1), [], False),
        (Above("m", 1), [2, 1], False),
        (Above("m", 1), [0, 1.5], True),
        (Below("m", 1), [0.5, 1], False),
        (Below("m", 1), [2, 0.5], True),
        (Plateau("m", 2), [3, 3], False),
        (Plateau("m", 2), [3, 3, 3], True),
        (Plateau("m", 2), [3, 3, 2.9], False),
        (Plateau("m", 2, min_delta=0.2), [3, 3, 2.9], True),
        (Plateau("m", 1, greater_is_better=True), [0.5, 0.6], False),
        (Plateau("m", 1, greater_is_better=True), [0.6, 0.5], True),
    ],
)
def test_a_gate_ends_the_stage_where_its_limit_is_passed(gate, values, fires):
    decision = gate(history("m", *values))
    assert (decision is not None) == fires
    assert decision is None or decision.action == "end"


@pytest.mark.parametrize(
    ("limit", "used", "fires"),
    [
        ("1k tokens", {"tokens": 999}, False),
        ("1k tokens", {"tokens": 1000}, True),
        ("2 hours", {"seconds": 7199.0}, False),
        ("2 hours", {"seconds": 7200.0}, True),
        ("11 steps", {}, False),
        ("10 steps", {}, True),
    ],
)
def test_a_budget_fires_when_it_is_used_up(limit, used, fires):
    assert (Budget(limit)(history("m", **used)) is not None) == fires


def test_only_a_budget_of_time_reads_the_clock():
    assert (Budget("1 hour").reads_clock, Budget("1k tokens").reads_clock) == (True, False)


@pytest.mark.parametrize(
    ("gate", "values", "action"),
    [
        (Expect("eval_m", 1, 2), [5, 1.5], None),
        (Expect("eval_m", 1, 2), [1.5, 5], "stop"),
        (Expect("eval_m", low=1), [0.5], "stop"),
        (Expect("eval_m", high=1, action="warn"), [2], "alert"),
        (Expect("eval_m", 1, 2), [], "stop"),
        (Expect("eval_m", 1, 2), [float("nan")], "stop"),
    ],
)
def test_expect_judges_the_last_value(gate, values, action):
    decision = gate(history("eval_m", *values))
    assert (decision.action if decision else None) == action


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget("3 epochs"), "expected tokens, a time or steps"),
        (lambda: Expect("m", 2, 1), "low 2 is above high 1"),
        (lambda: Expect("m", action="die"), "expected 'stop' or 'warn'"),
        (lambda: Plateau(patience=0), "expected at least 1"),
        (lambda: Expect("m", high=NAN), "Expect: high: expected a number, got nan"),
        (lambda: Expect("m", low={"a": 1}), "Expect: low: expected a number, got {'a': 1}"),
        (lambda: Expect("m", low=float("inf")), "no number lies between low inf and high inf"),
        (lambda: Above("m", NAN), "Above: value: expected a number, got nan"),
        (lambda: Above("m", float("inf")), "Above: value: expected a finite number, got inf"),
        (lambda: Below("m", "3"), "Below: value: expected a number, got '3'"),
        (lambda: Plateau(min_delta=NAN), "Plateau: min_delta: expected a number, got nan"),
        (lambda: Plateau(patience=1.5), "Plateau: patience: expected a whole number, got 1.5"),
        (lambda: Forgetting(NAN), "Forgetting: budget: expected a share"),
        (lambda: Forgetting({"a": 1}), "Forgetting: budget: expected a share"),
        (lambda: Forgetting(factor=[0.5]), r"Forgetting: factor: expected a number, got \[0.5\]"),
        (lambda: Forgetting(share=NAN), "Forgetting: share: expected a number, got nan"),
        (lambda: Own(NAN), "Own: limit: expected a number, got nan"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_gate_must_be_callable():
    with pytest.raises(NotImplementedError, match="Gate must define __call__"):
        Gate()(history("m"))


def test_no_limit_is_a_limit_too():
    assert Own().limit is None
    assert Expect("m").high == float("inf")
