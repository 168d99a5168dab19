"""What all arms of distill_step share: models, rows, optimizer, and the arms without a framework.

This file does not import hf_stages, because other libraries run it under their own Python.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from benchmarks._turns import Turns
from benchmarks.common import arguments

VOCAB, CLASSES, ROWS = 8192, 6, 1024
RATE = 1e-5
STEPS = 100_000  # more than any run takes; the parent ends it
# Uniform maps of a student of three blocks on a teacher of six; hidden 0 enters the first block.
HIDDEN, ATTENTION = ((0, 0), (1, 2), (2, 4), (3, 6)), ((1, 2), (2, 4), (3, 6))


def model(task: str, layers: int, **changes: Any) -> Any:
    """Make a model of random weights without dropout, with which SDPA would leave its fast kernel."""
    torch.manual_seed(layers)
    shape = {"hidden_size": 384, "num_hidden_layers": layers, "vocab_size": VOCAB}
    if task == "bert":
        shape |= {"intermediate_size": 1536, "num_attention_heads": 12, "num_labels": CLASSES}
        shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForSequenceClassification(BertConfig(**shape, **changes))
    shape |= {"intermediate_size": 1152, "num_attention_heads": 6, "num_key_value_heads": 6}
    return LlamaForCausalLM(LlamaConfig(**shape, **changes))


def pair(task: str, **changes: Any) -> tuple[Any, Any]:
    """Make a student of three blocks and a teacher of six, as large as all-MiniLM-L6 except for the vocabulary."""
    return model(task, 3, **changes), model(task, 6, **changes).eval().requires_grad_(False)


def rows(task: str, length: int) -> Dataset:
    """Make sentences of half to the whole length, padded; for the language model, full blocks."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB, (ROWS, length), generator=draw)
    if task == "llama":
        return Dataset.from_dict(
            {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": ids.tolist()}
        )
    real = torch.randint(length // 2, length + 1, (ROWS, 1), generator=draw)
    mask = (torch.arange(length) < real).long()
    labels = torch.randint(0, CLASSES, (ROWS,), generator=draw)
    return Dataset.from_dict(
        {"input_ids": (ids * mask).tolist(), "attention_mask": mask.tolist(), "labels": labels.tolist()}
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer for trainers that ask for one; nothing is tokenized."""
    from tokenizers import Tokenizer, models

    words = {f"t{i}": i for i in range(VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="t0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="t0", pad_token="t1", eos_token="t2", bos_token="t3"
    )


def optimizer(student: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Give the TrainingArguments of every arm that is a Trainer. There is no clipping, because the bound has none."""
    given = {"learning_rate": RATE, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 0.0}
    return given | {"per_device_train_batch_size": options.batch, "max_steps": STEPS}


class Ticks(TrainerCallback):
    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, args, state, control, **kwargs):
        self.turns.begin()

    def on_step_end(self, args, state, control, **kwargs):
        self.turns.tick()


def batches(task: str, options: argparse.Namespace, labels: bool = True) -> torch.utils.data.DataLoader:
    """Batch the rows as Trainer does, for loops other than Trainer's."""
    data = rows(task, options.length)
    if not labels:
        data = data.remove_columns("labels")
    collate: Any = default_data_collator
    return torch.utils.data.DataLoader(data, batch_size=options.batch, collate_fn=collate)


def _ready_batches(task: str, options: argparse.Namespace, labels: bool) -> Iterator[dict[str, torch.Tensor]]:
    return itertools.cycle(list(itertools.islice(batches(task, options, labels), 8)))


def bound_student(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    """Run one half of the bound: forward, backward and optimizer step of plain fine-tuning, on ready batches."""
    student, _ = pair(task)
    adamw = optimizer(student.train())
    turns.begin()
    for batch in _ready_batches(task, options, labels=True):
        student(**batch).loss.backward()
        adamw.step()
        adamw.zero_grad()
        turns.tick()


def bound_teacher(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    """Run the other half of the bound: the teacher's forward pass without gradients."""
    _, teacher = pair(task)
    turns.begin()
    for batch in _ready_batches(task, options, labels=False):
        with torch.no_grad():
            teacher(**batch)
        turns.tick()


def trainer(task: str, options: argparse.Namespace, turns: Turns, out: str) -> None:
    """Fine-tune with Trainer and no teacher: what its loop costs before anything is distilled."""
    student, _ = pair(task)
    args = arguments(out, **settings(options))
    Trainer(student, args, train_dataset=rows(task, options.length), callbacks=[Ticks(turns)]).train()


ARMS: dict[str, Callable[[str, argparse.Namespace, Turns, str], None]] = {
    "bound_student": bound_student,
    "bound_teacher": bound_teacher,
    "trainer": trainer,
}
