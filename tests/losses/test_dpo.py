"""DPO against its formula in a few lines, against TRL's where that is installed, and as the last of several stages."""

from __future__ import annotations

import json
import types

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.data import Preferences
from hf_stages.losses import DPO, TaskLoss
from hf_stages.models.signals import Head
from tests.support import tiny

ROWS = [
    {"prompt": "one and one is ", "chosen": "two", "rejected": "eleven"},
    {"prompt": "say hi: ", "chosen": "hi", "rejected": "no"},
    {"prompt": "", "chosen": "yes", "rejected": "a much longer answer than the other one"},
    {"prompt": "again ", "chosen": "and again", "rejected": "never"},
]


def batch_of(rows=ROWS, **options):
    return Preferences(**options).build(tiny.tokenizer())(rows)


def seen(logits):
    return types.SimpleNamespace(final=logits)


def log_probabilities(logits, labels):
    found = []
    for row, targets in zip(logits.double(), labels, strict=True):
        scores = row.log_softmax(-1)
        found.append(sum(scores[i - 1, t] for i, t in enumerate(targets.tolist()) if i and t != -100))
    return torch.stack(found)


def expected(student, teacher, labels, beta=0.1, smoothing=0.0):
    total = 0.0
    mine, theirs = log_probabilities(student, labels), log_probabilities(teacher, labels)
    for i in range(0, len(labels), 2):
        z = beta * ((mine[i] - theirs[i]) - (mine[i + 1] - theirs[i + 1]))
        total = total - (1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [2**25, 300])
def test_equals_the_formula(smoothing, chunk, monkeypatch):
    monkeypatch.setattr("hf_stages.losses.dpo._CHUNK", chunk)
    batch, draw = batch_of(), torch.Generator().manual_seed(1)
    shape = (*batch["labels"].shape, 259)
    student = torch.randn(shape, generator=draw).requires_grad_()
    teacher = torch.randn(shape, generator=draw)
    loss = DPO(beta=0.3, label_smoothing=smoothing)
    got, told = loss(seen(student), seen(teacher), batch, 0.5)
    wanted = expected(student, teacher, batch["labels"], 0.3, smoothing)
    gains = 0.3 * (log_probabilities(student, batch["labels"]) - log_probabilities(teacher, batch["labels"]))
    ahead = gains[::2] - gains[1::2]
    right = torch.stack([(ahead > 0).sum(), ahead.sum(), gains[::2].sum(), gains[1::2].sum()])
    torch.testing.assert_close(told.double(), right.detach().double(), rtol=1e-5, atol=1e-5)
    assert 0 < told[0] < len(ROWS)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    (found,), (right,) = torch.autograd.grad(got, student), torch.autograd.grad(wanted, student)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)
    assert loss.items(batch) == len(ROWS)


def test_a_head_and_a_curve_equal_the_formula():
    batch, head, draw = batch_of(), torch.nn.Linear(8, 259), torch.Generator().manual_seed(0)
    hidden = torch.randn(*batch["labels"].shape, 8, generator=draw)
    other = torch.randn(*batch["labels"].shape, 259, generator=draw)
    got, _ = DPO(beta=Linear(0.1, 0.5))(seen(Head(hidden, head)), seen(other), batch, 0.5)
    wanted = expected(head(hidden), other, batch["labels"], 0.3)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    for found, right in zip(
        torch.autograd.grad(got, head.parameters()), torch.autograd.grad(wanted, head.parameters()), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)


def test_equals_trl(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    tokenizer, model, reference = tiny.tokenizer(), tiny.llama(vocab_size=259), tiny.llama(vocab_size=259, seed=1)
    args = trl.DPOConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, beta=0.3, per_device_train_batch_size=4
    )
    theirs = trl.DPOTrainer(model, reference, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
    batch = next(iter(theirs.get_train_dataloader()))
    wanted = theirs.compute_loss(model, batch)
    ours = batch_of()
    with torch.no_grad():
        teacher = reference(**{k: ours[k] for k in ("input_ids", "attention_mask")}).logits
    student = model(**{k: ours[k] for k in ("input_ids", "attention_mask")}).logits
    got = DPO(beta=0.3)(seen(student), seen(teacher), ours, 0.0)[0] / len(ROWS)
    torch.testing.assert_close(got, wanted.to(got.dtype), rtol=1e-4, atol=1e-5)


def run(out, batch, accumulate=1):
    args = TrainingArguments(
        output_dir=str(out),
        report_to="none",
        use_cpu=True,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim="sgd",
        logging_steps=1,
        max_grad_norm=0.0,
    )
    ids = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 4
    stages = [
        Stage("tools", "1 steps", train_dataset=ids, loss=TaskLoss()),
        Stage(
            "preferences",
            "3 steps",
            train_dataset=ROWS,
            data_collator=Preferences(),
            loss=DPO(beta=0.5),
            teacher="stage:tools",
        ),
    ]
    trainer = StagedTrainer(tiny.llama(vocab_size=259), args, stages=stages, processing_class=tiny.tokenizer())
    trainer.train()
    logs = [log for log in trainer.state.log_history if log.get("stage") == 2 and "loss" in log]
    return trainer, logs


def test_dpo_trains_as_a_stage(tmp_path):
    """It begins at log 2, since student and reference are one; and falls. Cut otherwise, it is the same."""
    trainer, logs = run(tmp_path / "a", 4)
    losses = [log["loss"] for log in logs]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses[-1] < losses[0] - 0.01
    assert logs[0]["DPO_margin"] == pytest.approx(0, abs=1e-5)
    assert logs[-1]["DPO_margin"] > 0.02
    assert logs[-1]["DPO_margin"] == pytest.approx(logs[-1]["DPO_chosen"] - logs[-1]["DPO_rejected"], abs=1e-4)
    assert 0.5 < logs[-1]["DPO_accuracy"] <= 1
    assert "loss_DPO" not in logs[0]  # the only term is the loss itself
    other, again = run(tmp_path / "b", 2, accumulate=2)
    for name in ("loss", "DPO_accuracy", "DPO_margin", "DPO_chosen", "DPO_rejected"):
        assert [log[name] for log in again] == pytest.approx([log[name] for log in logs], abs=1e-4)
    for one, two in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_earlier_domains_are_measured_without_it(tmp_path):
    """Their rows are no pairs: an odd number of them, too, has its loss and no DPO."""
    ids = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 3
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, per_device_eval_batch_size=3)
    stages = [
        Stage("tools", "1 steps", train_dataset=ids, eval_dataset=ids),
        Stage(
            "preferences",
            "1 steps",
            train_dataset=ROWS,
            eval_dataset=ROWS,
            data_collator=Preferences(),
            loss=DPO(),
            teacher="stage:tools",
        ),
    ]
    StagedTrainer(tiny.llama(vocab_size=259), args, stages=stages, processing_class=tiny.tokenizer()).train()
    domains = json.loads((tmp_path / "02-preferences" / "stage.json").read_text())["domains"]
    assert domains["preferences"].keys() >= {"DPO", "DPO_accuracy", "DPO_margin"}
    assert domains["tools"].keys() >= {"loss", "items"}
    assert "DPO" not in domains["tools"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda: DPO(beta=0), "beta: expected more than 0"),
        (lambda: DPO(beta=Linear(0.1, -1)), "beta: expected more than 0"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing: expected"),
        (lambda: DPO().items({"labels": torch.zeros(3, 4)}), "pairs of rows"),
        (lambda: DPO().items({"input_ids": torch.zeros(2, 4)}), "only input_ids"),
        (lambda: DPO().for_models(tiny.bert(), None), "causal language model"),
    ],
)
def test_what_cannot_work_is_refused(what, words):
    with pytest.raises(ValueError, match=words):
        what()
