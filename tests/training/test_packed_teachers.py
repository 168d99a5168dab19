"""Distillation on packed rows: every loss and gradient that a teacher gives is that of padded rows."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.data import CompletionOnly, Lengths, Packed
from hf_stages.losses import AttentionKL, AttentionMSE, AttentionRelation, HiddenMSE, LogitKL
from hf_stages.planning.collator_checks import check_teacher
from hf_stages.teachers.cache_reader import CacheReader
from tests.support import tiny

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ROWS = [[(7 * i + 3 * j) % 28 + 3 for j in range(n)] for i, n in enumerate([5, 9, 3, 7, 12, 2, 4, 6])]


def bert():
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=tiny.VOCAB,
            max_position_embeddings=64,
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            **SHAPE,
        )
    )


def apart(model, seed=1):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return model


def trained(out, make, loss, collator, attention="sdpa", **changes):
    teacher, student = make(), apart(make())
    for model in (teacher, student):
        model.set_attn_implementation(attention)
    teacher = copy.deepcopy(teacher)  # with a config of its own
    teacher.config.use_cache = before = hasattr(teacher.config, "use_cache")
    args = TrainingArguments(
        str(out),
        per_device_train_batch_size=8,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    rows = Dataset.from_list([{"input_ids": row, "labels": row} for row in ROWS])
    trainer = StagedTrainer(
        student, args, train_dataset=rows, data_collator=collator, processing_class=tiny.tokenizer(),
        stages=[Stage("a", "1 steps", loss=loss)], **{"teacher": teacher, **changes},
    )  # fmt: skip
    trainer.train()
    assert teacher.config.use_cache == before, "the teacher came back changed"
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return weights, next(log["loss"] for log in trainer.state.log_history if "loss" in log)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [tiny.llama, bert], ids=["llama", "bert"])
@pytest.mark.parametrize("loss", [LogitKL, HiddenMSE, AttentionMSE, AttentionKL, AttentionRelation])
def test_packed_rows_teach_what_padded_ones_do(make, loss, attention, tmp_path):
    packed, value = trained(tmp_path / "packed", make, loss(), Packed(24), attention)
    padded, wanted = trained(tmp_path / "padded", make, loss(), Lengths(24), attention)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert wanted > 1e-3
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_is_told_otherwise_is_refused(tmp_path):
    teacher = bert()
    teacher.set_attn_implementation("eager")  # adds what it is given to its scores: true and false are 1 and 0
    with pytest.raises(
        ValueError, match=r"stage 'a': teacher: Packed: in BertForMaskedLM one packed example sees another"
    ):
        trained(tmp_path, bert, HiddenMSE(), Packed(24), teacher=teacher)


def test_found_inside_another_collator_and_not_with_a_cache():
    student = bert()
    packed = Packed(24).build(tiny.tokenizer(), student)
    check_teacher(CompletionOnly(collator=packed), SimpleNamespace(model=bert()), "")
    check_teacher(Lengths(24), object.__new__(CacheReader), "")
    with pytest.raises(ValueError, match="a cached teacher is looked up by the row"):
        check_teacher(CompletionOnly(collator=packed), object.__new__(CacheReader), "")
