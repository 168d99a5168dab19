"""Train a one-bit classifier, pack it, and check how small it is and that it gives the trained model's answers.

The last stage has ``pack_on_save``. Its folder loads with ``from_pretrained`` once ``hf_stages`` is imported. To
measure its speed: ``hf-stages bench packed-classifier-out/02-binary-exports/packed``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from _arguments import command_line, training_arguments
from hf_stages import Binarize, LogitKL, Stage, StagedTrainer


def rows(count: int, seed: int) -> Dataset:
    """Make rows of random tokens. The label says whether more of them are odd than even."""
    ids = torch.randint(2, 64, (count, 15), generator=torch.Generator().manual_seed(seed))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": ((ids % 2).sum(1) > 7).long().tolist()})


def weights_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main(out: Path, steps: int, hidden: int) -> dict[str, float]:
    # 1. Make a model.
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=4 * hidden,
        max_position_embeddings=32, num_labels=2,
    )  # fmt: skip

    # 2. Train it in full precision, then in one bit with its former self as the teacher.
    stages = [
        Stage("whole", f"{steps} steps"),
        Stage(
            "binary", f"{steps} steps", transforms=Binarize(), loss=LogitKL(), teacher="stage:whole", pack_on_save=True
        ),
    ]
    args = training_arguments(out, learning_rate=1e-3, per_device_train_batch_size=32)
    trainer = StagedTrainer(BertForSequenceClassification(config), args, stages=stages, train_dataset=rows(2048, 0))
    trainer.train()

    # 3. Load the model before, the trained model and the packed model, and let them answer the same rows.
    packed_folder = out / "02-binary-exports" / "packed"
    models = {
        "whole": AutoModelForSequenceClassification.from_pretrained(out / "01-whole"),
        "trained": trainer.model,
        "packed": AutoModelForSequenceClassification.from_pretrained(packed_folder),
    }
    test = rows(256, 1).with_format("torch")[:]
    logits = {}
    for name, model in models.items():
        model.eval()
        with torch.inference_mode():
            logits[name] = model(test["input_ids"]).logits

    # 4. Compare them.
    right = {name: (found.argmax(-1) == test["labels"]).float().mean().item() for name, found in logits.items()}
    return {
        "accuracy": right["whole"],
        "accuracy, one bit": right["packed"],
        "largest difference of logits": (logits["packed"] - logits["trained"]).abs().max().item(),
        "times smaller": weights_size(out / "01-whole") / weights_size(packed_folder),
    }


if __name__ == "__main__":
    parser = command_line(__doc__, out="packed-classifier-out", steps=120)
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    for name, value in main(**vars(parser.parse_args())).items():
        print(f"{name:<30}{value:10.4f}")
