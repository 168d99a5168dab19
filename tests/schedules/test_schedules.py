"""Learning-rate schedules: the spans that they declare, and what they refuse."""

import pytest
import torch
from transformers import get_scheduler

from hf_stages.core.curves import Cosine, Linear
from hf_stages.core.duration import Duration
from hf_stages.schedules import Fresh, Resume, Rewarm
from hf_stages.schedules.base import Defaults


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "constant"])
def test_shapes_of_the_trainer_are_its_own(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=20)
    span = Fresh().span(Defaults(1e-3, warmup=5, shape=name), total=20, parent_lr=None)
    for step in range(20):
        assert span.lr(step) == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


def test_fresh_overrides_what_the_args_say():
    span = Fresh(peak=1.0, warmup="10 %", shape=Linear(1, 0)).span(Defaults(5e-5, 7), total=100, parent_lr=9.0)
    assert (span.peak, span.warmup, span.total) == (1.0, 10, 100)
    assert [span.lr(s) for s in (0, 5, 10, 55, 100)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize("then", [Cosine(1, 0), "cosine"])
def test_rewarm_starts_at_the_parents_rate(then):
    span = Rewarm(to=1.0, warmup=10, then=then).span(Defaults(5e-5), total=110, parent_lr=0.2)
    assert [span.lr(s) for s in (0, 5, 10, 60, 110)] == pytest.approx([0.2, 0.6, 1, 0.5, 0])


def test_the_highest_rate_of_a_part_is_its_own():
    span = Fresh(peak=1.0, warmup=10, shape=Linear(1, 0)).span(Defaults(5e-5), total=110, parent_lr=None)
    assert span.highest(0, 110) == 1.0
    assert span.highest(0, 5) == pytest.approx(0.5)
    assert span.highest(60, 110) == pytest.approx(0.5)


def test_rewarm_without_a_parent_starts_at_zero():
    assert Rewarm(to=1.0, warmup=10).span(Defaults(5e-5), total=110, parent_lr=None).lr(0) == 0


def test_schedules_are_equal_however_they_are_written():
    assert Fresh(warmup="10 steps", shape="Linear(1, 0)") == Fresh(warmup=Duration(10, "steps"), shape=Linear(1, 0))
    assert Resume() == Resume("carry")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fresh(optimizer="keep"), "Fresh: optimizer: expected 'reset' or 'carry', got 'keep'"),
        (lambda: Resume(optimizer="keep"), "Resume: optimizer"),
        (lambda: Rewarm(to=0), "Rewarm: to: expected a positive learning rate"),
        (lambda: Rewarm(to=float("inf")), "Rewarm: to: expected a positive learning rate, got inf"),
        (lambda: Rewarm(to="1e-4 "), "Rewarm: to: expected a positive learning rate, got '1e-4 '"),
        (lambda: Fresh(peak=float("nan")), "Fresh: peak: expected a learning rate, got nan"),
        (lambda: Fresh(peak=[1e-3]), "Fresh: peak: expected a learning rate"),
        (lambda: Fresh(shape=3), "shape: expected a lr_scheduler_type or a curve such as .*, got 3"),
        (lambda: Fresh(shape={"use": 1}), "shape: expected a lr_scheduler_type or a curve"),
        (lambda: Rewarm(1e-3, then=[1, 0]), "then: expected a lr_scheduler_type or a curve"),
        (lambda: Fresh(warmup="3 epoks"), "did you mean"),
        (lambda: Fresh(shape="Linera(1, 0)"), "unknown curve"),
        (lambda: Fresh(shape="lienar").span(Defaults(1.0), total=9, parent_lr=None), "schedule shape 'lienar'"),
        (
            lambda: Fresh(shape="reduce_lr_on_plateau").span(Defaults(1.0), total=9, parent_lr=None),
            "reads metrics",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
