"""Half of a classifier's layers, distilled in three stages from the whole: is a line of bytes prose or code?

The student is every other layer of its teacher. It sees no label: hidden states and attention first, then everything,
then the teacher's answers alone.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from hf_stages import StagedTrainer
from hf_stages.data.sample_text import byte_tokenizer, code, prose
from hf_stages.evaluation.metrics import Metrics
from hf_stages.recipes import three_stage
from hf_stages.transforms import ReduceLayers

LENGTH = 32
TOKENIZER = byte_tokenizer()


def lines(split: str, count: int) -> Dataset:
    """Pieces of as many bytes each, half of them prose (0), half code (1)."""
    rows = []
    for label, text in enumerate((prose, code)):
        ids = TOKENIZER("\n".join(text(LENGTH * count, split=split)["text"]))["input_ids"]
        rows += [{"input_ids": ids[i : i + LENGTH], "labels": label} for i in range(0, LENGTH * count // 2, LENGTH)]
    return Dataset.from_list(rows)


def main(out: Path, steps: int) -> dict[str, float]:
    set_seed(0)
    train, held_out = lines("train", 4000), lines("eval", 400)
    config = BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=LENGTH, num_labels=2, initializer_range=0.08,
    )  # fmt: skip
    args = TrainingArguments(
        str(out / "teacher"), max_steps=steps, learning_rate=2e-3, per_device_train_batch_size=32, logging_steps=20,
        per_device_eval_batch_size=200, optim="adamw_torch_fused", save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    shared = {"eval_dataset": held_out, "compute_metrics": Metrics("accuracy")}
    teacher = Trainer(BertForSequenceClassification(config), args, train_dataset=train, **shared)
    teacher.train()

    keep = [2, 4]
    recipe = three_stage(until=f"{steps} steps", reduce=keep)
    args = copy.copy(args)
    args.output_dir, args.max_steps = str(out / "student"), -1
    cut = Trainer(ReduceLayers(keep)(copy.deepcopy(teacher.model)), args, **shared)
    student = StagedTrainer(
        copy.deepcopy(teacher.model), args, recipe=recipe, teacher=teacher.model,
        train_dataset=train.remove_columns("labels"), **shared,
    )  # fmt: skip
    student.train()
    runs = {"teacher, 4 layers": teacher, "every other layer": cut, "the same, distilled": student}
    return {name: run.evaluate()["eval_accuracy"] for name, run in runs.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("distil-classifier-out"))
    parser.add_argument("--steps", type=int, default=150, help="updates of the teacher, and of the student")
    given = parser.parse_args()
    for name, accuracy in main(given.out, given.steps).items():
        print(f"{name:<22}{accuracy:.3f}")
