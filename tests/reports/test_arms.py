"""Which claim the numbers of several arms and seeds allow."""

from __future__ import annotations

import dataclasses

import pytest

from hf_stages.reports.arms import ArmRun, Comparison, gap_of
from hf_stages.reports.pages.versus_page import mean_line
from hf_stages.reports.tables.versus_table import claims, versus_dict, versus_table


def run(arm: str, seed: int, language: float, code: float, **changes) -> ArmRun:
    final = {"language": {"loss": language, "accuracy": 1 - language / 10}, "code": {"loss": code}}
    made = ArmRun(
        arm,
        seed,
        f"{arm} in words",
        10,
        10,
        0.1,
        1e-3,
        320,
        2.0 + seed,
        {"language": 24, "code": 16},
        {"language": 192, "code": 128},
        {"language": 4.0 + seed, "code": 4.0},
        final,
        {"code": [(0.0, 4.0), (2.0 + seed, code)]},
    )
    return dataclasses.replace(made, **changes)


def comparison(staged, joint, **changes) -> Comparison:
    runs = [run("staged", s, *v, **changes) for s, v in enumerate(staged)] + [
        run("joint", s, *v) for s, v in enumerate(joint)
    ]
    return Comparison(tuple(runs), {"language": 0.75, "code": 0.25}, "as given")


def test_claims_need_the_spread_and_one_direction():
    found = comparison(
        staged=[(3.0, 2.0), (3.1, 2.5), (3.2, 2.1)],
        joint=[(2.0, 2.1), (2.1, 2.2), (2.2, 2.2)],
    )
    told = claims(found)
    assert told[0] == "language, loss: staged worse than joint by 1, beyond the spread (0.1) in 3 of 3 seeds."
    assert told[1].startswith("code, loss: no claim; staged and joint differ by 0.0333, within the spread")
    assert told[2].startswith("language, accuracy: staged lower than joint by 0.1")  # whether that is good, nobody said
    mixture = [0.75 * a + 0.25 * b for a, b in [(3.0, 2.0), (3.1, 2.5), (3.2, 2.1)]]
    assert found.mixture()["staged"] == pytest.approx(dict(enumerate(mixture)))
    text = versus_table(found)
    assert "Mixture loss: language 0.75, code 0.25, as given." in text
    assert "Equal: updates" in text
    gap = versus_dict(found)["domains"]["language"]["loss"]["gaps"][0]
    assert (gap["arm"], gap["against"], gap["beyond_spread"]) == ("staged", "joint", True)
    assert gap["difference"] == pytest.approx(1.0)


def test_a_difference_beyond_the_spread_that_turns_with_the_seed_is_no_claim():
    # The mean difference is 0.3, both standard deviations are about 0.25, and one seed says the opposite.
    values = {"a": {0: 2.0, 1: 2.5, 2: 2.1}, "b": {0: 1.8, 1: 1.75, 2: 2.15}}
    gap = gap_of("a", "b", values)
    assert abs(gap.mean) > gap.spread
    assert not gap.beyond_spread
    assert (
        "not of one direction"
        in claims(comparison([(2.0, 1), (2.5, 1), (2.1, 1)], [(1.8, 1), (1.75, 1), (2.15, 1)]))[0]
    )


def test_one_seed_gives_no_claim():
    assert all("no claim" in line for line in claims(comparison([(3.0, 2.0)], [(2.0, 3.0)])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 9}, "staged (seed 0): 9 updates, joint 10"),
        ({"tokens": 330}, "330 tokens, joint 320 (+3.1%)"),
        ({"examples": {"language": 20, "code": 16}}, "36 examples, joint 40"),
        ({"before": {"language": 4.2}}, "began at a loss of 4.2 on language, joint at 4"),
    ],
)
def test_arms_that_spent_otherwise_are_called_unequal(changes, message):
    found = comparison([(3.0, 2.0)], [(2.0, 3.0)], **changes)
    assert message in "\n".join(found.unequal())
    text = versus_table(found)
    assert "NOT EQUAL" in text
    assert "of arms that were not equal" in text
    assert comparison([(3.0, 2.0)], [(2.0, 3.0)], tokens=322).unequal() == []  # within 1 %


def test_the_picture_has_means_over_seeds():
    runs = [run("joint", 0, 2.0, 1.0), run("joint", 1, 2.0, 3.0)]
    assert mean_line(runs, "code") == [(0.0, 4.0), (2.5, 2.0)]
