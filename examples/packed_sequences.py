"""Docstrings of all lengths, packed: rows grow from 64 to 256 tokens over the stage, and no docstring sees another.

The same run with padded batches learns the same from the same updates, and takes longer.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from hf_stages import Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.data import Lengths, Packed
from hf_stages.data.sample_text import byte_tokenizer, prose


def paragraphs(size: int) -> Dataset:
    """One example per paragraph: most are short, some are long."""
    tokenizer = byte_tokenizer()
    found = [part for text in prose(size)["text"] for part in text.split("\n\n") if len(part) > 1]
    ids = [[*tokenizer(part)["input_ids"][:255], tokenizer.eos_token_id] for part in found]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def train(out: Path, collator, data: Dataset, steps: int) -> tuple[float, float]:
    """Loss over the stage and seconds of processor time."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256,
    )  # fmt: skip
    args = TrainingArguments(
        str(out), per_device_train_batch_size=16, learning_rate=3e-3, report_to="none", use_cpu=True, disable_tqdm=True,
        logging_steps=steps, save_strategy="no",
    )  # fmt: skip
    trainer = StagedTrainer(
        LlamaForCausalLM(config),
        args,
        stages=[Stage("packed", f"{steps} steps", data_collator=collator)],
        train_dataset=data,
        processing_class=byte_tokenizer(),
    )
    began = time.process_time()
    trainer.train()
    took = time.process_time() - began
    return next(log["loss"] for log in trainer.state.log_history if "loss" in log), took


def main(out: Path, steps: int, size: int = 300_000) -> dict[str, tuple[float, float]]:
    data = paragraphs(size)
    collators = {
        "packed": Packed(256),
        "padded": Lengths(256),
        "packed, growing": Packed(Linear(64, 256), longer="split"),
    }
    found = {name: train(out / name.replace(", ", "-"), collator, data, steps) for name, collator in collators.items()}
    print(f"{'':16}{'loss':>8}{'seconds':>9}")
    for name, (loss, took) in found.items():
        print(f"{name:16}{loss:8.4f}{took:9.1f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/packed"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    main(options.out, options.steps)
