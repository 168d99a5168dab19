"""Teachers: what they run, what they leave alone, and what is refused before the first step."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers as tf

from hf_stages import Recipe, Stage, StagedTrainer
from hf_stages.data.source import Source
from hf_stages.losses import AttentionKL, AttentionMSE, HiddenMSE, LogitKL, TaskLoss
from hf_stages.models.signals import Head
from hf_stages.teachers.live import LiveTeacher
from hf_stages.transforms import AddLora
from tests.losses import outside_trainer
from tests.support import tiny
from tests.workers.cases import Gradients, Pad, Rows, arguments, bert, text, uneven

CPU = torch.device("cpu")


def _trainer(out, model, stages, teacher=None, callbacks=(), **changes):
    args = arguments(out, per_device_train_batch_size=4, **changes)
    rows = Rows(text(uneven)())
    return StagedTrainer(
        model, args, train_dataset=rows, data_collator=Pad(), stages=stages, teacher=teacher, callbacks=list(callbacks)
    )


def _counted(modules):
    calls: list[int] = []
    handles = [m.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, m in enumerate(modules)]
    return calls, handles


@pytest.mark.parametrize(
    ("needs", "ran"),
    [
        ({"hidden.2"}, [0, 1]),
        ({"attention.3"}, [0, 1, 2]),
        ({"hidden.0"}, []),
        ({"hidden.4", "attention.1"}, [0, 1, 2, 3]),
    ],
)
def test_runs_no_further_than_it_must(needs, ran):
    model = tiny.llama(num_hidden_layers=4)
    calls, _ = _counted(model.model.layers)
    head, _ = _counted([model.lm_head])
    teacher = LiveTeacher(model, frozenset(needs), CPU)
    signals = teacher({**outside_trainer.text(), "labels": outside_trainer.text()["input_ids"]})
    assert set(signals.captured) == needs
    assert calls == ran
    assert head == []
    teacher.remove()
    assert len(model(**outside_trainer.text()).logits[0]) == 11


def test_needs_of_two_stacks_end_where_the_last_of_them_is_met():
    model = outside_trainer.t5()
    calls, _ = _counted([*model.encoder.block, *model.decoder.block])
    teacher = LiveTeacher(model, frozenset({"encoder.hidden.2", "decoder.attention.1"}), CPU)
    assert len(teacher(outside_trainer.pairs_of_text()).captured) == 2
    assert calls == [0, 1, 2]


def test_is_evaluated_and_without_gradient_whatever_was_set():
    model = tiny.llama(attention_dropout=0.5)
    teacher = LiveTeacher(model, frozenset({"hidden.2"}), CPU)
    model.train()
    first, second = (teacher(outside_trainer.text())["hidden.2"] for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(p.requires_grad for p in model.parameters())


# ---- the student's own base ----------------------------------------------------------------------------------------


LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "dropout": 0.3}
LOSSES = {
    "features": HiddenMSE({1: 1, 2: 2}) + AttentionKL({2: 2}),
    "logits": TaskLoss() + LogitKL(2.0),
    "final": LogitKL(2.0),
}


def _with_lora(targets=()):
    model = AddLora(**{**LORA, "target_modules": [*LORA["target_modules"], *targets]})(
        tiny.llama(attention_dropout=0.2)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4)
    return model


@pytest.mark.parametrize("targets", [(), ("lm_head",)])
@pytest.mark.parametrize("name", LOSSES)
def test_base_teaches_as_a_copy_of_it_would(name, targets, tmp_path):
    """Bit for bit, with dropout in the student: the base's forward disturbs no random number and no adapter."""
    found = []
    for teacher in ("base", copy.deepcopy(_with_lora(targets)).unload()):
        seen_by, model = Gradients(), _with_lora(targets)
        trained = {n: p.requires_grad for n, p in model.named_parameters()}
        stages = [Stage("one", "2 steps", loss=LOSSES[name], teacher=teacher)]
        trainer = _trainer(tmp_path / str(len(found)), model, stages, callbacks=[seen_by])
        trainer.train()
        assert trained == {n: p.requires_grad for n, p in trainer.model.named_parameters()}
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        found.append((losses, seen_by.found, {n: p.detach() for n, p in trainer.model.named_parameters()}))
    (losses, gradients, weights), (other_losses, other_gradients, other_weights) = found
    # A copy's head is applied in chunks; one with an adapter must be run at once, while the adapter is off.
    exact = {"rtol": 0, "atol": 0} if not targets else {"rtol": 1e-4, "atol": 1e-6}
    assert losses == pytest.approx(other_losses, rel=exact["rtol"], abs=exact["atol"])
    assert max(losses) > 0
    torch.testing.assert_close(gradients, other_gradients, **exact)
    torch.testing.assert_close(weights, other_weights, **exact)


# ---- a head that is left to the losses -----------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny.llama, outside_trainer.capped, outside_trainer.cohere, outside_trainer.granite])
def test_loss_is_the_same_whether_or_not_the_head_is_left_to_it(build):
    student, teacher = (m.eval() for m in outside_trainer.two(build))
    labels = outside_trainer.text()["input_ids"].masked_fill(outside_trainer.text()["attention_mask"] == 0, -100)
    batch = {**outside_trainer.text(), "labels": labels}
    mine, theirs = ((m(**outside_trainer.text()).logits[:, :-1] / 2).log_softmax(-1) for m in (student, teacher))
    kept = labels[:, 1:].ne(-100)
    wanted = (4 * (theirs.exp() * (theirs - mine)).sum(-1) * kept).sum() / kept.sum()
    for defer in (True, False):
        found = outside_trainer.value(LogitKL(2.0), student, teacher, batch, defer=defer)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    gradients = [torch.autograd.grad(v, list(student.parameters())) for v in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "left"), [(tiny.llama, True), (outside_trainer.capped, False), (outside_trainer.cohere, False)]
)
@pytest.mark.parametrize("zero", [False, True])
def test_whether_a_head_may_be_left_is_asked_of_the_model(build, left, zero):
    """Not of its weights: with a head of zeros a soft cap changes nothing yet."""
    model = build()
    if zero:
        torch.nn.init.zeros_(model.lm_head.weight)
    model.train()
    before = torch.get_rng_state()
    signals = LiveTeacher(model, frozenset({"final"}), CPU)(outside_trainer.text())
    assert isinstance(signals.final, Head) is left
    assert torch.equal(torch.get_rng_state(), before)
    shown = signals.final.module(signals.final.hidden) if left else signals.final
    torch.testing.assert_close(shown, model(**outside_trainer.text()).logits)


@pytest.mark.parametrize(("loss", "tokens"), [(HiddenMSE(), 1), (LogitKL(), 1), (TaskLoss() + HiddenMSE(), 11)])
def test_student_runs_its_head_on_one_token(loss, tokens, tmp_path):
    student, teacher = outside_trainer.two(tiny.llama)
    entered = []

    class Note(tf.TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            model.lm_head.register_forward_pre_hook(lambda m, a: entered.append(a[0].shape[-2]) if m.training else None)

    _trainer(tmp_path, student, [Stage("one", "1 steps", loss=loss)], teacher, [Note()]).train()
    assert entered
    # Rows of four come one after another; LogitKL itself runs the head, later, over flat tokens that count.
    assert entered[0] == 1 if tokens == 1 else entered[0] >= 7


# ---- what is refused -----------------------------------------------------------------------------------------------


def _resnet():
    config = tf.ResNetConfig(num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    return tf.ResNetForImageClassification(config)


def _mamba():
    return tf.MambaForCausalLM(tf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))


REFUSED = {
    "no teacher": (tiny.llama, HiddenMSE(), None, "its loss compares with a teacher, but there is none"),
    "too deep": (tiny.llama, HiddenMSE({5: 1}), tiny.llama, "student layer 5: expected 0 .* to 2"),
    "too deep a teacher": (tiny.llama, AttentionMSE({1: 9}), tiny.llama, "teacher layer 9: expected 1 to 2"),
    "deeper student": (lambda: tiny.llama(num_hidden_layers=4), HiddenMSE(), tiny.llama, "at least as deep"),
    "no attention": (_resnet, AttentionMSE(), _resnet, "ResNetForImageClassification"),
    "widths": (tiny.llama, HiddenMSE(), lambda: tiny.llama(hidden_size=48), "project="),
    "heads": (tiny.llama, AttentionKL(), lambda: tiny.llama(num_attention_heads=2), "use AttentionRelation"),
    "two stacks": (tiny.t5, HiddenMSE(), tiny.t5, "say which: stack= one of 'encoder', 'decoder'"),
    "no such stack": (tiny.t5, HiddenMSE(stack="text"), tiny.t5, "expected stack= one of 'encoder', 'decoder'"),
    "one stack": (tiny.llama, AttentionKL(stack="encoder"), tiny.llama, "leave stack out"),
    "no adapter": (tiny.llama, HiddenMSE(), lambda: "base", "has no adapter"),
    "no heads": (_mamba, AttentionKL(), _mamba, "MambaForCausalLM has no attention heads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_first_step(name, tmp_path):
    build, loss, teacher, message = REFUSED[name]
    trainer = _trainer(tmp_path, build(), [Stage("one", "1 steps", loss=loss, teacher=teacher() if teacher else None)])
    with pytest.raises(ValueError, match=f"stage 'one'.*{message}"):
        trainer.plan()


def test_shared_weights_are_refused(tmp_path):
    student, teacher = tiny.llama(), tiny.llama(1)
    teacher.model.layers[0] = student.model.layers[0]
    with pytest.raises(ValueError, match=r"it shares weights with the student, such as model\.layers\.0"):
        _trainer(tmp_path, student, [Stage("one", "1 steps", loss=HiddenMSE())], teacher).plan()
    with pytest.raises(ValueError, match="it is the model that is trained"):
        _trainer(tmp_path, student, [Stage("one", "1 steps", loss=HiddenMSE())], student).plan()


def test_base_that_trains_is_refused(tmp_path):
    model = _with_lora()
    model.get_base_model().lm_head.weight.requires_grad_(True)
    trainer = _trainer(tmp_path, model, [Stage("one", "1 steps", loss=HiddenMSE(), teacher="base")])
    with pytest.raises(ValueError, match=r"'one'.*lm_head.weight.*trains"):
        trainer.plan()


@pytest.mark.parametrize("teacher", [7, object()])
def test_what_is_no_teacher_is_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match="stage 'one': teacher: expected a model"):
        _trainer(tmp_path, tiny.llama(), [Stage("one", "1 steps", loss=HiddenMSE())], teacher).plan()


def test_the_runs_teacher_may_be_its_first_stage(tmp_path):
    stages = [Stage("first", "1 steps"), Stage("second", "1 steps", loss=HiddenMSE(), parents=())]
    assert _trainer(tmp_path, tiny.llama(), stages, "stage:first").plan()["second"].teaching.teacher == "stage first"
    with pytest.raises(ValueError, match="stage 'one': teacher: expected a model, 'base' or an earlier stage"):
        _trainer(tmp_path, tiny.llama(), [Stage("one", "1 steps", loss=HiddenMSE())], "stage:one").plan()


def test_a_distance_is_not_best_where_it_is_greatest(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_HiddenMSE", "eval_strategy": "steps"}
    stage = Stage(
        "one", "1 steps", loss=HiddenMSE(), eval_dataset=tiny.lm_data(4), args={**best, "save_strategy": "steps"}
    )
    with pytest.raises(ValueError, match=r"'one': metric_for_best_model='eval_HiddenMSE': it is a distance.*=False"):
        _trainer(tmp_path, tiny.llama(), [stage], tiny.llama(1)).plan()
    stage = dataclasses.replace(stage, args={**stage.args, "greater_is_better": False})
    _trainer(tmp_path, tiny.llama(), [stage], tiny.llama(1)).plan()


def test_the_teacher_reads_columns_that_the_student_does_not_take(tmp_path):
    config = tf.DistilBertConfig(vocab_size=tiny.VOCAB, dim=32, hidden_dim=64, n_layers=2, n_heads=4, num_labels=3)
    student, teacher, read, given = tf.DistilBertForSequenceClassification(config), tiny.bert(1), [], []
    teacher.register_forward_pre_hook(lambda m, a, kw: read.append(kw.get("token_type_ids")), with_kwargs=True)
    student.register_forward_pre_hook(lambda m, a, kw: given.append("token_type_ids" in kw), with_kwargs=True)
    data = tiny.class_data(8).add_column("token_type_ids", [[0] * 8 + [1] * 8] * 8)
    args = arguments(tmp_path, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1)
    for name, loss in {"one": LogitKL() + TaskLoss(), "two": LogitKL() + HiddenMSE(), "three": TaskLoss()}.items():
        stages = [Stage(name, "1 steps", loss=loss), Stage("last", "1 steps")]
        args.output_dir = str(tmp_path / name)
        trainer = StagedTrainer(student, args, train_dataset=data, eval_dataset=data, teacher=teacher, stages=stages)
        trainer.train()
    trainer.evaluate()
    assert len(read) > 4
    assert all(types is not None and types.sum(-1).eq(8).all() for types in read)
    assert not any(given)


def test_a_teacher_is_given_back_as_it_was(tmp_path):
    student, teacher = bert()(), bert(num_hidden_layers=4)().train()
    teacher.bert.embeddings.requires_grad_(False)
    before = {name: p.requires_grad for name, p in teacher.named_parameters()}
    rows = Rows(text(lambda g, ids: ids[0] % 3)())
    StagedTrainer(
        student, arguments(tmp_path), train_dataset=rows, data_collator=Pad(), teacher=teacher,
        stages=[Stage("a", "1 steps", loss=HiddenMSE())],
    ).train()  # fmt: skip
    assert teacher.training
    assert {name: p.requires_grad for name, p in teacher.named_parameters()} == before


def test_a_recipes_own_teacher_data_and_collator_are_taken(tmp_path):
    rows = Rows(text(lambda g, ids: ids[0] % 3)())
    recipe = Recipe(
        [Stage("a", "1 steps", loss=HiddenMSE())],
        teacher=bert(num_hidden_layers=4)(),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=Pad(),
        compute_metrics=lambda prediction: {"rows": len(prediction.label_ids)},
    )
    trainer = StagedTrainer(bert()(), arguments(tmp_path), recipe=recipe)
    trainer.train()
    assert trainer.evaluate()["eval_rows"] == 8
    other = Pad(2)
    assert StagedTrainer(bert()(), arguments(tmp_path), other, recipe=recipe).data_collator is other
    with pytest.raises(ValueError, match="train_dataset is to be loaded"):
        StagedTrainer(bert()(), arguments(tmp_path), recipe=Recipe(recipe.stages, train_dataset=Source("data.json")))
