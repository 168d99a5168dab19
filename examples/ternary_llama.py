"""Turn a Llama into two bits, and let an adapter repair it.

The two-bit weights stay as they are; LoRA learns beside them in full precision, from the logits of the model before.
Three figures are printed: the perplexity of the model, of its rounded weights without training, and with the trained
adapter.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from _arguments import command_line, training_arguments
from hf_stages import AddLora, LogitKL, Stage, StagedTrainer, Ternarize
from hf_stages.data.sample_text import blocks, byte_tokenizer, prose

TOKENIZER = byte_tokenizer()


def main(out: Path, steps: int) -> dict[str, float]:
    # 1. Make the data and a model.
    set_seed(0)
    train, held_out = blocks(prose(200_000), TOKENIZER, 64), blocks(prose(10_000, split="eval"), TOKENIZER, 64)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.08,
    )  # fmt: skip

    # 2. Declare the stages: full precision, then ternary weights with an adapter.
    stages = [
        Stage("whole", f"{steps} steps"),
        Stage(
            "repaired",
            f"{steps} steps",
            transforms=[Ternarize(embeddings=False), AddLora(r=8, target_modules="all-linear")],
            loss=LogitKL(),
            teacher="stage:whole",
        ),
    ]

    # 3. Train both.
    args = training_arguments(out, learning_rate=4e-3, per_device_train_batch_size=16, per_device_eval_batch_size=64)
    trainer = StagedTrainer(LlamaForCausalLM(config), args, stages=stages, train_dataset=train, eval_dataset=held_out)
    trainer.train()

    # 4. Read the losses: the second stage also measured itself at its start.
    whole, repaired = (json.loads((out / name / "stage.json").read_text()) for name in ("01-whole", "02-repaired"))
    losses = {
        "Llama": whole["metrics"]["eval_loss"],
        "ternary": repaired["boundary"]["start"]["loss"],
        "ternary, with LoRA": repaired["metrics"]["eval_loss"],
    }
    return {name: math.exp(loss) for name, loss in losses.items()}


if __name__ == "__main__":
    options = command_line(
        __doc__, out="ternary-llama-out", steps=150, steps_help="updates of the model, and of the adapter"
    ).parse_args()
    for name, perplexity in main(options.out, options.steps).items():
        print(f"{name:<22}{perplexity:8.2f}")
