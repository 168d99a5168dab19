"""A LoRA adapter learns code and keeps its prose: a divergence to its own base, adapters off, bounds what it forgets.

``teacher="base"`` costs one more forward and no second copy of the weights.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from hf_stages import Stage, StagedTrainer
from hf_stages.data.sample_text import blocks, byte_tokenizer, code, prose
from hf_stages.losses import LogitKL, TaskLoss
from hf_stages.transforms import AddLora

TOKENIZER = byte_tokenizer()


def main(out: Path, steps: int) -> dict[str, tuple[float, float]]:
    set_seed(0)
    texts = {"prose": prose, "code": code}
    train = {name: blocks(text(200_000), TOKENIZER, 64) for name, text in texts.items()}
    held_out = {name: blocks(text(10_000, split="eval"), TOKENIZER, 64) for name, text in texts.items()}
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.08,
    )  # fmt: skip
    args = TrainingArguments(
        str(out / "base"), max_steps=steps, learning_rate=4e-3, per_device_train_batch_size=16, logging_steps=20,
        per_device_eval_batch_size=64, optim="adamw_torch_fused", save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    base = Trainer(LlamaForCausalLM(config), args, train_dataset=train["prose"], eval_dataset=held_out)
    base.train()

    def measured(trainer: Trainer) -> tuple[float, float]:
        metrics = trainer.evaluate()
        return metrics["eval_prose_loss"], metrics["eval_code_loss"]

    found = {"base, prose alone": measured(base)}
    args = copy.copy(args)
    args.max_steps = -1
    for name, loss in {"LoRA": None, "LoRA, near its base": TaskLoss() + LogitKL()}.items():
        own = copy.copy(args)
        own.output_dir = str(out / name.replace(", ", "-").replace(" ", "-"))
        stage = Stage(
            "code", f"{steps} steps", train_dataset=train["code"], loss=loss, teacher="base" if loss else None,
            transforms=[AddLora(r=8, target_modules="all-linear")],
        )  # fmt: skip
        trainer = StagedTrainer(copy.deepcopy(base.model), own, stages=[stage], eval_dataset=held_out)
        trainer.train()
        found[name] = measured(trainer)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("lora-self-distillation-out"))
    parser.add_argument("--steps", type=int, default=150, help="updates of the base, and of each adapter")
    given = parser.parse_args()
    print(f"{'nats per byte':<22}{'prose':>8}{'code':>8}")
    for name, (on_prose, on_code) in main(given.out, given.steps).items():
        print(f"{name:<22}{on_prose:>8.3f}{on_code:>8.3f}")
