"""Train a stage whose data go from prose to code, and show what it drew beside what was declared.

The shares of the mixture are curves, and easy blocks of code come first. A stage of prose comes before it. The run
takes half a minute on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from _arguments import command_line, training_arguments
from hf_stages import ByDifficulty, Linear, Mixture, Rewarm, Stage, StagedTrainer
from hf_stages.data.sample_text import blocks, byte_tokenizer, code, prose


def variety(rows: list[dict]) -> list[int]:
    """Score how hard blocks are, in a simple way: by the number of different bytes in each."""
    return [len(set(row["input_ids"])) for row in rows]


def main(out: Path, steps: int) -> None:
    # 1. Make training and evaluation data for both domains.
    set_seed(0)
    tokenizer = byte_tokenizer()
    texts = {"prose": prose, "code": code}
    data = {name: blocks(text(150_000), tokenizer, 128) for name, text in texts.items()}
    held_out = {name: blocks(text(15_000, split="eval"), tokenizer, 128) for name, text in texts.items()}

    # 2. Declare the mixture: its shares change over the stage, and code is sorted.
    sorted_code = {"code": ByDifficulty("code", by=variety, window=64)}
    ramp = Mixture({"prose": Linear(1, 0.3), "code": Linear(0, 0.7)}, sources=sorted_code)

    # 3. Train both stages.
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    trainer = StagedTrainer(
        LlamaForCausalLM(LlamaConfig(vocab_size=258, initializer_range=0.08, **size)),
        training_arguments(out, per_device_train_batch_size=8, learning_rate=3e-3),
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=tokenizer,
        stages=[
            Stage("prose", f"{steps} steps", train_dataset="prose"),
            Stage("ramp", f"{steps} steps", train_dataset=ramp, schedule=Rewarm(to=1.5e-3)),
        ],
    )
    trainer.train()

    # 4. Show the declared and the realized mixture, and the loss on both domains.
    show(out, list(data))


def show(out: Path, domains: list[str]) -> None:
    summary = json.loads((out / "02-ramp" / "stage.json").read_text())
    print("\nprogress  code declared  realized")
    for point in summary["data"]["over_time"][::4]:
        print(f"{point['t']:>7.0%}   {point['declared']['code']:>12.1%}  {point['share']['code']:>8.1%}")
    for name, about in summary["data"]["sources"].items():
        print(f"{name}: {about['examples']} examples, {about['tokens']} tokens, {about['passes']:.2f} passes")
    before = json.loads((out / "01-prose" / "stage.json").read_text())["metrics"]
    for name in domains:
        key = f"eval_{name}_loss"
        print(f"loss on {name}: {before[key]:.2f} after prose, {summary['metrics'][key]:.2f} after the ramp")


if __name__ == "__main__":
    options = command_line(__doc__, out="mixture-out", steps=60).parse_args()
    main(options.out, options.steps)
