"""What a teacher reads beside its student: its own columns go to it alone, and the student keeps all that it takes."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import DistilBertConfig, DistilBertForSequenceClassification, Trainer, TrainingArguments

from hf_stages import Stage, StagedMixin, StagedTrainer
from hf_stages.losses import LogitKL
from tests.support import tiny

ROWS = tiny.class_data(16, 6)


class FewColumns(Trainer):
    """Lists what its collator reads of a dataset, as trainers do whose collators make masks and positions."""

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels"]


class StagedFewColumns(StagedMixin, FewColumns):
    pass


def padded(rows):
    """Of several lengths, so that the mask says something."""
    lengths = [6 - i % 3 for i in range(len(rows))]
    ids = torch.tensor([row["input_ids"] for row in rows])
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    types = (
        {"token_type_ids": torch.tensor([row["token_type_ids"] for row in rows])} if "token_type_ids" in rows[0] else {}
    )
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.tensor([row["labels"] for row in rows]),
        **types,
    }


def trained(kind, out, student, rows=ROWS, **changes):
    args = TrainingArguments(
        str(out), per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        **{"learning_rate": 1e-2, **changes},
    )  # fmt: skip
    given = []
    student.register_forward_pre_hook(lambda module, args, kwargs: given.append(set(kwargs)), with_kwargs=True)
    stages = [Stage("a", "3 steps", loss=LogitKL())]
    trainer = kind(student, args, train_dataset=rows, data_collator=padded, teacher=tiny.bert(1), stages=stages)
    trainer.probe_teacher = False
    trainer.train()
    return trainer.model.state_dict(), given


def test_a_trainer_that_lists_few_columns_keeps_masks(tmp_path):
    few, given = trained(StagedFewColumns, tmp_path / "a", tiny.bert())
    whole, _ = trained(StagedTrainer, tmp_path / "b", tiny.bert())
    assert all("attention_mask" in names for names in given)
    assert all(torch.equal(few[name], whole[name]) for name in whole)


@pytest.mark.parametrize("removed", [True, False])
def test_token_types_are_the_teachers_alone(tmp_path, removed):
    """Whether or not Trainer drops columns that the student does not take."""
    config = DistilBertConfig(vocab_size=tiny.VOCAB, dim=32, hidden_dim=64, n_layers=1, n_heads=2, num_labels=3)
    torch.manual_seed(0)
    typed = Dataset.from_list([{**row, "token_type_ids": [0, 0, 0, 1, 1, 1]} for row in ROWS])
    first = DistilBertForSequenceClassification(config)
    found, given = trained(StagedTrainer, tmp_path / "a", first, typed, remove_unused_columns=removed)
    assert not any("token_type_ids" in names for names in given)
    torch.manual_seed(0)
    other, _ = trained(StagedTrainer, tmp_path / "b", DistilBertForSequenceClassification(config), ROWS)
    assert any(not torch.equal(found[name], other[name]) for name in found)  # the teacher read them
