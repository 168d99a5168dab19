"""Teach a LoRA adapter code, and keep the base model's prose.

A second adapter is also held near its own base: the loss has a KL divergence to the model with its adapter off, which
limits what it forgets. ``teacher="base"`` costs one more forward pass and no second copy of the weights.
"""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, set_seed

from _arguments import command_line, training_arguments
from hf_stages import AddLora, LogitKL, Stage, StagedTrainer, TaskLoss
from hf_stages.data.sample_text import blocks, byte_tokenizer, code, prose

TOKENIZER = byte_tokenizer()


def measured(trainer: Trainer) -> tuple[float, float]:
    metrics = trainer.evaluate()
    return metrics["eval_prose_loss"], metrics["eval_code_loss"]


def main(out: Path, steps: int) -> dict[str, tuple[float, float]]:
    # 1. Make the data.
    set_seed(0)
    texts = {"prose": prose, "code": code}
    train = {name: blocks(text(200_000), TOKENIZER, 64) for name, text in texts.items()}
    held_out = {name: blocks(text(10_000, split="eval"), TOKENIZER, 64) for name, text in texts.items()}

    # 2. Train a base model on prose.
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.08,
    )  # fmt: skip
    args = training_arguments(
        out / "base", max_steps=steps, learning_rate=4e-3, per_device_train_batch_size=16, per_device_eval_batch_size=64
    )
    base = Trainer(LlamaForCausalLM(config), args, train_dataset=train["prose"], eval_dataset=held_out)
    base.train()
    found = {"base, prose alone": measured(base)}

    # 3. Train an adapter on code: first with the task's loss alone, then near its base.
    for name, loss in {"LoRA": None, "LoRA, near its base": TaskLoss() + LogitKL()}.items():
        own = copy.copy(args)
        own.max_steps, own.output_dir = -1, str(out / name.replace(", ", "-").replace(" ", "-"))
        stage = Stage(
            "code",
            f"{steps} steps",
            train_dataset=train["code"],
            transforms=[AddLora(r=8, target_modules="all-linear")],
            loss=loss,
            teacher="base" if loss else None,
        )
        trainer = StagedTrainer(copy.deepcopy(base.model), own, stages=[stage], eval_dataset=held_out)
        trainer.train()
        found[name] = measured(trainer)
    return found


if __name__ == "__main__":
    options = command_line(
        __doc__, out="lora-self-distillation-out", steps=150, steps_help="updates of the base, and of each adapter"
    ).parse_args()
    print(f"{'nats per byte':<22}{'prose':>8}{'code':>8}")
    for name, (on_prose, on_code) in main(options.out, options.steps).items():
        print(f"{name:<22}{on_prose:>8.3f}{on_code:>8.3f}")
