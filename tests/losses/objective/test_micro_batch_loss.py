"""A trainer's own ``compute_loss``, above or below the mixin, is the task's loss, however the batch is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import LogitKL, TaskLoss
from hf_stages.training.trainer import StagedMixin
from tests.support import tiny
from tests.workers.cases import Gradients, LogitNorm, Pad, Rows, apart, arguments, bert, classes, text, uneven

WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


def cross_entropy(outputs: Any, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs.logits, labels, **options)


class Doubled:
    """Calls what is below it."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (2 * loss, outputs) if return_outputs else 2 * loss


class Own:
    """As in transformers' documentation: takes the labels out, and divides by the items where it is told how many."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs, labels, reduction="mean" if num_items_in_batch is None else "sum")
        loss = 2 * loss if num_items_in_batch is None else 2 * loss / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


class Weighted:
    """By class: its mean is over weights."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = cross_entropy(outputs, inputs["labels"], weight=WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class Summed(Weighted):
    """Nothing divides it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = cross_entropy(outputs, inputs["labels"], reduction="sum")
        return (loss, outputs) if return_outputs else loss


class ByHand(Weighted):
    """A mean over rows of what stands in no loss function of torch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        each = -outputs.logits.log_softmax(-1).gather(-1, inputs["labels"].clamp(min=0)[..., None]).squeeze(-1)
        kept = inputs["labels"].ne(-100)
        loss = ((each * kept).sum(-1) / kept.sum(-1).clamp(min=1)).mean()
        return (loss, outputs) if return_outputs else loss


class Above(Doubled, StagedTrainer):
    pass


class AboveOwn(Own, StagedTrainer):
    pass


class Theirs(Doubled, Trainer):
    pass


class TheirsOwn(Own, Trainer):
    pass


class Below(StagedMixin, Theirs):
    pass


class BelowOwn(StagedMixin, TheirsOwn):
    pass


def update(out, kind, batch=8, accumulation=1, *, model=None, rows=None, loss=None, **options) -> tuple[dict, Any]:
    """The gradient of one update over the same eight rows."""
    seen = Gradients()
    args = arguments(out, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    trainer = kind(
        (model or bert())(), args, train_dataset=Rows((rows or text(classes))()), data_collator=Pad(), callbacks=[seen],
        stages=[Stage("one", "1 steps", loss=loss)], **options,
    )  # fmt: skip
    trainer.train()
    return seen.found, trainer


def plain(out, kind, *, model=None, rows=None) -> dict:
    seen = Gradients()
    args = arguments(out, per_device_train_batch_size=8, max_steps=1)
    kind(
        (model or bert())(),
        args,
        train_dataset=Rows((rows or text(classes))()),
        data_collator=Pad(),
        callbacks=[seen],
    ).train()
    return seen.found


@pytest.mark.parametrize("kind", [Above, AboveOwn, Below, BelowOwn])
def test_an_override_is_the_tasks_loss_however_the_batch_is_cut(kind, tmp_path):
    wanted = plain(tmp_path / "plain", Theirs if kind in (Above, Below) else TheirsOwn)
    whole, _ = update(tmp_path / "8", kind)
    cut, _ = update(tmp_path / "2x4", kind, 2, 4)
    assert apart(whole, wanted) < 1e-5
    assert apart(cut, wanted) < 1e-5


@pytest.mark.parametrize("own", [Weighted, Summed, ByHand])
def test_an_override_divides_by_what_it_likes(own, tmp_path):
    given = {"model": tiny.llama, "rows": text(uneven)} if own is ByHand else {}
    wanted = plain(tmp_path / "plain", type("Theirs", (own, Trainer), {}), **given)
    for batch, accumulation in ((8, 1), (2, 4)):
        found, _ = update(tmp_path / str(batch), type("Mine", (own, StagedTrainer), {}), batch, accumulation, **given)
        assert apart(found, wanted) < 1e-5


def test_the_look_at_the_first_batch_leaves_the_trainers_counters_alone(tmp_path):
    class Counts(StagedTrainer):
        calls = 0

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            self.calls += 1
            self.__dict__.setdefault("seen", {"modes": []})["modes"].append(model.training)
            return super().compute_loss(model, inputs, return_outputs)

    trainer = update(tmp_path, Counts, 2, 4)[1]
    assert (trainer.calls, trainer.seen["modes"]) == (4, [True] * 4)


def test_an_override_set_on_the_object_is_the_tasks_loss(tmp_path):
    class Monkeyed(StagedTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.compute_loss = lambda model, inputs, **kwargs: Own.compute_loss(self, model, inputs, **kwargs)

    found, trainer = update(tmp_path / "a", Monkeyed, 2, 4)
    assert apart(found, plain(tmp_path / "b", TheirsOwn)) < 1e-5
    assert trainer.compute_loss.__name__ == "<lambda>"  # as it was


def test_a_language_models_override_is_weighed_by_labels(tmp_path):
    wanted = plain(tmp_path / "plain", Theirs, model=tiny.llama, rows=text(uneven))
    found, _ = update(tmp_path / "2x4", Above, 2, 4, model=tiny.llama, rows=text(uneven))
    assert apart(found, wanted) < 1e-5


@pytest.mark.parametrize("kind", [AboveOwn, Below])
def test_a_teachers_term_adds_to_an_override(kind, tmp_path):
    teacher, loss = bert(num_hidden_layers=4)(), LogitKL(2.0)
    both, trainer = update(tmp_path / "both", kind, 2, 4, loss=TaskLoss() + loss, teacher=teacher)
    task, _ = update(tmp_path / "task", kind)
    kl, _ = update(tmp_path / "kl", StagedTrainer, loss=loss, teacher=teacher)
    assert apart(both, {name: kl[name] + task[name] for name in kl}) < 1e-5
    assert {"loss_TaskLoss", "loss_LogitKL"} <= trainer.state.log_history[0].keys()


def test_without_a_task_loss_an_override_is_not_used_and_the_log_says_so(tmp_path, caplog):
    teacher = bert(num_hidden_layers=4)()
    found, _ = update(tmp_path / "a", AboveOwn, loss=LogitKL(), teacher=teacher)
    kl, _ = update(tmp_path / "b", StagedTrainer, loss=LogitKL(), teacher=teacher)
    assert apart(found, kl) < 1e-6
    assert "AboveOwn.compute_loss is not used" in caplog.text


def test_evaluation_takes_the_override_too(tmp_path):
    rows = text(classes)()
    losses = []
    for batch in (8, 3):
        args = arguments(tmp_path / str(batch), per_device_eval_batch_size=batch)
        trainer = AboveOwn(bert()(), args, eval_dataset=Rows(rows), data_collator=Pad(), train_dataset=Rows(rows),
                           stages=[Stage("one", "1 steps")])  # fmt: skip
        losses.append(trainer.evaluate()["eval_loss"])
    batch = Pad()(rows)
    labels = batch.pop("labels")
    expected = 2 * cross_entropy(bert()().eval()(**batch), labels).item()
    assert losses == pytest.approx([expected] * 2, rel=1e-5)


def test_an_override_that_needs_a_count_is_refused_with_the_reason(tmp_path):
    class Divides(StagedTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            return cross_entropy(model(**inputs), labels, reduction="sum") / num_items_in_batch

    with pytest.raises(ValueError, match=r"Divides.compute_loss: it fails where num_items_in_batch is None"):
        update(tmp_path, Divides)


def test_an_override_that_gives_no_outputs_is_refused_where_they_are_read(tmp_path):
    class Bare(StagedTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs).loss

    found, _ = update(tmp_path / "a", Bare, 2, 4)
    assert apart(found, update(tmp_path / "b", StagedTrainer)[0]) < 1e-5
    taught = {"loss": TaskLoss() + LogitKL()}  # its logits are seen in its forward
    found, _ = update(tmp_path / "c", Bare, 2, 4, teacher=bert(num_hidden_layers=4)(), **taught)
    assert apart(found, update(tmp_path / "d", StagedTrainer, teacher=bert(num_hidden_layers=4)(), **taught)[0]) < 1e-5
    with pytest.raises(ValueError, match=r"Bare.compute_loss: .* expected \(loss, outputs\), got Tensor"):
        update(tmp_path / "e", Bare, loss=TaskLoss() + LogitNorm())
