import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_stages.core.curves import WSD, Const, Cosine, Curve, Join, Linear, Step, as_curve
from hf_stages.recipes import part_from_dict, part_to_dict
from tests.support.strategies import curves


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        (Const(2), [2, 2, 2, 2, 2]),
        (Linear(1, 0), [1, 0.75, 0.5, 0.25, 0]),
        (Cosine(1, 0), [1, 0.8535533905932737, 0.5, 0.1464466094067262, 0]),
        (WSD(0.5, 0.25), [0, 0.5, 1, 1, 0]),
        (WSD(0, 0), [1, 1, 1, 1, 1]),
        (Step(((0, 1), (0.5, 10))), [1, 1, 10, 10, 10]),
        (Join((Linear(0, 1), Const(1)), until=(0.5,)), [0, 0.5, 1, 1, 1]),
    ],
)
def test_a_curve_gives_its_values(curve, values):
    assert [curve(t) for t in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(values, abs=1e-15)
    assert (curve(-1), curve(2)) == (curve(0), curve(1))


@given(curves)
def test_a_curve_written_as_text_reads_back_equal(curve):
    assert as_curve(repr(curve)) == curve


@given(curves, st.floats(0, 1))
def test_a_curve_in_a_dict_reads_back_equal(curve, t):
    again = part_from_dict(part_to_dict(Weighted(curve), "weights"), "loss", trust_remote_code=True).weight
    assert again == curve
    assert again(t) == curve(t)


def Weighted(curve):  # a curve as it stands in a recipe: an argument of a part
    from hf_stages.losses import TaskLoss
    from hf_stages.losses.base import Scaled

    return Scaled(curve, TaskLoss())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Linera(1, 0)", "unknown curve 'Linera' in 'Linera(1, 0)'; did you mean 'Linear'?"),
        ("Linear(1", 'expected text such as "Linear(1, 0)"'),
        ("Linear(1, 2, 3)", "Linear takes start, end"),
        ("Linear(x, 1)", "its arguments must be numbers"),
        ("Linear('a', 1)", "Linear: start: expected a number, got 'a'"),
        ("Linear(**{})", "** is not allowed"),
        ("__import__('os').system('true')", 'expected text such as "Linear(1, 0)"'),
        ("Linear(__import__('os'), 1)", "unknown curve '__import__'"),
        ("WSD(0.8, 0.8)", "shares that sum to at most 1"),
        ("Step(((0.5, 1),))", "t rising from 0"),
        ("Join((Const(1), Const(2)), until=(2,))", "rising between 0 and 1"),
        (True, "expected a number or a curve"),
        ("(" * 5000, "cannot read the curve"),
    ],
)
def test_what_is_no_curve_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        as_curve(text)


def test_a_curve_of_your_own_must_define_value_at():
    class Own(Curve):
        pass

    with pytest.raises(NotImplementedError, match="Own must define value_at"):
        Own()(0.5)
