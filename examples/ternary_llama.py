"""A ternary Llama that an adapter repairs: the two-bit weights stay as they are, LoRA in full precision learns beside them.

Three figures: the perplexity of the model, of its ternary weights at once, and with the adapter trained from the model's
own logits.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from hf_stages import Stage, StagedTrainer
from hf_stages.data.sample_text import blocks, byte_tokenizer, prose
from hf_stages.losses import LogitKL
from hf_stages.transforms import AddLora, Ternarize

TOKENIZER = byte_tokenizer()


def main(out: Path, steps: int) -> dict[str, float]:
    set_seed(0)
    train, held_out = blocks(prose(200_000), TOKENIZER, 64), blocks(prose(10_000, split="eval"), TOKENIZER, 64)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.08,
    )  # fmt: skip
    args = TrainingArguments(
        str(out), learning_rate=4e-3, per_device_train_batch_size=16, logging_steps=20, per_device_eval_batch_size=64,
        optim="adamw_torch_fused", save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    taught = {"loss": LogitKL(), "teacher": "stage:whole"}
    stages = [
        Stage("whole", f"{steps} steps"),
        Stage(
            "repaired", f"{steps} steps", **taught,
            transforms=[Ternarize(embeddings=False), AddLora(r=8, target_modules="all-linear")],
        ),
    ]  # fmt: skip
    trainer = StagedTrainer(LlamaForCausalLM(config), args, stages=stages, train_dataset=train, eval_dataset=held_out)
    trainer.train()
    whole, repaired = (json.loads((out / name / "stage.json").read_text()) for name in ("01-whole", "02-repaired"))
    losses = {
        "Llama": whole["metrics"]["eval_loss"],
        "ternary": repaired["boundary"]["start"]["loss"],
        "ternary, with LoRA": repaired["metrics"]["eval_loss"],
    }
    return {name: math.exp(loss) for name, loss in losses.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("ternary-llama-out"))
    parser.add_argument("--steps", type=int, default=150, help="updates of the model, and of the adapter")
    given = parser.parse_args()
    for name, perplexity in main(given.out, given.steps).items():
        print(f"{name:<22}{perplexity:8.2f}")
