"""A language model of half the width and depth, distilled on a tenth of its teacher's text.

It learns from the teacher's next-token distribution, from how tokens relate in its last attention (which compares across
widths), and from the text itself. Beside it, the same student trained as long on that text alone.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from hf_stages import Stage, StagedTrainer
from hf_stages.data.sample_text import blocks, byte_tokenizer, prose
from hf_stages.losses import AttentionRelation
from hf_stages.recipes import one_stage

TOKENIZER = byte_tokenizer()


def model(width: int, layers: int) -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(TOKENIZER), num_attention_heads=4, initializer_range=0.08, **sizes)
    )


def main(out: Path, steps: int) -> dict[str, float]:
    train, held_out = blocks(prose(200_000), TOKENIZER, 64), blocks(prose(10_000, split="eval"), TOKENIZER, 64)
    args = TrainingArguments(
        str(out / "teacher"), max_steps=2 * steps, learning_rate=4e-3, per_device_train_batch_size=16, logging_steps=20,
        per_device_eval_batch_size=64, optim="adamw_torch_fused", save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    teacher = Trainer(model(64, 4), args, train_dataset=train, eval_dataset=held_out)
    teacher.train()

    args = copy.copy(args)
    args.max_steps = -1
    some = {"train_dataset": train.select(range(len(train) // 10)), "eval_dataset": held_out}
    distilled = one_stage(until=f"{steps} steps", hidden=0, attention=0.3 * AttentionRelation(), task=0.5)
    runs = {"student, distilled": distilled.stages, "student, text alone": [Stage("text", f"{steps} steps")]}
    losses = {"teacher": teacher.evaluate()["eval_loss"]}
    for number, (name, stages) in enumerate(runs.items()):
        own = copy.copy(args)
        own.output_dir = str(out / f"student-{number}")
        student = StagedTrainer(model(32, 2), own, stages=stages, teacher=teacher.model, **some)
        if number == 0:
            losses["student, before"] = student.evaluate()["eval_loss"]
        student.train()
        losses[name] = student.evaluate()["eval_loss"]
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("distil-decoder-out"))
    parser.add_argument("--steps", type=int, default=200, help="updates of each student; the teacher has twice as many")
    given = parser.parse_args()
    for name, loss in main(given.out, given.steps).items():
        print(f"{name:<22}{loss:.3f} nats per byte")
