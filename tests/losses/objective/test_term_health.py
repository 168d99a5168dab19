"""A term that is not finite, or zero for too long, is named with its layers and what to do."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import HiddenMSE, LogitKL, TaskLoss
from hf_stages.losses.objective.term_health import TermHealth
from hf_stages.losses.objective.terms import terms_of
from hf_stages.transforms import Freeze
from tests.workers.cases import Pad, Rows, arguments, bert, text


def _train(out, model, teacher, loss, steps=20, transforms=()):
    rows = text(lambda g, ids: ids[0] % 3)()
    args = arguments(out, per_device_train_batch_size=4, logging_steps=500)
    stages = [Stage("one", f"{steps} steps", loss=loss, transforms=transforms)]
    StagedTrainer(model, args, train_dataset=Rows(rows), data_collator=Pad(), teacher=teacher, stages=stages).train()


def test_the_layer_that_is_not_finite_is_named(tmp_path):
    teacher = bert(num_hidden_layers=4)()
    with torch.no_grad():  # blown up from its third block on
        teacher.bert.encoder.layer[2].output.LayerNorm.weight.fill_(float("inf"))
    student = bert()()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=r"HiddenMSE: its value is (nan|inf), layers 2-4 \(student-teacher\) at t=0"):
        _train(tmp_path, student, teacher, HiddenMSE() + TaskLoss())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_term_that_stays_zero_is_an_error_and_says_what_to_do(tmp_path):
    student = bert()()
    with pytest.raises(ValueError, match=r"HiddenMSE: exactly zero for 20 updates .* layers 0-0, 1-1, 2-2 .*frozen\?"):
        _train(tmp_path, student, copy.deepcopy(student), HiddenMSE())


def test_layers_that_stay_zero_are_warned_of_once(tmp_path, caplog):
    student = bert()()
    logging.getLogger("hf_stages.losses.objective.term_health").addHandler(caplog.handler)
    frozen = [Freeze(["*embeddings*"])]
    _train(tmp_path, student, copy.deepcopy(student), 10 * TaskLoss() + HiddenMSE(), steps=40, transforms=frozen)
    told = {record.getMessage() for record in caplog.records if "exactly zero" in record.getMessage()}
    assert len(told) == 1
    assert "HiddenMSE: exactly zero for 20 updates, layers 0-0" in told.pop()


def test_self_distillation_may_start_at_zero(tmp_path):
    student = bert()()
    _train(tmp_path, student, copy.deepcopy(student), TaskLoss() + LogitKL(), steps=25)


def test_counts_survive_a_checkpoint():
    terms = terms_of(TaskLoss() + HiddenMSE())
    ours, again = TermHealth(terms, torch.device("cpu"), 1), TermHealth(terms, torch.device("cpu"), 1)
    for update in range(1, 15):
        ours.open_update()
        ours.note(0, torch.tensor(1.0))
        ours.note(1, torch.tensor(0.0))
        ours.close_update(0.5, update)
    again.load_state_dict(ours.state_dict())

    def go_on():
        for update in range(15, 21):
            again.open_update()
            again.note(0, torch.tensor(1.0))
            again.close_update(0.5, update)

    with pytest.raises(ValueError, match="HiddenMSE: exactly zero for 20 updates"):
        go_on()
