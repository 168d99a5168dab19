"""Run a teacher once over the text, and let a student of two stages learn from the cache.

The student learns the same as from the live teacher. A cache of only 16 logits in bfloat16 is smaller and less exact.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, set_seed

from _arguments import command_line, training_arguments
from hf_stages import CachedTeacher, HiddenMSE, LogitKL, Stage, StagedTrainer, TaskLoss, Teacher
from hf_stages.data.sample_text import blocks, byte_tokenizer, code

TOKENIZER = byte_tokenizer()


def llama(layers: int) -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), initializer_range=0.12, **sizes))


def arguments(out: Path, **changes):
    return training_arguments(out, per_device_train_batch_size=8, learning_rate=3e-3, logging_strategy="no", **changes)


def distil(out: Path, teacher, steps: int, data, held_out) -> StagedTrainer:
    stages = [
        Stage("layers", f"{steps} steps", loss=1.0 * HiddenMSE([2, 4])),
        Stage("logits", f"{steps} steps", loss=0.5 * TaskLoss() + LogitKL()),
    ]
    trainer = StagedTrainer(
        llama(2),
        arguments(out),
        stages=stages,
        teacher=teacher,
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=TOKENIZER,
    )
    trainer.train()
    return trainer


def main(out: Path, steps: int, size: int = 40_000) -> None:
    shutil.rmtree(out, ignore_errors=True)

    # 1. Train a teacher on code.
    data, held_out = (blocks(code(n, split=part), TOKENIZER, 64) for n, part in ((size, "train"), (size // 4, "eval")))
    teacher = llama(4)
    Trainer(teacher, arguments(out / "teacher", max_steps=2 * steps), train_dataset=data).train()

    # 2. Run it once over the text, and keep its answers: all logits, or the 16 largest.
    shared = {"hidden": [2, 4], "tokenizer": TOKENIZER, "batch_size": 8}
    full = Teacher(teacher).cache(data, out / "cache", **shared)
    small = Teacher(teacher).cache(data, out / "cache-16", k=16, dtype="bfloat16", **shared)

    # 3. Train the same student from the live teacher and from both caches.
    teachers = {"live": teacher, "all logits": CachedTeacher(full.folder), "16 logits, bfloat16": small}
    trained = {name: distil(out / f"from {name}", source, steps, data, held_out) for name, source in teachers.items()}

    # 4. Compare the students.
    losses = {name: trainer.evaluate()["eval_loss"] for name, trainer in trained.items()}
    print("\nall logits:", full.summary())
    print("16 logits: ", small.summary())
    live = dict(trained["live"].model.named_parameters())
    print(f"\n{'taught by':<22}{'loss on unseen text':>20}{'largest weight difference to live':>36}")
    for name, trainer in trained.items():
        apart = max((p - live[n]).abs().max().item() for n, p in trainer.model.named_parameters())
        print(f"{name:<22}{losses[name]:>20.4f}{apart:>36.1e}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    options = command_line(__doc__, out="cached-teacher-out", steps=100).parse_args()
    main(options.out, options.steps)
