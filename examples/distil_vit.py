"""Train a vision transformer and distil it, in one run: the model of the first stage teaches the later ones.

The pictures are noise over stripes, which are vertical, horizontal or diagonal.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import ViTConfig, ViTForImageClassification, set_seed

from _arguments import command_line, training_arguments
from hf_stages import Metrics, Stage, StagedTrainer, one_stage

SIZE = 16


def pictures(count: int, seed: int) -> Dataset:
    """Draw square pictures of stripes and noise, with the direction of the stripes as their label."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    across, down = torch.arange(SIZE).repeat(SIZE, 1), torch.arange(SIZE).repeat(SIZE, 1).T
    slopes = torch.stack([across, down, across + down])[labels].float()
    phase = torch.rand(count, 1, 1, generator=draw) * 6.3
    pixels = torch.sin(slopes + phase) + torch.randn(count, SIZE, SIZE, generator=draw)
    pixels = pixels[:, None].expand(-1, 3, -1, -1)
    return Dataset.from_dict({"pixel_values": pixels.numpy(), "labels": labels.numpy()}).with_format("torch")


def main(out: Path, steps: int) -> dict[str, float]:
    # 1. Make a model.
    set_seed(0)
    config = ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE,
        patch_size=4, num_labels=3, initializer_range=0.08,
    )  # fmt: skip

    # 2. Declare the stages. "cut" does not train: it shows what half of the layers know by themselves.
    (half,) = one_stage(until=f"{steps} steps", reduce=[2, 4]).stages
    cut = replace(half, name="cut", until="1 steps", args={"learning_rate": 0.0})
    students = [replace(stage, teacher="stage:whole", parents="whole") for stage in (cut, half)]

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
    names = {"01-whole": "teacher, 4 layers", "02-cut": "every other layer", "03-all": "the same, distilled"}
    stages = {name: json.loads((out / folder / "stage.json").read_text()) for folder, name in names.items()}
    return {name: stage["metrics"]["eval_accuracy"] for name, stage in stages.items()}


if __name__ == "__main__":
    options = command_line(
        __doc__, out="distil-vit-out", steps=100, steps_help="updates of the teacher, and of the student"
    ).parse_args()
    for name, accuracy in main(options.out, options.steps).items():
        print(f"{name:<22}{accuracy:.3f}")
