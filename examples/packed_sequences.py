"""Train on docstrings of all lengths, packed: several share a row, and none sees another.

The same run with padded batches learns the same from the same updates, and takes longer. In a third run the rows grow
from 64 to 256 tokens over the stage.
"""

from __future__ import annotations

import time
from pathlib import Path

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from _arguments import command_line, training_arguments
from hf_stages import Lengths, Linear, Packed, Stage, StagedTrainer
from hf_stages.data.sample_text import byte_tokenizer, prose


def paragraphs(size: int) -> Dataset:
    """Make one example of each paragraph. Most are short, some are long."""
    tokenizer = byte_tokenizer()
    found = [part for text in prose(size)["text"] for part in text.split("\n\n") if len(part) > 1]
    ids = [[*tokenizer(part)["input_ids"][:255], tokenizer.eos_token_id] for part in found]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def train(out: Path, collator, data: Dataset, steps: int) -> tuple[float, float]:
    """Train one stage; returns its loss and the seconds of processor time."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256,
    )  # fmt: skip
    trainer = StagedTrainer(
        LlamaForCausalLM(config),
        training_arguments(out, per_device_train_batch_size=16, learning_rate=3e-3, logging_steps=steps),
        stages=[Stage("packed", f"{steps} steps", data_collator=collator)],
        train_dataset=data,
        processing_class=byte_tokenizer(),
    )
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    return next(log["loss"] for log in trainer.state.log_history if "loss" in log), seconds


def main(out: Path, steps: int, size: int = 300_000) -> dict[str, tuple[float, float]]:
    # 1. Make the data.
    data = paragraphs(size)

    # 2. Train the same model with three collators.
    collators = {
        "packed": Packed(256),
        "padded": Lengths(256),
        "packed, growing": Packed(Linear(64, 256), longer="split"),
    }
    found = {name: train(out / name.replace(", ", "-"), collator, data, steps) for name, collator in collators.items()}

    # 3. Compare loss and time.
    print(f"{'':16}{'loss':>8}{'seconds':>9}")
    for name, (loss, seconds) in found.items():
        print(f"{name:16}{loss:8.4f}{seconds:9.1f}")
    return found


if __name__ == "__main__":
    options = command_line(__doc__, out="packed-sequences-out", steps=60).parse_args()
    main(options.out, options.steps)
