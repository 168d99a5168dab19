"""Turn a small classifier into one bit, in both ways: does a line of bytes hold prose or code?

The multi-stage run has all steps of the published recipe: general distillation on text without labels, a new head,
two-bit weights, splitting, one-bit weights. The single-stage run copies the teacher and is binary from the start, with
as many updates on the task.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from transformers import BertForSequenceClassification, BertModel, Trainer, set_seed

from _arguments import command_line
from distil_classifier import bert_config, lines, teacher_arguments
from hf_stages import Metrics, StagedTrainer, multi_stage, single_stage

FOLDERS = {
    "2-bit": "multi/03-ternary-logits",
    "1-bit, multi-stage": "multi/05-binary-logits",
    "1-bit, single-stage": "single/01-binary",
}


def main(out: Path, steps: int) -> dict[str, float]:
    # 1. Make the data.
    set_seed(0)
    train, held_out = lines("train", 4000), lines("eval", 400)
    evaluation = {"eval_dataset": held_out, "compute_metrics": Metrics("accuracy")}

    # 2. Train the teacher, with a plain Trainer. Its body without the head teaches general distillation.
    config = bert_config()
    args = teacher_arguments(out / "teacher", steps)
    teacher = Trainer(BertForSequenceClassification(config), args, train_dataset=train, **evaluation)
    teacher.train()
    body = BertModel(config)
    body.load_state_dict(teacher.model.bert.state_dict(), strict=False)

    # 3. Declare both ways.
    recipes = {
        "multi": multi_stage(
            f"{steps} steps",
            general=f"{steps // 4} steps",
            corpus=train.remove_columns("labels"),
            general_teacher=body,
            set_task=["prose", "code"],
            reduce=[1, 2, 4],
        ),
        "single": single_stage(f"{steps} steps", reduce=[1, 2, 4]),
    }

    # 4. Train a student each way.
    for name, recipe in recipes.items():
        own = copy.copy(args)
        own.output_dir, own.max_steps = str(out / name), -1
        start = copy.deepcopy(body if name == "multi" else teacher.model)
        StagedTrainer(start, own, recipe=recipe, teacher=teacher.model, train_dataset=train, **evaluation).train()

    # 5. Read what they reached.
    found = {"teacher, 4 layers": teacher.evaluate()["eval_accuracy"]}
    for name, folder in FOLDERS.items():
        found[name] = json.loads((out / folder / "stage.json").read_text())["metrics"]["eval_accuracy"]
    return found


if __name__ == "__main__":
    options = command_line(
        __doc__, out="quantize-classifier-out", steps=160,
        steps_help="updates of the teacher, and of each student on the task",
    ).parse_args()  # fmt: skip
    for name, accuracy in main(options.out, options.steps).items():
        print(f"{name:<22}{accuracy:.3f}")
