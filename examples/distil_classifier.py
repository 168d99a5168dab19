"""Distil a classifier into half of its layers, without labels: does a line of bytes hold prose or code?

The student starts with every other layer of its teacher. It sees no label. It learns in three stages: from hidden
states and attention, then from these and the teacher's answers, then from the answers alone.
"""

from __future__ import annotations

import copy
from pathlib import Path

from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from _arguments import command_line, training_arguments
from hf_stages import Metrics, ReduceLayers, StagedTrainer, three_stage
from hf_stages.data.sample_text import byte_tokenizer, code, prose

LENGTH = 32
TOKENIZER = byte_tokenizer()


def lines(split: str, count: int) -> Dataset:
    """Make pieces of ``LENGTH`` bytes: one half is prose (label 0), the other half is code (label 1)."""
    rows = []
    for label, text in enumerate((prose, code)):
        ids = TOKENIZER("\n".join(text(LENGTH * count, split=split)["text"]))["input_ids"]
        rows += [{"input_ids": ids[i : i + LENGTH], "labels": label} for i in range(0, LENGTH * count // 2, LENGTH)]
    return Dataset.from_list(rows)


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=LENGTH, num_labels=2, initializer_range=0.08,
    )  # fmt: skip


def teacher_arguments(out: Path, steps: int) -> TrainingArguments:
    return training_arguments(
        out, max_steps=steps, learning_rate=2e-3, per_device_train_batch_size=32, per_device_eval_batch_size=200
    )


def main(out: Path, steps: int) -> dict[str, float]:
    # 1. Make the data.
    set_seed(0)
    train, held_out = lines("train", 4000), lines("eval", 400)
    evaluation = {"eval_dataset": held_out, "compute_metrics": Metrics("accuracy")}

    # 2. Train the teacher, with a plain Trainer.
    args = teacher_arguments(out / "teacher", steps)
    teacher = Trainer(BertForSequenceClassification(bert_config()), args, train_dataset=train, **evaluation)
    teacher.train()

    # 3. Distil it into two of its layers. The student's data have no labels.
    keep = [2, 4]
    args = copy.copy(args)
    args.output_dir, args.max_steps = str(out / "student"), -1
    student = StagedTrainer(
        copy.deepcopy(teacher.model),
        args,
        recipe=three_stage(until=f"{steps} steps", reduce=keep),
        teacher=teacher.model,
        train_dataset=train.remove_columns("labels"),
        **evaluation,
    )
    student.train()

    # 4. Compare it with the teacher, and with the two layers before any training.
    cut = Trainer(ReduceLayers(keep)(copy.deepcopy(teacher.model)), args, **evaluation)
    runs = {"teacher, 4 layers": teacher, "every other layer": cut, "the same, distilled": student}
    return {name: run.evaluate()["eval_accuracy"] for name, run in runs.items()}


if __name__ == "__main__":
    options = command_line(
        __doc__, out="distil-classifier-out", steps=150, steps_help="updates of the teacher, and of the student"
    ).parse_args()
    for name, accuracy in main(options.out, options.steps).items():
        print(f"{name:<22}{accuracy:.3f}")
