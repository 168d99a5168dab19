"""Train two stages on the CPU, language then code; interrupt the second one, resume it, and show the results."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed

from _arguments import command_line, training_arguments
from hf_stages import Fresh, Rewarm, Stage, StagedTrainer
from hf_stages.data.sample_text import blocks, byte_tokenizer, code, prose

BLOCK = 128
DOMAINS = {"language": prose, "code": code}
SIZES = {"train": 400_000, "eval": 30_000}  # bytes of text of each domain
TOKENIZER = byte_tokenizer()


def build_model() -> LlamaForCausalLM:
    """Make a model of 0.8M parameters.

    At this width, the default initializer_range of 0.02 learns nothing in the first 100 steps.
    """
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=BLOCK,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=TOKENIZER.pad_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def build_trainer(out: Path, steps: int, data: dict, callbacks: tuple = ()) -> StagedTrainer:
    args = training_arguments(
        out,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        logging_steps=25,
        save_strategy="steps",
        save_steps=max(steps // 3, 1),
        disable_tqdm=False,
    )
    stages = [
        Stage("language", f"{steps} steps", train_dataset=data["language"]["train"], schedule=Fresh(warmup=0.1)),
        Stage("code", f"{steps} steps", train_dataset=data["code"]["train"], schedule=Rewarm(to=2e-3)),
    ]
    return StagedTrainer(
        model=build_model(),
        args=args,
        stages=stages,
        eval_dataset={name: splits["eval"] for name, splits in data.items()},
        processing_class=TOKENIZER,
        callbacks=list(callbacks),
    )


class InterruptAfter(TrainerCallback):
    """Interrupts the run after a number of updates, as Ctrl-C would."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def main(out: Path, steps: int) -> None:
    torch.set_num_threads(2)
    began = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)

    # 1. Make blocks of text for both domains.
    data = {n: {s: blocks(f(size, split=s), TOKENIZER, BLOCK) for s, size in SIZES.items()} for n, f in DOMAINS.items()}

    # 2. Train, and interrupt the run in the middle of the second stage.
    cut_at = steps + steps // 2
    try:
        build_trainer(out, steps, data, (InterruptAfter(cut_at),)).train()
    except KeyboardInterrupt:
        print(f"\ncut on purpose after {cut_at} updates; a new trainer with a new model goes on\n")

    # 3. Resume it, with a new trainer and a new model.
    build_trainer(out, steps, data).train(resume_from_checkpoint=True)

    # 4. Show the loss on both domains after each stage.
    print(f"\n{'after stage':<14}{'loss language':>14}{'loss code':>11}{'tokens':>10}{'seconds':>9}  folder")
    for path in sorted(out.glob("*/stage.json")):
        stage = json.loads(path.read_text())
        losses = [stage["metrics"][f"eval_{name}_loss"] for name in DOMAINS]
        row = f"{losses[0]:>14.3f}{losses[1]:>11.3f}{stage['tokens']:>10,.0f}{stage['seconds']:>9.1f}"
        print(f"{path.parent.name[3:]:<14}{row}  {path.parent}")
    print(f"\n{time.perf_counter() - began:.0f} seconds in all; every folder loads with from_pretrained")


if __name__ == "__main__":
    options = command_line(__doc__, out="demo-out", steps=150).parse_args()
    main(options.out, options.steps)
