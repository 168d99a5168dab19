"""A teacher runs once over the text; two stages then learn from its cache, as they would from the teacher itself."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from hf_stages import CachedTeacher, Stage, StagedTrainer, Teacher
from hf_stages.data.sample_text import blocks, byte_tokenizer, code
from hf_stages.losses import HiddenMSE, LogitKL, TaskLoss

TOKENIZER = byte_tokenizer()


def model(layers: int) -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), initializer_range=0.12, **sizes))


def arguments(out: Path, **more) -> TrainingArguments:
    given = {"per_device_train_batch_size": 8, "learning_rate": 3e-3, "save_strategy": "no", "report_to": "none"}
    return TrainingArguments(str(out), disable_tqdm=True, logging_strategy="no", use_cpu=True, **given, **more)


def distil(out: Path, teacher, steps: int, data, held_out) -> StagedTrainer:
    stages = [
        Stage("layers", f"{steps} steps", loss=1.0 * HiddenMSE([2, 4])),
        Stage("logits", f"{steps} steps", loss=0.5 * TaskLoss() + LogitKL()),
    ]
    trainer = StagedTrainer(
        model(2),
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
    data, held_out = (blocks(code(n, split=part), TOKENIZER, 64) for n, part in ((size, "train"), (size // 4, "eval")))
    teacher = model(4)
    Trainer(teacher, arguments(out / "teacher", max_steps=2 * steps), train_dataset=data).train()

    given = {"hidden": [2, 4], "tokenizer": TOKENIZER, "batch_size": 8}
    full = Teacher(teacher).cache(data, out / "cache", **given)
    small = Teacher(teacher).cache(data, out / "cache-16", k=16, dtype="bfloat16", **given)
    students = {"live": teacher, "all logits": CachedTeacher(full.folder), "16 logits, bfloat16": small}
    trained = {name: distil(out / f"from {name}", source, steps, data, held_out) for name, source in students.items()}

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("cached-teacher-out"))
    parser.add_argument("--steps", type=int, default=100, help="updates of each stage")
    given = parser.parse_args()
    main(given.out, given.steps)
