"""Teachers that number tokens or classes otherwise are refused before the first step; untrained ones are not."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import HiddenMSE, LogitKL
from hf_stages.planning.teacher_agreement import check_tokenizers, wrong_order, wrong_tokens
from hf_stages.teachers.declared import Teacher
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")


def args_for(out, **changes):
    return TrainingArguments(
        str(out), report_to="none", use_cpu=True, disable_tqdm=True, per_device_train_batch_size=16, save_strategy="no",
        **{"learning_rate": 1e-2, **changes},
    )  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A teacher that has learned what ``tiny.class_data`` asks."""
    model = tiny.bert()
    Trainer(model, args_for(tmp_path_factory.mktemp("t"), max_steps=120), train_dataset=tiny.class_data(512)).train()
    return model


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A teacher that counts: each token is the one before it and one more."""
    model = tiny.llama()
    Trainer(model, args_for(tmp_path_factory.mktemp("t"), max_steps=60), train_dataset=counting()).train()
    return model


def counting(step: int = 1):
    rows = [[3 + (start + step * i) % 61 for i in range(16)] for start in range(64)]
    return tiny.lm_data(64).map(lambda row, i: {"input_ids": rows[i], "labels": rows[i]}, with_indices=True)


def distil(out, student, teacher, data, loss=None, **kwargs):
    stages = [Stage("kd", "1 steps", loss=loss or LogitKL())]
    return StagedTrainer(student, args_for(out), stages=stages, teacher=teacher, train_dataset=data, **kwargs)


def renumbered(row):
    return {"labels": (2, 0, 1)[row["labels"]]}


def test_another_label_order_is_refused_and_named(classifier, tmp_path):
    data = tiny.class_data(512, seed=1).map(renumbered)
    trainer = distil(tmp_path, tiny.bert(1), classifier, data)
    with pytest.raises(ValueError, match="stage 'kd': teacher: the teacher's class 0 seems to be the data's class 2"):
        trainer.train()
    trainer = distil(tmp_path / "anyway", tiny.bert(1), classifier, data)
    trainer.probe_teacher = False
    trainer.train()
    distil(tmp_path / "features", tiny.bert(1), classifier, data, loss=HiddenMSE()).train()


def test_the_right_order_and_untrained_teachers_pass(classifier, tmp_path):
    distil(tmp_path / "right", tiny.bert(1), classifier, tiny.class_data(512, seed=1)).train()
    distil(tmp_path / "untrained", tiny.bert(1), tiny.bert(2), tiny.class_data(512, seed=1)).train()


def test_other_tokens_are_refused(language_model, tmp_path):
    with pytest.raises(ValueError, match="the teacher reads other tokens: its cross-entropy is"):
        distil(tmp_path / "other", tiny.llama(1), language_model, counting(step=29)).train()
    distil(tmp_path / "same", tiny.llama(1), language_model, counting()).train()
    distil(tmp_path / "untrained", tiny.llama(1), tiny.llama(2), counting()).train()


def test_trying_the_teacher_leaves_no_trace(classifier, tmp_path):
    weights = []
    for name, probes in (("with", True), ("without", False)):
        trainer = distil(tmp_path / name, tiny.bert(1), classifier, tiny.class_data(64, seed=1))
        trainer.probe_teacher = probes
        trainer.train()
        weights.append(torch.cat([p.flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*weights)


def test_only_a_clear_match_under_other_numbers_is_refused():
    swapped = [[2, 60], [58, 8]]
    assert wrong_order(swapped).startswith("the teacher's class 0 seems to be the data's class 1")
    assert wrong_order(swapped[::-1]) is None
    assert wrong_order([[0, 0], [100, 20]]) is None  # always one class: 83 % under another order, and no agreement
    assert wrong_order([[0, 5], [5, 0]]) is None  # too few rows
    assert wrong_tokens(5.0, 2048, 64) is None
    assert wrong_tokens(5.3, 2048, 64) is not None


def tokenizer(words, **special):
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **special)


WORDS = ["[UNK]", "[PAD]", "[SEP]", "a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "special", "message"),
    [
        ([*WORDS[:3], "b", "a", "c"], {}, "other tokens than the student's: 3 is 'a' here and 'b' there, 4 is 'b'"),
        ([*WORDS, "d"], {}, "has 7 tokens and the student's 6; 'd' in one alone"),
        (WORDS, {"sep_token": "a"}, r"the sep token is '\[SEP\]' in the student's tokenizer and 'a' in the teacher's"),
        (WORDS, {"sep_token": "[SEP]", "eos_token": "b", "pad_token": "[PAD]"}, None),
    ],
)
def test_tokenizers_are_compared_by_what_they_number(words, special, message):
    student = tokenizer(WORDS, sep_token="[SEP]", eos_token="c")
    if message is None:
        check_tokenizers(student, tokenizer(words, **special), "teacher")
        return
    with pytest.raises(ValueError, match=f"teacher: .*{message}"):
        check_tokenizers(student, tokenizer(words, **special), "teacher")


def test_the_tokenizer_beside_a_teachers_weights_is_compared(tmp_path):
    tiny.bert().save_pretrained(tmp_path / "teacher")
    tokenizer([*WORDS[:3], "b", "a", "c"]).save_pretrained(tmp_path / "teacher")
    teacher = type(tiny.bert()).from_pretrained(tmp_path / "teacher")
    for declared in (teacher, Teacher(tmp_path / "teacher"), Teacher(tiny.bert(), tokenizer=tmp_path / "teacher")):
        trainer = distil(tmp_path, tiny.bert(), declared, tiny.class_data(), processing_class=tokenizer(WORDS))
        with pytest.raises(ValueError, match="3 is 'a' here and 'b' there"):
            trainer.plan()
