from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest

from hf_stages import Recipe, Stage
from hf_stages.core.curves import Const, Linear
from hf_stages.losses import Balanced, Loss, TaskLoss
from hf_stages.losses.base import Scaled, Sum
from hf_stages.losses.objective.terms import groups_of, terms_of
from hf_stages.recipes import dump, loads, part_from_dict, part_to_dict

TWO = TaskLoss() + Linear(1, 0) * TaskLoss(shift=True)


@dataclass(frozen=True)
class Adapted(Loss):
    seen: object = None

    def for_models(self, student, teacher):
        return Adapted(student)


def test_balanced_losses_become_named_terms_of_a_group():
    loss = 2 * Balanced(TaskLoss() + 0.5 * (TaskLoss() + Adapted())) + TaskLoss() + Balanced(Adapted() + TaskLoss())
    terms = terms_of(loss, student="model")
    assert [(t.name, t.balance, t.weight(0)) for t in terms] == [
        ("TaskLoss", 0, 2.0),
        ("TaskLoss_2", 0, 1.0),
        ("Adapted", 0, 1.0),
        ("TaskLoss_3", None, 1.0),
        ("Adapted_2", 1, 1.0),
        ("TaskLoss_4", 1, 1.0),
    ]
    assert terms[2].loss.seen == "model"
    assert [type(group) for group in groups_of(loss)] == [Balanced, Balanced]
    assert groups_of(TWO) == ()


def test_equal_groups_stay_apart():
    assert [term.balance for term in terms_of(Balanced(TWO) + Balanced(TWO))] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TaskLoss() + Balanced(TWO),), "loss: expected plain losses, got another Balanced inside"),
        ((3 * TaskLoss(),), "loss: expected two terms or more, got TaskLoss alone"),
        ((Sum(()),), "loss: expected two terms or more, got none"),
        (("TaskLoss",), "loss: expected losses added up, got 'TaskLoss'"),
        ((TWO, "norm"), "by: expected one of gradient, loss, got 'norm'"),
        ((TWO, "loss", 1), "momentum: expected a number from 0 to below 1, got 1"),
        ((TWO, "loss", float("nan")), "momentum: expected"),
        ((TWO, "loss", 0.5, 0), "every: expected a whole number, at least 1, got 0"),
    ],
)
def test_bad_values_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=f"Balanced: {message}"):
        Balanced(*arguments)


@pytest.mark.parametrize(
    "loss",
    [
        Balanced(TWO),
        0.5 * Balanced(TWO, "loss", 0.9, 10) + TaskLoss(),
        Balanced(Scaled(Const(2), TWO), momentum=0),
    ],
)
def test_a_balanced_loss_reads_back_equal(loss):
    assert part_from_dict(part_to_dict(loss, "loss"), "loss") == loss
    recipe = Recipe([Stage("a", "1 steps", loss=loss)])
    assert loads(dump(recipe)) == recipe
    names = {"Balanced": Balanced, "Sum": Sum, "Scaled": Scaled, "TaskLoss": TaskLoss, "Linear": Linear, "Const": Const}
    assert loss == pickle.loads(pickle.dumps(loss)) == eval(repr(loss), names)
    assert hash(loss)


def test_a_balanced_loss_is_read_from_yaml():
    loss = "{use: Balanced, loss: [TaskLoss, {use: TaskLoss, weight: 2}], every: 5}"
    text = f"stages: [{{name: a, until: 1 steps, loss: {loss}}}]"
    assert loads(text)["a"].loss == Balanced(TaskLoss() + 2 * TaskLoss(), every=5)
