"""Distil a language model into half of its width and depth, on a tenth of its text.

The student learns from three things: the teacher's next-token distribution, how tokens relate in the teacher's last
attention (which can be compared across widths), and the text itself. For comparison, the same student also trains for
as many updates on that text alone.
"""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, set_seed

from _arguments import command_line, training_arguments
from hf_stages import AttentionRelation, Stage, StagedTrainer, one_stage
from hf_stages.data.sample_text import blocks, byte_tokenizer, prose

TOKENIZER = byte_tokenizer()


def llama(width: int, layers: int) -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(TOKENIZER), num_attention_heads=4, initializer_range=0.08, **sizes)
    )


def main(out: Path, steps: int) -> dict[str, float]:
    # 1. Train the teacher on all of the text.
    train, held_out = blocks(prose(200_000), TOKENIZER, 64), blocks(prose(10_000, split="eval"), TOKENIZER, 64)
    args = training_arguments(
        out / "teacher", max_steps=2 * steps, learning_rate=4e-3, per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
    )  # fmt: skip
    teacher = Trainer(llama(64, 4), args, train_dataset=train, eval_dataset=held_out)
    teacher.train()
    losses = {"teacher": teacher.evaluate()["eval_loss"]}

    # 2. Declare both ways to train a student.
    distilled = one_stage(until=f"{steps} steps", hidden=0, attention=0.3 * AttentionRelation(), task=0.5)
    runs = {"student, distilled": distilled.stages, "student, text alone": [Stage("text", f"{steps} steps")]}

    # 3. Train a student each way, on a tenth of the text, and measure it.
    tenth = train.select(range(len(train) // 10))
    for number, (name, stages) in enumerate(runs.items()):
        own = copy.copy(args)
        own.max_steps, own.output_dir = -1, str(out / f"student-{number}")
        student = StagedTrainer(
            llama(32, 2), own, stages=stages, teacher=teacher.model, train_dataset=tenth, eval_dataset=held_out
        )
        if number == 0:
            losses["student, before"] = student.evaluate()["eval_loss"]
        student.train()
        losses[name] = student.evaluate()["eval_loss"]
    return losses


if __name__ == "__main__":
    options = command_line(
        __doc__, out="distil-decoder-out", steps=200,
        steps_help="updates of each student; the teacher has twice as many",
    ).parse_args()  # fmt: skip
    for name, loss in main(options.out, options.steps).items():
        print(f"{name:<22}{loss:.3f} nats per byte")
