"""What a loss written by hand is a mean over is found by trial."""

from __future__ import annotations

import pytest
import torch
from transformers import PretrainedConfig, PreTrainedModel, Trainer
from transformers.modeling_outputs import TokenClassifierOutput

from hf_stages import Stage, StagedMixin, StagedTrainer
from hf_stages.losses import LogitKL, TaskLoss
from tests.support import tiny
from tests.workers.cases import Gradients, Pad, Rows, apart, arguments


def written(loss, *, zeros=False):
    """A model of the kind that people write themselves: one head over tokens, and a loss of its own."""

    class Config(PretrainedConfig):
        model_type = "written"

    class Written(PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.embed, self.head = torch.nn.Embedding(tiny.VOCAB, 8), torch.nn.Linear(8, 4)
            if zeros:
                torch.nn.init.zeros_(self.head.weight)
                torch.nn.init.zeros_(self.head.bias)

        def forward(self, input_ids=None, attention_mask=None, labels=None):
            logits = self.head(torch.tanh(self.embed(input_ids)))
            found = None if labels is None else loss(logits, labels, self.training)
            return TokenClassifierOutput(loss=found, logits=logits)

    return Written(Config(num_labels=4))


def each(logits, labels):
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def mean_of_rows(logits, labels, training):
    kept = labels.ne(-100)
    logs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -((logs * kept).sum(1) / kept.sum(1)).mean()


WRITTEN = {
    "a sum by rows": lambda logits, labels, training: each(logits, labels).sum() / len(labels),
    "a sum": lambda logits, labels, training: each(logits, labels).sum(),
    "rows of means": mean_of_rows,
}


def ragged():
    return [{"input_ids": list(range(5, 5 + n)), "labels": [i % 4 for i in range(n)]} for n in (2, 7, 3, 9, 4, 8, 6, 5)]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_loss_is_the_same_by_one_row_at_a_time(tmp_path, name, zeros):
    """Micro-batches of one row, as language models are often trained, give the same; so does a head of zeros."""

    def gradient(out, kind, **args):
        seen, model = Gradients(), written(WRITTEN[name], zeros=zeros)
        stages = {} if kind is Trainer else {"stages": [Stage("a", "1 steps")]}
        options = arguments(out, **args, **({"max_steps": 1} if kind is Trainer else {}))
        torch.manual_seed(0)
        for parameter in [p for p in model.parameters() if bool(p.any())]:
            torch.nn.init.normal_(parameter)
        kind(model, options, train_dataset=Rows(ragged()), data_collator=Pad(), callbacks=[seen], **stages).train()
        return seen.found

    whole = gradient(tmp_path / "plain", Trainer, per_device_train_batch_size=8)
    for rows in (1, 4):
        found = gradient(
            tmp_path / str(rows), StagedTrainer, per_device_train_batch_size=rows, gradient_accumulation_steps=8 // rows
        )
        assert apart(whole, found) < 1e-4, rows


def test_a_loss_of_training_alone_is_named(tmp_path, caplog):
    def loss(logits, labels, training):
        return each(logits, labels).mean() + (10 * logits.square().mean() if training else 0)

    trainer = StagedTrainer(
        written(loss), arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4),
        data_collator=Pad(), train_dataset=Rows(ragged()), stages=[Stage("a", "1 steps")],
    )  # fmt: skip
    trainer.train()
    assert "another one in training than in evaluation" in caplog.text


def by_source(tmp_path, loss):
    rows = [{**row, "source": "ab"[i % 2]} for i, row in enumerate(ragged())]
    return StagedTrainer(
        written(loss), arguments(tmp_path, per_device_train_batch_size=8, remove_unused_columns=False),
        train_dataset=Rows(rows), data_collator=Pad(),
        stages=[Stage("a", "1 steps", loss={"a": TaskLoss(), "b": TaskLoss()})],
    )  # fmt: skip


OTHERS = {
    "a sum": WRITTEN["a sum"],
    "rows of means": mean_of_rows,
    "class weights": lambda logits, labels, training: torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, weight=torch.tensor([1.0, 2.0, 5.0, 1.0])
    ),
    "a tenth": lambda logits, labels, training: 0.1 * mean_of_tokens(logits, labels, training),
    "smoothed": lambda logits, labels, training: torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, label_smoothing=0.3
    ),
}


def mean_of_tokens(logits, labels, training):
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)


@pytest.mark.parametrize("name", OTHERS)
def test_by_source_no_other_loss_takes_its_place(tmp_path, name):
    with pytest.raises(ValueError, match=r"stage 'a': TaskLoss by source is computed from the logits .* another loss"):
        by_source(tmp_path, OTHERS[name]).train()


def test_by_source_plain_cross_entropy_is_itself(tmp_path):
    by_source(tmp_path, mean_of_tokens).train()


class Sevenfold(Trainer):
    """A loss of its own, below the mixin."""

    def compute_loss(self, *args, **kwargs):
        found = super().compute_loss(*args, **kwargs)
        return (7 * found[0], found[1]) if isinstance(found, tuple) else 7 * found


class StagedSevenfold(StagedMixin, Sevenfold):
    pass


def test_a_loss_below_the_mixin_that_no_term_asks_is_named(tmp_path, caplog):
    args = arguments(tmp_path, per_device_train_batch_size=4)
    data = Rows(ragged())
    StagedSevenfold(
        written(mean_of_tokens), args, train_dataset=data, data_collator=Pad(), teacher=written(mean_of_tokens),
        stages=[Stage("a", "1 steps", loss=LogitKL())],
    ).train()  # fmt: skip
    assert "StagedSevenfold.compute_loss is not used" in caplog.text


def test_a_head_whose_targets_some_batches_lack_is_named(tmp_path, caplog):
    """Two heads in the first batch, one in a later one: evaluation goes on, and training says it."""

    class Two(type(written(mean_of_tokens))):
        def forward(self, input_ids=None, attention_mask=None, labels=None, kinds=None):
            logits = self.head(torch.tanh(self.embed(input_ids)))
            found = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)
            if bool(kinds.ge(0).any()):
                found = torch.nn.functional.cross_entropy(logits.mean(1), kinds) + found
            return TokenClassifierOutput(loss=found, logits=logits)

    rows = [{**row, "kinds": i % 4 if i % 4 < 2 else -100} for i, row in enumerate(ragged())]

    def collate(rows):
        batch = Pad()([{key: value for key, value in row.items() if key != "kinds"} for row in rows])
        return {**batch, "kinds": torch.tensor([row["kinds"] for row in rows])}

    args = arguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, per_device_eval_batch_size=2,
        remove_unused_columns=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    config = written(mean_of_tokens).config
    trainer = StagedTrainer(
        Two(config),
        args,
        train_dataset=Rows(rows),
        eval_dataset=Rows(rows),
        data_collator=collate,
        stages=[Stage("a", "2 steps")],
    )
    trainer.train()
    assert "the forward computes 1 losses in a batch where it computed 2" in caplog.text
