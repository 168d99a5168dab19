"""One run that trains a vision transformer and distils it: the first stage's result teaches the second stage.

The pictures are noise over stripes: upright, level or slanted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_stages import Stage, StagedTrainer
from hf_stages.evaluation.metrics import Metrics
from hf_stages.recipes import one_stage

SIZE = 16


def pictures(count: int, seed: int) -> Dataset:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    across, down = torch.arange(SIZE).repeat(SIZE, 1), torch.arange(SIZE).repeat(SIZE, 1).T
    slopes = torch.stack([across, down, across + down])[labels].float()
    phase = torch.rand(count, 1, 1, generator=draw) * 6.3
    pixels = torch.sin(slopes + phase) + torch.randn(count, SIZE, SIZE, generator=draw)
    pixels = pixels[:, None].expand(-1, 3, -1, -1)
    return Dataset.from_dict({"pixel_values": pixels.numpy(), "labels": labels.numpy()}).with_format("torch")


def main(out: Path, steps: int) -> dict[str, float]:
    set_seed(0)
    config = ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE, patch_size=4,
        num_labels=3, initializer_range=0.08,
    )  # fmt: skip
    args = TrainingArguments(
        str(out), learning_rate=2e-3, per_device_train_batch_size=32, per_device_eval_batch_size=200, logging_steps=20,
        optim="adamw_torch_fused", save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    (half,) = one_stage(until=f"{steps} steps", reduce=[2, 4]).stages
    cut = replace(half, name="cut", until="1 steps", args={"learning_rate": 0.0})  # what the layers know by themselves
    taught = [replace(stage, teacher="stage:whole", parents="whole") for stage in (cut, half)]
    trainer = StagedTrainer(
        ViTForImageClassification(config), args, stages=[Stage("whole", f"{steps} steps"), *taught],
        train_dataset=pictures(1000, seed=0), eval_dataset=pictures(200, seed=1), compute_metrics=Metrics("accuracy"),
    )  # fmt: skip
    trainer.train()
    names = {"01-whole": "teacher, 4 layers", "02-cut": "every other layer", "03-all": "the same, distilled"}
    stages = {name: json.loads((out / folder / "stage.json").read_text()) for folder, name in names.items()}
    return {name: stage["metrics"]["eval_accuracy"] for name, stage in stages.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("distil-vit-out"))
    parser.add_argument("--steps", type=int, default=100, help="updates of the teacher, and of the student")
    given = parser.parse_args()
    for name, accuracy in main(given.out, given.steps).items():
        print(f"{name:<22}{accuracy:.3f}")
