"""The gradient of every term is the same however a batch is cut or padded; and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import Trainer

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Step
from hf_stages.losses import Loss, TaskLoss
from tests.support import tiny
from tests.workers.cases import CASES, Gradients, LogitNorm, Pad, Rows, apart, arguments, bert, gradient, text

SAME = 1e-5


@pytest.mark.parametrize("name", CASES)
def test_gradient_does_not_depend_on_the_cut(name, tmp_path):
    whole = gradient(name, tmp_path / "8", 8)
    assert max(g.abs().max().item() for g in whole.values()) > 1e-4
    assert apart(whole, gradient(name, tmp_path / "2x4", 2, 4)) < SAME
    if CASES[name].padded:
        assert apart(whole, gradient(name, tmp_path / "padded", 8, extra=5)) < SAME
        assert apart(whole, gradient(name, tmp_path / "padded-1x8", 1, 8, extra=3)) < SAME


def _plain_gradient(out, batch, accumulation):
    seen, case = Gradients(), CASES["classifier"]
    args = arguments(
        out,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        train_sampling_strategy="sequential",
    )
    Trainer(case.model(), args, train_dataset=Rows(case.rows()), data_collator=Pad(), callbacks=[seen]).train()
    return seen.found


def test_plain_trainer_scales_a_classifiers_gradient(tmp_path):
    """The defect that stages do not have. When this fails, Trainer was mended: say so in docs/design.md."""
    whole, cut = _plain_gradient(tmp_path / "a", 8, 1), _plain_gradient(tmp_path / "b", 2, 4)
    assert apart(whole, cut) > 0.5


# ---- what is refused -----------------------------------------------------------------------------------------------


def _train(out, model, rows, loss=None, steps=1, batch=2, accumulation=2, **changes):
    args = arguments(
        out,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **{"logging_steps": 500, **changes},
    )
    stages = [Stage("one", f"{steps} steps", loss=loss)]
    trainer = StagedTrainer(model, args, train_dataset=Rows(rows), data_collator=Pad(), stages=stages)
    trainer.train()
    return trainer


def _weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("loss", [None, TaskLoss() + LogitNorm()])
def test_micro_batch_without_labels_contributes_zero(loss, tmp_path):
    def label(generator, ids):
        return [-100] * len(ids) if len(ids) != 6 else ids

    trainer = _train(tmp_path, tiny.llama(), text(label)(), loss, batch=1, accumulation=8, logging_steps=1)
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(logged) == 1
    assert 0 < logged[0] < 20
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("model", [tiny.llama, bert("BertForPreTraining")], ids=["llama", "two-heads"])
def test_update_without_labels_is_refused(model, tmp_path):
    model = model()
    before = _weights(model)
    rows = text(lambda g, ids: [-100] * len(ids))()
    rows = [{**row, "next_sentence_label": 0} for row in rows] if hasattr(model, "cls") else rows
    with pytest.raises(ValueError, match="TaskLoss: an update without a single item"):
        _train(tmp_path, model, rows)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@dataclass(frozen=True)
class Broken(Loss):
    """Wrong in the way that it is told to be."""

    how: str
    name = "Broken"

    def items(self, batch):
        return batch["labels"].shape[0]

    def __call__(self, student, teacher, batch, t):
        value = student.logits.sum()
        if self.how == "nan":
            return value * float("nan")
        if self.how == "inf in the first half" and batch["input_ids"][0, 0] > 0 and not hasattr(_seen, "done"):
            _seen.done = True
            return value * float("inf")
        return value.detach() if self.how == "no graph" else value * 0.0


class _Seen:
    pass


_seen = _Seen()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "Broken: its value is nan"),
        ("inf in the first half", "Broken: its value is (inf|-inf|nan)"),
        ("no graph", "Broken: its value has no graph"),
    ],
)
def test_broken_term_is_refused_before_the_step(how, message, tmp_path):
    _seen.__dict__.clear()
    model = tiny.llama()
    before = _weights(model)
    with pytest.raises(ValueError, match=message):
        _train(tmp_path, model, text(lambda g, ids: ids)(), TaskLoss() + 0.1 * Broken(how))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_zero_for_twenty_updates_is_refused(tmp_path):
    rows = text(lambda g, ids: ids)()
    _train(tmp_path / "19", tiny.llama(), rows, TaskLoss() + Broken("zero"), steps=19)
    _train(tmp_path / "off", tiny.llama(), rows, TaskLoss() + 0.0 * Broken("zero"), steps=21)
    with pytest.raises(ValueError, match="Broken: exactly zero for 20 updates although its weight is 1"):
        _train(tmp_path / "20", tiny.llama(), rows, TaskLoss() + Broken("zero"), steps=25)


def test_updates_at_weight_zero_are_not_counted_as_zeros(tmp_path):
    """A term that comes in late may be exactly zero in its first update (a hinge) without being broken."""
    rows = text(lambda g, ids: ids)()
    late = Step(((0, 0), (0.75, 1)))
    with pytest.raises(ValueError, match="exactly zero for 25 updates"):
        _train(tmp_path / "long", tiny.llama(), rows, TaskLoss() + late * Broken("zero"), steps=100)
    _train(tmp_path / "short", tiny.llama(), rows, TaskLoss() + late * Broken("zero"), steps=24)
