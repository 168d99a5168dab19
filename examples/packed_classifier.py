"""A one-bit classifier, packed: how small it is on disk, and that it says what was trained.

The last stage has ``pack_on_save``; its folder loads with ``from_pretrained`` once ``hf_stages`` is imported. How fast
it is: ``hf-stages bench packed-classifier-out/02-binary-exports/packed``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import LogitKL
from hf_stages.transforms import Binarize


def rows(count: int, seed: int) -> Dataset:
    """Whether more of a row's tokens are even or odd."""
    ids = torch.randint(2, 64, (count, 15), generator=torch.Generator().manual_seed(seed))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": ((ids % 2).sum(1) > 7).long().tolist()})


def main(out: Path, steps: int, hidden: int) -> dict[str, float]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=4 * hidden,
        max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    args = TrainingArguments(
        str(out), learning_rate=1e-3, per_device_train_batch_size=32, optim="adamw_torch_fused", save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    stages = [
        Stage("whole", f"{steps} steps"),
        Stage(
            "binary", f"{steps} steps", transforms=Binarize(), loss=LogitKL(), teacher="stage:whole", pack_on_save=True
        ),
    ]
    trainer = StagedTrainer(BertForSequenceClassification(config), args, stages=stages, train_dataset=rows(2048, 0))
    trainer.train()

    packed = AutoModelForSequenceClassification.from_pretrained(out / "02-binary-exports" / "packed")
    whole = AutoModelForSequenceClassification.from_pretrained(out / "01-whole")
    test = rows(256, 1).with_format("torch")[:]
    found = {}
    for name, model in (("whole", whole), ("trained", trainer.model), ("packed", packed)):
        model.eval()
        with torch.inference_mode():
            found[name] = model(test["input_ids"]).logits
    size = {name: sum(f.stat().st_size for f in (out / folder).glob("*.safetensors")) for name, folder in
            (("whole", "01-whole"), ("packed", "02-binary-exports/packed"))}  # fmt: skip
    right = {name: (logits.argmax(-1) == test["labels"]).float().mean().item() for name, logits in found.items()}
    return {
        "accuracy": right["whole"],
        "accuracy, one bit": right["packed"],
        "largest difference of logits": (found["packed"] - found["trained"]).abs().max().item(),
        "times smaller": size["whole"] / size["packed"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("packed-classifier-out"))
    parser.add_argument("--steps", type=int, default=120, help="updates of each stage")
    parser.add_argument("--hidden", type=int, default=128)
    given = parser.parse_args()
    for name, value in main(given.out, given.steps, given.hidden).items():
        print(f"{name:<30}{value:10.4f}")
