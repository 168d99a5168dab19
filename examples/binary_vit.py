"""Train a vision transformer, then turn it into one bit, in one run.

The first stage trains in full precision. The second stage is binary and learns from the model of the first.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from transformers import ViTConfig, ViTForImageClassification, set_seed

from _arguments import command_line, training_arguments
from distil_vit import SIZE, pictures
from hf_stages import Metrics, Stage, StagedTrainer, single_stage


def main(out: Path, steps: int) -> dict[str, float]:
    # 1. Make a model.
    set_seed(0)
    config = ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE,
        patch_size=4, num_labels=3, initializer_range=0.08,
    )  # fmt: skip

    # 2. Declare the stages. "cut" does not train: it shows what is left when the weights are only rounded.
    (cut,) = single_stage("1 steps").stages
    (binary,) = single_stage(f"{steps} steps").stages
    cut = replace(cut, name="cut", args={"learning_rate": 0.0})
    students = [replace(stage, teacher="stage:whole", parents="whole") for stage in (cut, binary)]

    # 3. Train all stages.
    trainer = StagedTrainer(
        ViTForImageClassification(config),
        training_arguments(out, learning_rate=2e-3, per_device_train_batch_size=32, per_device_eval_batch_size=200),
        stages=[Stage("whole", f"{steps} steps"), *students],
        train_dataset=pictures(1000, seed=0),
        eval_dataset=pictures(200, seed=1),
        compute_metrics=Metrics("accuracy"),
    )
    trainer.train()

    # 4. Read what each stage reached.
    names = {"01-whole": "full precision", "02-cut": "binary at once", "03-binary": "binary, distilled"}
    stages = {name: json.loads((out / folder / "stage.json").read_text()) for folder, name in names.items()}
    return {name: stage["metrics"]["eval_accuracy"] for name, stage in stages.items()}


if __name__ == "__main__":
    options = command_line(
        __doc__, out="binary-vit-out", steps=100, steps_help="updates of the model, and of its binary copy"
    ).parse_args()
    for name, accuracy in main(options.out, options.steps).items():
        print(f"{name:<22}{accuracy:.3f}")
