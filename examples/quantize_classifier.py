"""Both ways to one bit, on a small classifier: is a line of bytes prose or code?

The multi-stage run holds every box of the figure: general distillation on unlabelled text, a head, two-bit weights,
splitting, one-bit weights. The single-stage run copies the teacher and is binary at once, with as many updates on the
task.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import BertConfig, BertForSequenceClassification, BertModel, Trainer, TrainingArguments, set_seed

from examples.distil_classifier import LENGTH, TOKENIZER, lines
from hf_stages import StagedTrainer
from hf_stages.evaluation.metrics import Metrics
from hf_stages.recipes import multi_stage, single_stage


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

    body = BertModel(config)
    body.load_state_dict(teacher.model.bert.state_dict(), strict=False)
    recipes = {
        "multi": multi_stage(
            f"{steps} steps", general=f"{steps // 4} steps", corpus=train.remove_columns("labels"), general_teacher=body,
            set_task=["prose", "code"], reduce=[1, 2, 4],
        ),
        "single": single_stage(f"{steps} steps", reduce=[1, 2, 4]),
    }  # fmt: skip
    for name, recipe in recipes.items():
        own = copy.copy(args)
        own.output_dir, own.max_steps = str(out / name), -1
        start = body if name == "multi" else teacher.model
        trainer = StagedTrainer(
            copy.deepcopy(start), own, recipe=recipe, teacher=teacher.model, train_dataset=train, **shared
        )
        trainer.train()
    folders = {
        "2-bit": "multi/03-ternary-logits",
        "1-bit, multi-stage": "multi/05-binary-logits",
        "1-bit, single-stage": "single/01-binary",
    }
    found = {"teacher, 4 layers": teacher.evaluate()["eval_accuracy"]}
    for name, folder in folders.items():
        found[name] = json.loads((out / folder / "stage.json").read_text())["metrics"]["eval_accuracy"]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("quantize-classifier-out"))
    parser.add_argument(
        "--steps", type=int, default=160, help="updates of the teacher, and of each student on the task"
    )
    given = parser.parse_args()
    for name, accuracy in main(given.out, given.steps).items():
        print(f"{name:<22}{accuracy:.3f}")
