"""A vision transformer in one bit, in one run: trained, then binary with its former self as the teacher."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataclasses import replace

from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from examples.distil_vit import SIZE, pictures
from hf_stages import Stage, StagedTrainer
from hf_stages.evaluation.metrics import Metrics
from hf_stages.recipes import single_stage


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
    (cut,) = single_stage("1 steps").stages  # what is left without training
    (binary,) = single_stage(f"{steps} steps").stages
    cut = replace(cut, name="cut", args={"learning_rate": 0.0})
    taught = [replace(stage, teacher="stage:whole", parents="whole") for stage in (cut, binary)]
    trainer = StagedTrainer(
        ViTForImageClassification(config), args, stages=[Stage("whole", f"{steps} steps"), *taught],
        train_dataset=pictures(1000, seed=0), eval_dataset=pictures(200, seed=1), compute_metrics=Metrics("accuracy"),
    )  # fmt: skip
    trainer.train()
    names = {"01-whole": "full precision", "02-cut": "binary at once", "03-binary": "binary, distilled"}
    stages = {name: json.loads((out / folder / "stage.json").read_text()) for folder, name in names.items()}
    return {name: stage["metrics"]["eval_accuracy"] for name, stage in stages.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("binary-vit-out"))
    parser.add_argument("--steps", type=int, default=100, help="updates of the model, and of its binary self")
    given = parser.parse_args()
    for name, accuracy in main(given.out, given.steps).items():
        print(f"{name:<22}{accuracy:.3f}")
